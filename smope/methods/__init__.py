"""Continual-learning methods, one in each file. base.py has the contract that they meet."""
