"""Networks read at a layer inside, against what the layer is known to say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsnn.models.calling import AT_ONCE
from robustsnn.models.reading import LEAD, Reading, read_at, reading_of, readings
from robustsnn.snn.copying import copy_of

STEPS, CLASSES, PIXELS = 3, 4, 16


def pictures(count: int = 40) -> tuple[Tensor, list[int]]:
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1)), [*range(count)]


class Base(nn.Module):
    """A vote over the sum of what a linear layer says of an image at each step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read = nn.Linear(PIXELS, CLASSES)
        self.eval().requires_grad_(False)

    def sequence(self, images: Tensor) -> Tensor:
        """The image at each step, a little darker every time, `[time, batch, pixel]`."""
        x = images.flatten(1) - 0.5
        return torch.stack([x / (t + 1) for t in range(STEPS)])

    def truth(self, images: Tensor) -> Tensor:
        """The scores that the vote is about."""
        w, b = self.read.weight, self.read.bias
        return (self.sequence(images) @ w.T + b).sum(0)

    def scores(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return F.one_hot(self.scores(images).argmax(1), CLASSES).to(images)


class Stepwise(Base):
    def scores(self, images: Tensor) -> Tensor:
        return torch.stack([self.read(x) for x in self.sequence(images)]).sum(0)


class Whole(Base):
    def scores(self, images: Tensor) -> Tensor:
        found: Tensor = self.read(self.sequence(images)).sum(0)
        return found


class TimeMajor(Base):
    def scores(self, images: Tensor) -> Tensor:
        x = self.sequence(images)
        found: Tensor = self.read(x.flatten(0, 1)).unflatten(0, x.shape[:2]).sum(0)
        return found


class BatchMajor(Base):
    def scores(self, images: Tensor) -> Tensor:
        x = self.sequence(images).transpose(0, 1)
        found: Tensor = self.read(x.flatten(0, 1)).unflatten(0, x.shape[:2]).sum(1)
        return found


KINDS = {
    Stepwise: "batch",
    Whole: "time, batch",
    TimeMajor: "time * batch",
    BatchMajor: "batch * time",
}


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_summed_over_time_however_they_lie(kind: type[Base]):
    network = kind()
    images, ids = pictures()
    (reading,) = readings(network, images, ids, 8, 0)
    assert (reading.layer, reading.fold, reading.weight) == ("read", KINDS[kind], None)
    read = read_at(copy_of(network), reading)
    said, truth = read(images), network.truth(images)
    assert torch.allclose(said, truth, atol=1e-5)
    assert torch.equal(said.argmax(1), network(images).argmax(1))
    # The network itself is as it was.
    assert set(network(images).unique().tolist()) == {0.0, 1.0}


def test_the_gradient_is_that_of_the_layer():
    network = TimeMajor()
    images, _ = pictures(8)
    read = read_at(copy_of(network), Reading("read", "time * batch"))
    leaf = images.clone().requires_grad_()
    (found,) = torch.autograd.grad(read(leaf)[:, 0].sum(), leaf)
    want = network.read.weight[0] * sum(1 / (t + 1) for t in range(STEPS))
    assert torch.allclose(found.flatten(1), want.expand(8, -1))


def test_a_copy_is_read_at_its_own_layer():
    read = read_at(Whole(), Reading("read", "time, batch"))
    copied = copy_of(read)
    images, _ = pictures(3)
    before = read(images)
    copied.read.bias[0] += 100
    assert torch.equal(read(images), before) and bool((copied(images)[:, 0] > 100).all())


class Overruled(Whole):
    """It ties where an image is bright in one corner, and says class 1 where in another."""

    def forward(self, images: Tensor) -> Tensor:
        found = super().forward(images)
        found[images[:, 0, 0, 0] > 0.9] = 0.5
        found[images[:, 0, 3, 3] > 0.9] = torch.tensor([0.0, 1.0, 0.0, 0.0])
        return found


def test_the_network_has_the_last_word():
    network = Overruled()
    images, _ = pictures(200)
    read = read_at(copy_of(network), Reading("read", "time, batch"))
    said, own, truth = read(images), network(images), network.truth(images)
    tied = (own == 0.5).all(1)
    assert bool(tied.any()) and torch.equal(said[tied], own[tied])
    assert torch.equal(said[~tied].argmax(1), own[~tied].argmax(1))
    moved = ~tied & (truth.argmax(1) != own.argmax(1))
    # Put in front by a hair, the other scores as they were.
    lead = said[moved, 1] - said[moved].scatter(
        1, torch.ones(int(moved.sum()), 1).long(), -99
    ).amax(1)
    assert bool(moved.any()) and bool((lead > 0).all())
    assert bool((lead <= 2 * LEAD * truth[moved].abs().amax(1) + 1e-6).all())
    assert torch.allclose(said[moved][:, [0, 2, 3]], truth[moved][:, [0, 2, 3]], atol=1e-5)


class Coded(nn.Module):
    """Classes by the nearest of some codes of signs, as error-correcting output codes are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.codes = torch.randint(0, 2, (CLASSES, 12)).float() * 2 - 1
        self.bits = nn.Linear(PIXELS, 12)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        signs = self.bits(images.flatten(1) - 0.5).sign()
        return F.one_hot((signs @ self.codes.T).argmax(1), CLASSES).to(images)


def test_a_read_out_is_fitted_to_a_layer_without_scores():
    network = Coded()
    images, ids = pictures(200)
    reading = reading_of(network, "bits", images, ids, 32, 0)
    assert reading is not None and reading.weight is not None
    assert reading.weight.shape == (12, CLASSES)
    new, _ = pictures(400)
    said = reading.scores([network.bits(new[200:].flatten(1) - 0.5)], 200).argmax(1)
    share = float((said == network(new[200:]).argmax(1)).double().mean())
    # Chance is a quarter, and twelve signs are more than a linear read-out of twelve values.
    assert share > 0.5
    assert reading_of(network, "elsewhere", images, ids, 32, 0) is None


def test_a_network_of_one_number_of_images():
    network = TimeMajor()
    setattr(network, AT_ONCE, 6)
    images, ids = pictures(16)
    (reading,) = readings(network, images, ids, 8, 0)
    assert reading.fold == "time * batch"
