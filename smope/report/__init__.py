"""What people see: progress (progress.py, terminal.py), tables (tables.py, grids.py), trackers
(trackers.py), and the report: sections (*_sections.py, content.py), figures (figures.py, ink.py),
page (page.py), files (writing.py).
"""
