"""One training of one configuration, from its first step or its last checkpoint."""
