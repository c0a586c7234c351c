"""Attacks that combine surrogate gradients with search by score; tried, and measured beside ours.

Each file is an attack as a user would write one. None is part of a suite.
"""
