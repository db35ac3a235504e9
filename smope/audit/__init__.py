"""The audit of a run: subject.py rebuilds it, checks.py says of each promise whether the run keeps
it.
"""
