"""The run folders of `tests.made_runs`."""

from tests.made_runs import hard_report, hard_runs, make_run, three_models, three_report

__all__ = ["hard_report", "hard_runs", "make_run", "three_models", "three_report"]
