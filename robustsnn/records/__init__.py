"""Run folders: rows, manifests, and how both are read back."""
