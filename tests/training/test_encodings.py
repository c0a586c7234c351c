"""Every way of training with every encoding: what a batch does, and what a recipe refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.training.adversarial import adversarial_update, craft
from robustsnn.training.gaussian import gaussian_update
from robustsnn.training.hire import hire_update
from robustsnn.training.recipe import Adversarial, Gaussian, Hire, Recipe
from robustsnn.training.run import _optimizer
from robustsnn.training.step import plain_update

ENCODINGS: dict[str, dict[str, Any]] = {
    "direct": {},
    "poisson": {"encoding": "poisson", "mean": (0.5,), "std": (0.5,)},
    "quantised": {"encoding": "quantised", "levels": 2},
    "single-spike": {"encoding": "single-spike", "time_weight": 0.1},
}
FIELDS = {
    "architecture": "vgg5", "kind": "snn", "classes": 5, "image": (1, 8, 8), "widths": (4, 6, 6),
    "classifier": (12,), "mean": (0.4,), "std": (0.3,), "time_steps": 12, "dropout": 0.1,
}  # fmt: skip
UPDATES: dict[str, tuple[Any, Any]] = {
    "hybrid": (plain_update, None),
    "hire, 2 periods": (hire_update, Hire(periods=2)),
    "hire, 3 periods": (hire_update, Hire(periods=3, order="updated")),
    "hire, 4 periods": (hire_update, Hire(periods=4)),
    "hire, no noise": (hire_update, Hire(periods=2, noise="none")),
    "hire, Gaussian Linf": (hire_update, Hire(periods=2, noise="gaussian-linf")),
    "hire, Gaussian L2": (hire_update, Hire(periods=2, noise="gaussian-l2")),
    "gaussian": (gaussian_update, Gaussian(deviation="8/255")),
    "adversarial": (adversarial_update, Adversarial(epsilon="8/255")),
    "adversarial, mixed": (
        adversarial_update,
        Adversarial(epsilon="2/255", steps=2, clean_weight=0.5),
    ),
}


def network(encoding: str, **changes: object) -> Network:
    torch.manual_seed(0)
    found = Network(NetworkConfig.model_validate({**FIELDS, **ENCODINGS[encoding], **changes}))
    for module in found.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.4)
    for layer in found.spiking_layers().values():
        layer.threshold.data.fill_(0.4)
        layer.leak.data.fill_(0.9)
    return found.train()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.rand(10, 1, 8, 8, generator=generator), torch.arange(10) % 5


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("method", UPDATES)
def test_a_batch_is_learned(encoding: str, method: str) -> None:
    """Some updates on one batch lower the loss on it, so that gradients lead downhill."""
    net = network(encoding, dropout=0.0)
    update, settings = UPDATES[method]
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    losses = []
    for _ in range(12):
        extra = {} if settings is None else {"settings": settings}
        losses.append(update(net, optimizer, *batch(), **extra).loss)
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def recipe(encoding: str = "direct", **changes: Any) -> Recipe:
    kind = changes.pop("kind", "snn")
    steps = changes.pop("time_steps", 4)
    described = {**FIELDS, **ENCODINGS[encoding], "kind": kind, "time_steps": steps}
    fields = {
        "name": "made", "data": "fashion-mnist", "method": "hybrid", "network": described,
        "init": "ann", "conversion": {}, "epochs": 1,
    }  # fmt: skip
    return Recipe.model_validate({**fields, **changes})


def test_thresholds_and_leaks_can_be_held() -> None:
    for dynamics in ("held", "learned"):
        net = network("direct")
        made = recipe(dynamics=dynamics)
        before = {n: v.clone() for n, v in net.state_dict().items()}
        optimizer = _optimizer(made, net)
        plain_update(net, optimizer, *batch())
        moved = {n for n, v in net.state_dict().items() if not torch.equal(v, before[n])}
        assert any(n.endswith("weight") for n in moved)
        assert any("threshold" in n or "leak" in n for n in moved) == (dynamics == "learned")


def test_newer_fields_leave_the_digest_of_older_recipes_alone() -> None:
    plain = recipe()
    assert recipe(data_fingerprint="0123456789abcdef").digest() == plain.digest()
    assert recipe(dynamics="held").digest() != plain.digest()
    attacked = {"method": "adversarial", "adversarial": {"epsilon": "8/255"}}
    several = {"method": "adversarial", "adversarial": {"epsilon": "8/255", "draws": 4}}
    assert recipe("poisson", **attacked).digest() != recipe("poisson", **several).digest()


def test_a_step_of_an_attack_in_training_can_average_over_draws() -> None:
    """Over many draws, two attempts agree where two single draws do not."""
    net = network("poisson", time_steps=2, dropout=0.0)
    images, labels = batch()

    def agreement(draws: int) -> float:
        settings = Adversarial(epsilon="8/255", random_start=False, draws=draws)
        torch.manual_seed(draws)
        one, two = (craft(net, images, labels, settings) for _ in range(2))
        return float((one == two).float().mean())

    assert agreement(64) > agreement(1) + 0.1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dynamics": "held", "kind": "ann", "time_steps": 1, "method": "ann", "init": None,
          "conversion": None}, "an ANN has no thresholds"),
        ({"method": "adversarial", "adversarial": {"epsilon": "8/255", "draws": 2}},
         "goes with an encoding that draws"),
        ({"method": "hire", "hire": {"periods": 3}}, "does not divide"),
        ({"encoding": "single-spike", "method": "hire", "hire": {"periods": 4}},
         "at least 2 time steps"),
        ({"encoding": "single-spike", "method": "hire", "hire": {"carry": "detach"}},
         "does not go with the single-spike encoding"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        recipe(**changes)
