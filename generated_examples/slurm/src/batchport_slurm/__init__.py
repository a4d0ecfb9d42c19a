"""slurm: a backend for batchport."""
