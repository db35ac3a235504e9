"""From an image file to a tensor: decoding, caching, resampling."""
