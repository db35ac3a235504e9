"""Routers decide which experts an image uses. Each has a file; base.py holds what they share."""
