"""What a spiking network is: neuron, surrogate, encoding, architectures, conversion."""
