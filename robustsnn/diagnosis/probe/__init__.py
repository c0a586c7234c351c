"""A small measurement of the network, made next to the attacks."""
