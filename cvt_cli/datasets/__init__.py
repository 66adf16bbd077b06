"""Images with labels: class folders, archives, known data sets, and what is wrong with them."""
