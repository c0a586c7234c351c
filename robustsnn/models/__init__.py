"""Networks by name, how many images they take at a time, and what they say of them."""
