"""SLURM, which no other room knows."""
