"""aws-batch: a backend for batchport."""
