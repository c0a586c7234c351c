"""Gradient estimators: how an attacker differentiates through spikes, one file each."""
