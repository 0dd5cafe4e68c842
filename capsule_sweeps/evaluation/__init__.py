"""Evaluates trained weights: accuracy under changes, routing statistics, export, import."""
