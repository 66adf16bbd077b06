"""This package itself: its version, and the folder of the data that it brings."""

from pathlib import Path

__version__ = "0.1.0"

DATA = Path(__file__).parents[1] / "data"
"""ImageNet's class list, the embedded checkpoint, images to verify exports on."""
