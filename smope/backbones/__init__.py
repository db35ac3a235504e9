"""Backbones: where pretrained weights come from (weights.py) and the frozen ViT that carries them (vit.py)."""
