"""An evaluation: plan, attack, judge, store, resume."""
