"""How data sets lay out their images and lists on disk."""
