"""The words that attacks, suites, records and the diagnosis share."""

from __future__ import annotations

#: The norms that an attacker may be bound by.
NORMS = ("Linf", "L2")
#: The kinds of attack.
KINDS = ("none", "noise", "fixed-epsilon", "transfer", "minimum-norm", "energy")
#: The kind that aims at what a network spends and not at its class. What such an attack leaves says
#: nothing about how well others find wrong classes, so that the diagnosis does not compare it.
ENERGY = "energy"
#: The kinds that follow no gradient; an attack of another kind can say `gradient_free = True`.
GRADIENT_FREE = ("none", "noise")
#: What an entry of a suite writes for the estimator that did best in the probes before it.
BEST = "best"
