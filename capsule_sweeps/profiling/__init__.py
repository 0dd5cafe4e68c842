"""What a model costs: steps timed, memory, layers and operations."""
