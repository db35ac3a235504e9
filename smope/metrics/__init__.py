"""Metrics: pure functions of plain numbers (accuracy_matrix.py, scores.py) and the cost of a method
(cost.py).
"""
