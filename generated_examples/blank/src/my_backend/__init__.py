"""my-backend: a backend for batchport."""
