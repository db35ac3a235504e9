"""Repeating published results.

published.py          the published numbers and the rule of comparison
run.py                training a row for each seed
report.py             the card: what was run, and how it compares
reference_numbers.py  recomputing the numbers of a reference file (`smope verify`)
"""
