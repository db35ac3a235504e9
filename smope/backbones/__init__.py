"""Backbones: which file holds the weights (files.py), its layout (layouts.py), reading it
(weights.py), and the frozen ViT that carries them (vit.py).
"""
