"""Model cards: what was measured of a checkpoint, in one document."""
