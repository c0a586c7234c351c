"""A vote over a network of another library is read in front of the vote, by every estimator."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsnn.adversary.victim import Victim
from robustsnn.estimators.make import make_estimator
from robustsnn.foreign.wrap import adapted
from robustsnn.models.reading import read_at, readings
from robustsnn.snn.copying import copy_of
from tests.foreign.networks import (
    EACH_LIBRARY,
    images,
    lively,
)


class Vote(nn.Module):
    """The winner of another network alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x)
        return F.one_hot(z.argmax(1), z.shape[1]).to(z)


@pytest.mark.slow
@pytest.mark.parametrize("make", EACH_LIBRARY)
def test_a_vote_is_read_as_the_network_it_is_about(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = lively(make(), 2.0).eval()
    x, ids = images(8), range(8)
    plain, vote = adapted(copy_of(network)), adapted(Vote(copy_of(network)))
    assert set(vote(x).unique().tolist()) <= {0.0, 1.0}
    reading = next(readings(vote, x, ids, 8, 0))
    assert reading.layer == "inner" and reading.weight is None
    read = read_at(copy_of(vote), reading)
    labels = plain(x).argmax(1)
    for text in ("bptt", "assg", "hart"):
        found = [
            Victim(one, make_estimator(text, one), ids, micro_batch=8).gradient(x, labels, "margin")
            for one in (read, plain)
        ]
        assert torch.equal(found[0].gradient, found[1].gradient), text
        # Counts of spikes tie, and the vote decides by a hair.
        assert torch.allclose(found[0].logits, found[1].logits, atol=1e-3), text
        assert text != "assg" or bool((found[0].gradient != 0).any())
