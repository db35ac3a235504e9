"""Several processes that train one model: torchrun's environment, and what they exchange."""
