"""Routers: which experts an image uses. One router a file; the contract is in base.py."""
