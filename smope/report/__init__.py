"""What people see: progress on the terminal (progress.py), tables (tables.py, grids.py), experiment trackers
(trackers.py), and the report: its sections (*_sections.py, content.py), figures (figures.py, ink.py), page (page.py) and
files (writing.py)."""
