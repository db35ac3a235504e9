"""Experts: parameters and memory (bank.py; adapter.py and lora.py of low rank), parts in a block
(attention.py, beside.py), way into a ViT (inject.py).
"""
