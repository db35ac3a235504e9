"""Backbones: the frozen ViT (vit.py), its forward pass, and where its weights come from.

files.py finds the weight file, weights.py reads it, layouts.py translates its keys to timm's.
"""
