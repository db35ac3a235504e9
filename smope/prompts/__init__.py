"""Prompts as prefixes of attention: how they join it (prefix.py), and parts that methods share."""
