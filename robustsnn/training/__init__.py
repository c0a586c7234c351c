"""How a recipe trains a network.

A method is a function that takes a network, an optimizer and a batch, updates the network and
returns a `BatchOutcome`: `step.plain_update` for the methods `ann` and `hybrid`,
`hire.hire_update` and `adversarial.adversarial_update`. `robustsnn.training.run` does the rest.
"""
