"""What trained weights do: accuracy under changes, routing statistics, export, import."""
