"""The official FGSM and PGD of HIRE-SNN on its own network: ours give the same images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustsnn.adversary.catalogue import attack_class, load_attack
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.estimators.bptt import Bptt
from robustsnn.models.hire_snn import from_official
from robustsnn.models.weights import read_state_dict

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the reference vectors are not next to this checkout"
)
THREAT = ThreatModel("Linf", "8/255")


@pytest.fixture
def golden() -> dict[str, torch.Tensor]:
    data = np.load(GOLDEN / "hire_c.npz")
    return {key: torch.as_tensor(data[key]) for key in data if key.startswith("attack.")}


@pytest.fixture
def victim(golden: dict[str, torch.Tensor]) -> Victim:
    steps = int(np.load(GOLDEN / "hire_c.npz")["timesteps"])
    tensors = read_state_dict(GOLDEN / "hire_c_official_state_dict.pt")
    count = len(golden["attack.labels"])
    return Victim(
        from_official(tensors, "vgg5", steps, "cifar10"), Bptt(), range(count), micro_batch=count
    )


def unequal(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).abs() > 1e-6).float().mean())


def test_fgsm(golden: dict[str, torch.Tensor], victim: Victim) -> None:
    images, labels = golden["attack.images"], golden["attack.labels"].long()
    found = load_attack("fgsm")(victim, images, labels, THREAT, Rng(0, victim.image_ids))
    assert unequal(found, golden["attack.fgsm_images"]) <= 1e-3
    assert unequal(found, images) > 0.5


def test_pgd_from_each_official_iterate(golden: dict[str, torch.Tensor], victim: Victim) -> None:
    images, labels = golden["attack.images"], golden["attack.labels"].long()
    kind: Any = attack_class("pgd")
    pgd = kind(steps=7, step_size="0.01")
    before = images
    for after in golden["attack.pgd7_iterates"]:
        gradient = victim.gradient(before, labels).gradient
        assert unequal(pgd.advance(before, gradient, images, THREAT), after) <= 1e-3
        assert unequal(before, after) > 0.1
        before = after
    torch.testing.assert_close(before, golden["attack.pgd7_images"])
