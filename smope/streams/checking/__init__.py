"""Looking through a data set before training."""
