"""Checkpoints: their folders, the cache they lie in, the hub they come from and go to. No torch."""
