"""Peers through the adapters give what a direct call of the library gives, and nothing else."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchattacks
from torch import nn

from robustsnn.adversary.catalogue import load_attack
from robustsnn.adversary.peers import MissingLibrary, seeded
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.errors import InputError
from robustsnn.estimators.make import make_estimator
from robustsnn.snn.network import Network, NetworkConfig

SHAPE = (1, 8, 8)
IDS = [40, 3, 17, 8, 25]
THREATS = [ThreatModel("Linf", "32/255"), ThreatModel("L2", "2")]
both_norms = pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)


def snn(classes: int = 4, seed: int = 6) -> Network:
    torch.manual_seed(seed)
    network = Network(
        NetworkConfig(
            architecture="vgg5", kind="snn", classes=classes, image=SHAPE, widths=(4, 6, 6),
            classifier=(16, 12), mean=(0.5,), std=(0.25,), time_steps=3,
        )
    )  # fmt: skip
    for layer in network.classifier.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    for neurons in network.spiking_layers().values():
        neurons.threshold.data.fill_(0.3)
    return network.eval()


def batch(network: nn.Module, count: int = len(IDS)) -> tuple[torch.Tensor, torch.Tensor]:
    """Images close to the boundary, which few steps break, so that attacks end."""
    images = torch.rand((200, *SHAPE), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        logits = network(images)
    best = logits.topk(2, dim=1)[0]
    closest = (best[:, 0] - best[:, 1]).argsort(stable=True)[:count]
    return images[closest], logits.argmax(1)[closest]


def through(
    spec: str,
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    threat: ThreatModel,
    micro_batch: int = len(IDS),
    seed: int = 5,
) -> tuple[torch.Tensor, Victim]:
    ids = IDS[: len(images)]
    victim = Victim(network, make_estimator("bptt", network), ids, micro_batch)
    return load_attack(spec)(victim, images, labels, threat, Rng(seed, ids)), victim


# --- direct calls, as the libraries' own documents show them -------------------------------------


def foolbox_pgd(network: nn.Module, x: Any, y: Any, threat: ThreatModel, **options: Any) -> Any:
    foolbox = pytest.importorskip("foolbox")
    kind = {"Linf": foolbox.attacks.LinfPGD, "L2": foolbox.attacks.L2PGD}[threat.norm]
    model = foolbox.PyTorchModel(network, bounds=(0, 1))
    return kind(**options)(model, x, y, epsilons=threat.radius)[1]


def art_apgd(network: nn.Module, x: Any, y: Any, threat: ThreatModel, **options: Any) -> Any:
    pytest.importorskip("art")
    from art.attacks.evasion import AutoProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        network, nn.CrossEntropyLoss(), input_shape=SHAPE, nb_classes=4, clip_values=(0.0, 1.0),
        device_type="cpu",
    )  # fmt: skip
    attack = AutoProjectedGradientDescent(
        classifier, norm={"Linf": np.inf, "L2": 2}[threat.norm], eps=threat.radius,
        eps_step=2 * threat.radius, verbose=False, **options,
    )  # fmt: skip
    return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


def secml_pgd(network: nn.Module, x: Any, y: Any, threat: ThreatModel, **options: Any) -> Any:
    pytest.importorskip("secmlt")
    from secmlt.adv.evasion.pgd import PGD
    from secmlt.models.pytorch.base_pytorch_nn import BasePyTorchClassifier
    from torch.utils.data import DataLoader, TensorDataset

    steps = options["num_steps"]
    attack = PGD(
        {"Linf": "linf", "L2": "l2"}[threat.norm], epsilon=threat.radius,
        step_size=2.5 * threat.radius / steps, **options,
    )  # fmt: skip
    loader = DataLoader(TensorDataset(x, y), batch_size=len(x))
    return next(iter(attack(BasePyTorchClassifier(network), loader)))[0]


def torchattacks_autoattack(network: nn.Module, x: Any, y: Any, threat: ThreatModel) -> Any:
    # These are the parts of AutoAttack in torchattacks, with the steps of the paper.
    given = {"eps": threat.radius, "norm": threat.norm, "seed": torch.initial_seed()}
    return torchattacks.MultiAttack(
        [
            torchattacks.APGD(network, steps=12, **given),
            torchattacks.APGDT(network, steps=12, n_classes=4, **given),
            torchattacks.FAB(network, steps=12, n_classes=4, multi_targeted=True, **given),
            torchattacks.Square(network, n_queries=5000, **given),
        ]
    )(x, y)


Direct = Callable[..., Any]
CALLS: list[tuple[str, str, Direct, dict[str, Any]]] = [
    ("foolbox:PGD", "foolbox", foolbox_pgd, {}),
    ("foolbox:PGD:steps=7,random_start=no", "foolbox", foolbox_pgd,
     {"steps": 7, "random_start": False}),
    ("art:AutoProjectedGradientDescent:max_iter=12,nb_random_init=2", "art", art_apgd,
     {"max_iter": 12, "nb_random_init": 2}),
    ("art:AutoProjectedGradientDescent:max_iter=5,loss_type=difference_logits_ratio", "art",
     art_apgd, {"max_iter": 5, "loss_type": "difference_logits_ratio"}),
    ("secml:PGD:num_steps=7,random_start=yes", "secmlt", secml_pgd,
     {"num_steps": 7, "random_start": True, "backend": "native"}),
    ("secml:PGD:num_steps=7,backend=foolbox", "secmlt", secml_pgd,
     {"num_steps": 7, "backend": "foolbox"}),
    ("torchattacks:AutoAttack:steps=12,together=yes", "torchattacks", torchattacks_autoattack, {}),
]  # fmt: skip
every_call = pytest.mark.parametrize(
    ("spec", "library", "direct", "options"), CALLS, ids=[call[0] for call in CALLS]
)


@every_call
@both_norms
def test_equals_a_direct_call(spec, library, direct, options, threat):
    pytest.importorskip(library)
    network = snn()
    images, labels = batch(network)
    found, victim = through(spec, network, images, labels, threat)
    seed = Rng(5, IDS).derive(":".join(spec.split(":")[:2]))
    # The network is frozen, like every network that is evaluated.
    frozen = copy.deepcopy(network).requires_grad_(False)
    with seeded(seed), contextlib.redirect_stdout(io.StringIO()):
        expected = direct(frozen, images.clone(), labels.clone(), threat, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert not torch.equal(found, images)
    assert bool(threat.admits(found, images).all())
    assert int(victim.forward_passes.min()) > 0 and int(victim.backward_passes.min()) > 0


@every_call
def test_is_as_polite_as_any_attack(spec, library, direct, options):
    pytest.importorskip(library)
    network = snn().train()
    parameter = next(network.parameters())
    images, labels = batch(network.eval())
    network.train()
    kept = images.clone(), labels.clone(), copy.deepcopy(network.state_dict())
    grads = [p.requires_grad for p in network.parameters()]
    generators = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    found, _ = through(spec, network, images, labels, THREATS[0])
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (str(np.random.get_state()), random.getstate()) == generators[1:]
    assert all(module.training for module in network.modules())
    assert [p.requires_grad for p in network.parameters()] == grads and parameter.grad is None
    assert all(torch.equal(a, kept[2][name]) for name, a in network.state_dict().items())
    assert found.dtype == images.dtype and not found.requires_grad
    again, _ = through(spec, network, images, labels, THREATS[0])
    assert torch.equal(found, again)
    found.fill_(7)
    assert torch.equal(images, kept[0]) and torch.equal(labels, kept[1])
    point, victim = through(spec, network, images, labels, ThreatModel("Linf", "0"))
    assert torch.equal(point, images) and int(victim.forward_passes.max()) == 0
    none, _ = through(spec, network, images[:0], labels[:0], THREATS[0])
    assert len(none) == 0


@pytest.mark.parametrize(
    "spec",
    [
        "foolbox:PGD",
        "art:AutoProjectedGradientDescent:max_iter=9",
        "secml:PGD:num_steps=9,random_start=yes",
        "torchattacks:APGD:together=yes",
    ],
)
def test_another_seed_draws_otherwise_and_batches_do_not_mix(spec):
    try:
        load_attack(spec)
    except MissingLibrary:
        pytest.skip("not installed")
    network = snn()
    images, labels = batch(network)
    threat = THREATS[0]
    first, _ = through(spec, network, images, labels, threat, seed=1)
    second, _ = through(spec, network, images, labels, threat, seed=2)
    # secml-torch adds its noise to the image and takes that, clipped, for the perturbation: at
    # every pixel brighter than twice epsilon the start is epsilon, whatever was drawn.
    if not spec.startswith("secml"):
        assert not torch.equal(first, second)
    # Two micro-batches give the same as two separate calls.
    halves, _ = through(spec, network, images[:4], labels[:4], threat, micro_batch=2)
    for rows in (slice(0, 2), slice(2, 4)):
        ids = IDS[rows]
        victim = Victim(network, make_estimator("bptt", network), ids, 2)
        alone = load_attack(spec)(victim, images[rows], labels[rows], threat, Rng(5, ids))
        assert torch.equal(halves[rows], alone)


class Linear(nn.Module):
    """A network with linear logits of four classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.linear = nn.Linear(64, 4)
        self.classes = 4

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(images.flatten(1) - 0.5)
        return logits


def test_passes_are_counted_for_the_images_that_still_stand(monkeypatch):
    network = Linear()
    # The images differ so much in brightness that it tells which one a query belongs to.
    levels = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    noise = 0.02 * torch.rand((5, *SHAPE), generator=torch.Generator().manual_seed(3))
    images = levels.reshape(-1, 1, 1, 1) + noise - 0.01
    labels = network(images).argmax(1)
    asked = [0] * len(levels)
    theirs = torchattacks.Square.get_logits

    def logged(self: Any, inputs: torch.Tensor, *more: Any) -> Any:
        for level in inputs.flatten(1).mean(1):
            asked[int((level - levels).abs().argmin())] += 1
        return theirs(self, inputs, *more)

    monkeypatch.setattr(torchattacks.Square, "get_logits", logged)
    victim = Victim(network, make_estimator("bptt", network), range(5), micro_batch=8)
    attack = load_attack("torchattacks:Square:n_queries=60,together=yes")
    attack(victim, images, labels, ThreatModel("Linf", "0.03"), Rng(0, range(5)))
    assert len(set(asked)) > 1, "all images stood equally long: this shows nothing"
    assert victim.forward_passes.tolist() == asked


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "library", "says"),
    [
        ("foolbox", "foolbox", "needs the name of an attack, such as foolbox:PGD"),
        ("foolbox:LinfPGF", "foolbox", "Did you mean 'LinfPGD'"),
        ("foolbox:L1PGD", "foolbox", "no attack of foolbox in Linf or L2 named 'L1PGD'"),
        ("foolbox:PGD:step=3", "foolbox", "Did you mean 'steps'"),
        ("foolbox:PGD:steps=many", "foolbox", "steps must be a whole number below 2^31"),
        ("foolbox:PGD:abs_stepsize=x", "foolbox", "abs_stepsize must be a number"),
        ("art", "art", "such as art:AutoProjectedGradientDescent"),
        ("art:AutoProjectedGradientDecent", "art", "Did you mean 'AutoProjectedGradientDescent'"),
        ("art:DeepFool", "art", "no attack of ART with a norm and an epsilon named 'DeepFool'"),
        ("art:AutoProjectedGradientDescent:eps=1", "art", "eps comes from the evaluation"),
        ("art:AutoProjectedGradientDescent:iter=1", "art", "Did you mean 'max_iter'"),
        ("art:AutoProjectedGradientDescent:max_iter=x", "art", "must be a whole number"),
        ("secml", "secmlt", "secml:PGD"),
        ("secml:FMN", "secmlt", "secml:PGD, not 'FMN'"),
        ("secml:PGD:steps=3", "secmlt", "or 'num_steps'"),
        ("secml:PGD:num_steps=0", "secmlt", "at least 1"),
        ("secml:PGD:step_size=0", "secmlt", "above 0"),
        ("secml:PGD:backend=nativ", "secmlt", "Did you mean 'native'"),
        ("torchattacks:AutoAttack:steps=0", "torchattacks", "steps must be at least 1"),
        ("torchattacks:PGD:together=maybe", "torchattacks", "true or false"),
    ],
)
def test_mistakes_are_one_line_with_the_remedy(spec, library, says):
    pytest.importorskip(library)
    with pytest.raises(InputError) as caught:
        load_attack(spec)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "blocked"),
    [
        ("foolbox:PGD", ["foolbox"]),
        ("art:AutoProjectedGradientDescent", ["art", "art.attacks", "art.attacks.evasion"]),
        ("secml:PGD", ["secmlt", "secmlt.adv", "secmlt.adv.evasion", "secmlt.adv.evasion.pgd"]),
    ],
)
def test_a_library_that_is_absent(spec, blocked, monkeypatch):
    # With None in sys.modules, Python marks what cannot be imported.
    for module in blocked:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingLibrary, match=r"pip install -e '\.\[peers\]'") as caught:
        load_attack(spec)
    assert "\n" not in str(caught.value)


def test_adapters_can_be_looked_at_without_their_libraries(monkeypatch):
    for module in ("foolbox", "art", "secmlt"):
        monkeypatch.setitem(sys.modules, module, None)
        adapter = f"robustsnn.attacks.{module.removesuffix('t')}_adapter".replace(".ar_", ".art_")
        monkeypatch.delitem(sys.modules, adapter, raising=False)
        assert importlib.import_module(adapter).ATTACK.kind == "fixed-epsilon"


def test_norms():
    pytest.importorskip("foolbox")
    assert load_attack("foolbox:PGD").norms == ("Linf", "L2")
    assert load_attack("foolbox:LinfPGD").norms == ("Linf",)
    assert load_attack("foolbox:L2PGD").norms == ("L2",)
    assert (load_attack("foolbox:PGD:steps=9").steps, load_attack("foolbox:PGD").steps) == (9, 40)
    network = snn()
    with pytest.raises(InputError, match="works in Linf only, not in L2"):
        through("foolbox:LinfPGD", network, *batch(network), THREATS[1])
    with pytest.raises(InputError, match=r"pixels in \[0, 1\] only"):
        through("foolbox:PGD", network, *batch(network), ThreatModel("Linf", "0.1", -1.0, 1.0))


@pytest.mark.parametrize("spec", ["AutoAttack:together=yes", "APGDT", "APGD:loss=dlr"])
def test_too_few_classes(spec):
    classes = 2 if "dlr" in spec else 3
    network = snn(classes)
    with pytest.raises(InputError, match=f"needs at least {classes + 1} classes .* has {classes}"):
        through(f"torchattacks:{spec}", network, *batch(network), THREATS[0])


class Broken(nn.Module):
    """A network that fails on any batch size other than that of its first call."""

    classes = 4

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of\nluck")


@pytest.mark.parametrize("call", CALLS, ids=[call[0] for call in CALLS])
def test_a_crash_is_one_line(call):
    pytest.importorskip(call[1])
    network = Broken()
    network.register_parameter("w", nn.Parameter(torch.zeros(1)))
    images, labels = torch.rand(2, *SHAPE), torch.zeros(2, dtype=torch.int64)
    # It is the network that failed, and not the library that called it.
    with pytest.raises(InputError, match=r"the network Broken failed .*, line \d+") as caught:
        through(call[0], network, images, labels, THREATS[0])
    assert "RuntimeError: out of" in str(caught.value) and "\n" not in str(caught.value)
