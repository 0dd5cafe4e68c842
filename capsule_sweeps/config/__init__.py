"""The configuration of a run: the typed schema, Hydra's composition, objects built from it."""
