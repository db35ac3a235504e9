"""What people see: progress (progress.py, terminal.py), tables (tables.py, grids.py), experiment trackers
(trackers.py), and the report: its sections (*_sections.py, content.py), figures (figures.py, ink.py), page (page.py), files (writing.py)."""
