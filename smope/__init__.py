"""SMoPE: sparse mixture of prompt experts for continual learning with frozen vision transformers."""

__version__ = "0.1.0"
