"""What a CvT is, as values: sizes, preprocessing, labels, costs, recipes. No torch, no NumPy."""
