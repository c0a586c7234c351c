"""Attacks of other libraries next to ours: run both, join by image, and write what came out."""
