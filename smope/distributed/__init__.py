"""Several processes that train one model: torchrun's environment and the exchanges between them."""
