"""Image sets in one fixed order, in whatever way they are stored."""
