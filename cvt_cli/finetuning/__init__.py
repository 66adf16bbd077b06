"""Training runs: batches, steps, the run on disk; torch."""
