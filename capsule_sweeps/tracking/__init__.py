"""Mirrors of runs: a file per conf/tracking/*.yaml. The run folder stays the truth."""
