"""Using what a run has learned: the file that holds it, and classifying images with it."""
