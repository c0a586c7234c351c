"""The attacks: one file each; `suites/*.yaml` name the evaluations."""
