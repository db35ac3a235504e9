"""The audit of a run: restored_run.py rebuilds the run, checks.py checks it."""
