"""The launcher and the queue of SLURM; no other room knows SLURM."""
