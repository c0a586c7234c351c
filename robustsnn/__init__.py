"""RobustSNN: how robust a spiking neural network is, and whether to believe the number."""
