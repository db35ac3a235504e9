"""Prompt experts: parameters (bank.py), part in attention (attention.py), way into a ViT
(inject.py).
"""
