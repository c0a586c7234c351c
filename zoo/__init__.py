"""The model zoo: one folder a checkpoint, `<data>/<architecture>-<kind>/`."""
