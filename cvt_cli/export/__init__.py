"""Checkpoints as verified files for other runtimes, and how fast they are; torch."""
