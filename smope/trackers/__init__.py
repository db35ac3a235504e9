"""Experiment trackers beside the run directory: CSV, TensorBoard, Weights & Biases."""
