"""Methods for training loops of your own: plain nn.Modules that need no configuration."""
