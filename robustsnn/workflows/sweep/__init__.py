"""Many evaluations as one: models x data x suites x seeds, with workers."""
