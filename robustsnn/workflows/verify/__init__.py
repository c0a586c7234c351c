"""Verify a run: everything that its folder claims, recomputed as far as that can be done."""
