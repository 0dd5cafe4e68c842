"""How votes become parents: a file per conf/routing/*.yaml, and the passes that make it fast."""
