"""The training loop (trainer.py) and its parts: loading, phases, evaluation, alignment,
checkpoints.
"""
