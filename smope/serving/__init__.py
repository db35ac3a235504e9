"""Classifying images with a trained model."""
