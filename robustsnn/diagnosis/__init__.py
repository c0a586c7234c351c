"""Whether a number can be believed: findings, flags and the level."""
