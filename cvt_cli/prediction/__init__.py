"""Answers for images, and the files that they are written to."""
