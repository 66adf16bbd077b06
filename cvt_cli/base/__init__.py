"""Files, text, streams, processes: nothing of CvT in it, and nothing but the standard library."""
