"""Training of an ANN: plain cross-entropy on clean images."""

from __future__ import annotations

from robustsnn.training.step import plain_update

update_batch = plain_update
