"""Image sets in one fixed order, however they are stored."""
