"""Losses: pure functions of tensors, one idea in each file."""
