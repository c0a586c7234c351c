"""How recipes train a network: one file a method."""
