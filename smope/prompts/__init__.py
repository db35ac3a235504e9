"""Prompts as prefixes of attention: how they join (prefix.py), and the parts that the methods
share.
"""
