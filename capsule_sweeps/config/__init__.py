"""What a run is made of: the typed schema, Hydra's composition, objects built from it."""
