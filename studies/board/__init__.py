"""The board of the models that ship."""
