"""Data sets as published archives: where they are, and fetching them."""
