"""Repeating published results and comparing with them."""
