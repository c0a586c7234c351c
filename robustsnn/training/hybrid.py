"""Traditional training of an SNN after conversion: weights, thresholds and leaks together.

The image is the same at all time steps and there is one update a batch.
Source: Rathi et al., ICLR 2020; Rathi and Roy, DIET-SNN, 2020.
"""

from __future__ import annotations

from robustsnn.training.step import plain_update

update_batch = plain_update
