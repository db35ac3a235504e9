"""What people see: progress on the terminal (progress.py), tables (tables.py), experiment trackers (trackers.py)."""
