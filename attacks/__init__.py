"""The attacks, one file each; the files `suites/*.yaml` describe the evaluations."""
