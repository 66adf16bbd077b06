"""CvT, the Convolutional vision Transformer, on the command line."""

__version__ = "0.1.0"
