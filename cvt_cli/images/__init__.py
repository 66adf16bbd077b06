"""From what the user named to pixels: files, archives, addresses; NumPy and Pillow."""
