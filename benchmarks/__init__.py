"""Speed and memory of spiking gradients against other libraries: `python -m benchmarks run`."""
