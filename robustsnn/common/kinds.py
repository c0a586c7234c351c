"""The words that attacks, suites, records and the diagnosis share."""

from __future__ import annotations

KINDS = ("none", "noise", "fixed-epsilon", "transfer", "minimum-norm")


#: Kinds of attack that follow no gradient; one of another kind says `gradient_free = True`.
GRADIENT_FREE = ("none", "noise")


#: The estimator that did best in the probes before.
BEST = "best"
