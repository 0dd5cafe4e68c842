"""The cost of a model: step times, memory, layers and operations."""
