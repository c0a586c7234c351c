"""Do combinations of gradients and search beat the best of both."""
