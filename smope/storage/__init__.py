"""Files that runs leave behind, and how they are written and read."""
