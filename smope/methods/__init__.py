"""Continual-learning methods: one a file; the contract that they meet is in base.py."""
