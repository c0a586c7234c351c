"""Attacks that combine surrogate gradients with search by score, measured next to ours.

Each file is an attack as a user would write one. None of them is part of a suite.
"""
