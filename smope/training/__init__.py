"""The one training loop and its parts: settings, schedules, class statistics and alignment,
checkpoints.
"""
