"""Checks and flags: each fires on a network or a record made to deserve it, and only then."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from robustsnn.diagnosis.flags import by_row, flags_of
from robustsnn.diagnosis.level import level_of
from robustsnn.diagnosis.preflight import is_neuron, preflight
from robustsnn.errors import InputError
from robustsnn.evaluation.memory import reached
from robustsnn.evaluation.run import evaluate
from robustsnn.evaluation.suites import suite_of
from robustsnn.foreign.wrap import adapted
from robustsnn.foreign.wrapped import Wrapped
from robustsnn.models.checkpoint import load_model, read_checkpoint
from robustsnn.records.summary import summarise
from robustsnn.snn.network import Network
from tests.records.test_records import record


class Base(nn.Module):
    """A linear classifier of 4 x 4 images, three classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(16, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(images.flatten(1))
        return logits


class Softmax(Base):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).softmax(1)


class OfTheBatch(Base):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images - images.mean(0, keepdim=True))


class Stateful(Base):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(images) + torch.tensor([0.0, 0.0, 1e-3]) * self.calls


class Shattered(Base):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward((images * 32).round() / 32)


class Infinite(Base):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward((images - images).abs().sqrt() + images)


class Tied(Base):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).round() * 0


class TwoFaced(Base):
    """Other classes while somebody asks for a gradient."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = super().forward(images)
        return logits.roll(1, 1) if images.requires_grad else logits


class OwnStatistics(Base):
    """Normalised by the batch at hand, whatever the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, track_running_stats=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(images))


class Remembering(Base):
    """Keeps a buffer of what it saw, and says nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen = images.mean()
        return super().forward(images)


class Haunted(Base):
    """What other images left comes back once."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        before = getattr(self, "before", None)
        self.before = images.detach().clone()
        logits = super().forward(images)
        if before is None or before.shape != images.shape or torch.equal(before, images):
            return logits
        haunted: torch.Tensor = logits + 1e-3 * before.flatten(1)[:, :3]
        return haunted


class Neuron(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x if self.training else x


def _with_threshold(self: Any) -> None:
    nn.Module.__init__(self)
    self.v_threshold = 1.0


class Moody(Base):
    """Its neurons do something else in training mode; its dropout may."""

    def __init__(self) -> None:
        super().__init__()
        self.neuron, self.dropout = Neuron(), nn.Dropout(0.9)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.dropout(self.neuron(super().forward(images)))
        return logits


class Normalise(nn.Module):
    """A normalisation written from scratch: in training mode by the batch, as it should be."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(0)) / x.std(0) if self.training else x


class OwnBatchNorm(nn.BatchNorm2d):
    """A normalisation of a library of neurons, which derives it from that of torch."""


class OwnConv(nn.Conv2d):
    """A layer of such a library, which is not a neuron either."""

    step_mode = "s"


class FromScratch(Base):
    """Every layer that differs in training mode is meant to, and none of them is a neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.scratch, self.norm = Normalise(), OwnBatchNorm(1)
        self.conv, self.pool = OwnConv(1, 1, 1), nn.MaxPool2d(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(self.pool(self.conv(self.norm(self.scratch(images)))))


class Choosy(Base):
    """A neuron that cannot be run in training mode, where nobody takes a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.neuron = SpikingRefusal()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.neuron(super().forward(images))
        return logits


class SpikingRefusal(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise RuntimeError("this layer does not train")
        return x


class Dropping(Base):
    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.norm = nn.Dropout(0.9), nn.BatchNorm2d(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(self.dropout(self.norm(images)))


class Purifying(Base):
    """Takes a gradient step on its input before it predicts."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = images.detach().requires_grad_()
            (step,) = torch.autograd.grad(super().forward(x).sum(), x)
        return super().forward(images + 0.01 * step)


class Drawing(Base):
    """Changes its mind at every twelfth call: two passes of three calls do not show it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        logits = super().forward(images)
        return logits.roll(1, 1) if self.calls % 12 == 0 else logits


class Broken(Base):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * float("nan")


def checks(network: nn.Module) -> set[str]:
    torch.manual_seed(1)
    images, labels = torch.rand(20, 1, 4, 4), torch.randint(3, (20,))
    found = preflight(network.eval(), images, labels, range(20), 8)
    assert len({check.slug for check in found}) == len(found) == 13
    for check in found:
        assert check.sentence.endswith(".") and np.isfinite(check.evidence)
        assert check.id == "AA" or check.id[1:].isdigit()
    return {check.slug for check in found if check.flagged}


@pytest.mark.parametrize(
    ("network", "failed"),
    [
        (Base, set()),
        (Softmax, {"logits"}),
        (OfTheBatch, {"alone-as-in-batch"}),
        (Shattered, {"zero-gradient"}),
        (Infinite, {"nonfinite-gradient"}),
        (Tied, {"ties", "zero-gradient"}),
        (TwoFaced, {"attack-mode"}),
        (OwnStatistics, {"alone-as-in-batch", "batch-statistics"}),
        (Remembering, set()),
        (FromScratch, set()),
        (Choosy, set()),
        (Moody, {"neuron-modes"}),
        (Dropping, set()),
        (Purifying, {"dynamic"}),
    ],
)
def test_each_check_fires_on_what_it_is_for(network, failed):
    assert checks(network()) == failed


def test_a_network_with_a_memory_is_found():
    assert "repeatable" in checks(Stateful())


def test_what_other_images_leave_is_found():
    assert "state-leak" in checks(Haunted())
    torch.manual_seed(1)
    images, labels = torch.rand(8, 1, 4, 4), torch.zeros(8, dtype=torch.int64)
    # In batches that hold all images, passes of the same ones agree.
    found = {
        c.slug: not c.flagged for c in preflight(Haunted().eval(), images, labels, range(8), 8)
    }
    assert found["repeatable"] and not found["state-leak"]


def test_five_passes_find_what_two_do_not():
    found = checks(Drawing())
    assert "randomised" in found and "repeatable" not in found


def test_batch_normalisation_in_training_mode_is_found():
    network = Dropping().eval()
    network.norm.train()
    images, labels = torch.rand(8, 1, 4, 4), torch.zeros(8, dtype=torch.int64)
    found = {c.slug: c for c in preflight(network, images, labels, range(8), 4)}
    assert found["batch-statistics"].flagged and "norm" in found["batch-statistics"].sentence


def test_logits_are_described():
    images, labels = torch.rand(8, 1, 4, 4), torch.zeros(8, dtype=torch.int64)
    network = Tied().eval()
    found = {c.slug: c for c in preflight(network, images, labels, range(8), 4)}["logit-values"]
    assert found.evidence == 1 and found.details["largest"] == 0
    network = Base().eval()
    network.linear.weight.data *= 1e4
    logits = network(images)
    found = {c.slug: c for c in preflight(network, images, logits.argmax(1), range(8), 4)}
    details = found["logit-values"].details
    assert found["logit-values"].evidence == logits.unique().numel()
    assert details["largest"] == float(logits.detach().abs().max())
    assert details["cross-entropy exactly 0"] > 0.5


def test_watching_calls_leaves_a_profiler_alone():
    import sys

    events = []
    before = sys.getprofile()
    sys.setprofile(lambda *event: events.append(event[1]))
    try:
        checks(Base())
        assert sys.getprofile() is not None
    finally:
        sys.setprofile(before)


class Noisy(Base):
    """A part that says something else in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = Turn()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.turn(super().forward(images))
        return logits


class Turn(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.roll(1, 1) if self.training else x


class DeclaredNoisy(Noisy):
    stochastic = True

    def forward(self, images: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(images)


@pytest.mark.parametrize("network", [Noisy, DeclaredNoisy])
def test_training_mode_is_found_where_it_matters(network):
    images, labels = torch.rand(4, 1, 4, 4), torch.zeros(4, dtype=torch.int64)
    for part, sound in (("linear", True), ("turn", False)):
        made = network().eval()
        getattr(made, part).train()
        found = {c.slug: c for c in preflight(made, images, labels, range(4), 4)}
        assert found["attack-mode"].flagged is not sound
        assert ("other classes" in found["attack-mode"].sentence) is not sound


def test_a_buffer_that_changes_is_a_note_and_names_the_buffer():
    images, labels = torch.rand(20, 1, 4, 4), torch.zeros(20, dtype=torch.int64)
    found = {c.slug: c for c in preflight(Remembering().eval(), images, labels, range(20), 4)}
    assert not found["state-leak"].flagged
    assert found["state-leak"].sentence.endswith("only in seen.")


@pytest.mark.parametrize(
    ("module", "is_one"),
    [
        (Neuron(), True),
        (Turn(), False),
        (Normalise(), False),
        (OwnBatchNorm(1), False),
        (OwnConv(1, 1, 1), False),
        (nn.LeakyReLU(), False),
        (type("LIFNode", (nn.Module,), {})(), True),
        (type("MyActivation", (nn.Module,), {"__init__": _with_threshold})(), True),
        (type("SpikingNet", (Base,), {})(), False),
    ],
)
def test_only_neurons_are_taken_for_neurons(module, is_one):
    assert is_neuron(module) is is_one


def test_spiking_networks_pass(checkpoints):
    from robustsnn.data.datasets import load_dataset

    data = load_dataset("fashion-mnist", None, samples=30)
    for name in ("snn", "ann"):
        network = evaluate(checkpoints / name, samples=30).manifest.preflight
        assert [c["check"] for c in network if not c["passed"]] == []
    config = read_checkpoint(checkpoints / "snn").config.model_dump()
    config.update(encoding="poisson", mean=(0.5,), std=(0.5,))
    torch.manual_seed(0)
    poisson = Network(type(read_checkpoint(checkpoints / "snn").config).model_validate(config))
    found = preflight(poisson.eval(), data.tensor(), data.targets(), data.ids.tolist(), 16)
    assert [c.slug for c in found if c.flagged and c.slug not in ("zero-gradient", "ties")] == []
    assert "stochastic" in next(c.sentence for c in found if c.slug == "repeatable")


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Broken(), "NaN or infinite logits on 20 of 20"),
        (nn.Linear(5, 3), "does not take images"),
        (nn.Flatten(0), "does not take images|not logits"),
    ],
)
def test_a_network_that_cannot_be_evaluated_leaves_no_folder(tmp_path, network, said):
    data = torch.rand(20, 1, 4, 4), torch.zeros(20, dtype=torch.int64)
    with pytest.raises(InputError, match=said):
        evaluate(network, data, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class LateBroken(Base):
    """NaN on the one image that preflight does not see."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        dark = (images.flatten(1).sum(1) == 0)[:, None]
        return torch.where(dark, torch.nan, super().forward(images))


def test_a_network_that_breaks_late_leaves_no_folder(tmp_path):
    images, labels = torch.rand(300, 1, 4, 4), torch.zeros(300, dtype=torch.int64)
    images[299] = 0
    with pytest.raises(InputError, match="NaN"):
        evaluate(LateBroken(), (images, labels), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_failed_check_is_a_flag_on_every_row():
    data = torch.rand(20, 1, 4, 4), torch.zeros(20, dtype=torch.int64)
    found = evaluate(Softmax(), data, suite_of(["fgsm"]))
    assert found.results["flags"].str.contains("logits").all()
    assert any(not c["passed"] for c in found.manifest.preflight)


# --- flags from records -------------------------------------------------------------------------

KINDS = {"noise": "noise", "fgsm": "fixed-epsilon", "pgd": "fixed-epsilon", "bb": "transfer"}
STEPS = {"noise": (None, None), "fgsm": (1, None), "pgd": (10, 1), "bb": (10, 1)}


def run(accuracies: dict[tuple[str, str], int], **changes: object) -> pd.DataFrame:
    """100 images, right when clean, of which so many stay right under each (attack, epsilon)."""
    rows = [record(i, "clean", 0, 0, 0, -1) for i in range(100)]
    for (attack, epsilon), kept in accuracies.items():
        for i in range(100):
            right = i < kept
            rows.append(
                record(
                    i,
                    attack,
                    0,
                    0 if right else 1,
                    0,
                    -1 if right else 1,
                    epsilon=epsilon,
                    **changes,
                )
            )
    return pd.DataFrame(rows)


def flags(records: pd.DataFrame) -> dict[str, set[tuple[str, str]]]:
    results = summarise(records, "d", STEPS)
    found = flags_of(records, results, KINDS, 10)
    in_rows = by_row(found, results)
    for flag in found:
        assert flag.sentence.endswith(".")
        assert all(flag.slug in in_rows[key] for key in flag.rows)
    return {f.slug: {(key[0], key[2]) for key in f.rows} for f in found}


E8 = "8/255"


def test_a_sane_run_has_no_flags():
    assert flags(run({("noise", E8): 98, ("fgsm", E8): 40, ("pgd", E8): 10, ("bb", E8): 60})) == {}


@pytest.mark.parametrize(
    ("accuracies", "flag", "row"),
    [
        ({("fgsm", E8): 20, ("pgd", E8): 40}, "one-step-beats-many", "pgd"),
        ({("noise", E8): 20, ("fgsm", E8): 40}, "noise-beats-gradient", "fgsm"),
        ({("bb", E8): 20, ("pgd", E8): 40}, "black-box-beats-white-box", "pgd"),
    ],
)
def test_a_weaker_attack_that_wins(accuracies, flag, row):
    assert flags(run(accuracies)) == {flag: {(row, E8)}}


def test_attacks_of_another_size_are_not_compared():
    assert flags(run({("fgsm", "16/255"): 20, ("pgd", E8): 40})) == {}


def test_curves():
    sizes = ["0", "1/255", "8/255", "32/255"]
    fine = dict(zip([("pgd", s) for s in sizes], [100, 60, 10, 0], strict=True))
    assert flags(run(fine)) == {}
    stuck = dict(zip([("pgd", s) for s in sizes], [100, 60, 50, 40], strict=True))
    assert flags(run(stuck)) == {"curve-above-chance": {("pgd", "32/255")}}
    bumpy = dict(zip([("pgd", s) for s in sizes], [100, 10, 30, 0], strict=True))
    assert flags(run(bumpy)) == {"curve-not-monotone": {("pgd", "8/255")}}
    # The same images fall in the same order here, so a rise of k images is one of k to 0.
    for rise, flagged in ((2, False), (4, False), (5, True)):
        noisy = dict(zip([("pgd", s) for s in sizes], [100, 10, 10 + rise, 0], strict=True))
        assert ("curve-not-monotone" in flags(run(noisy))) == flagged
    short = dict(zip([("pgd", s) for s in sizes[:3]], [100, 60, 50], strict=True))
    records = run(short)
    (found,) = flags_of(records, summarise(records, "d", STEPS), KINDS, 10)
    assert found.severity == "caution" and "larger sizes" in found.sentence


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"zero_grad": 1}, "zero-gradient"),
        ({"nonfinite_grad": 1}, "nonfinite-gradient"),
        ({"projected": 1}, "projected"),
    ],
)
def test_what_records_count(change, flag):
    assert flags(run({("pgd", E8): 10}, **change)) == {flag: {("pgd", E8)}}


def test_masked_gradients_are_flagged_end_to_end():
    """Gradients of a rounded image are zero: no attack moves, and the run says so."""
    torch.manual_seed(1)
    network = Shattered()
    images = torch.rand(60, 1, 4, 4)
    labels = network(images).argmax(1)
    found = evaluate(network, (images, labels), "quick")
    rows = found.results.set_index("attack")
    assert (rows["accuracy"] > 0.9).all()
    assert "zero-gradient" in rows.loc["pgd-10", "flags"].split(";")


def test_neurons_that_are_left_alone_are_cautioned_and_never_level_a() -> None:
    inside = nn.Sequential(load_model("fashion-mnist/vgg5-snn"))
    for source, flagged in (("auto", False), ("none", True)):
        network = adapted(inside, source)
        assert isinstance(network, Wrapped)
        finding = reached(network.reach)
        assert (finding.flagged, finding.severity) == (flagged, "caution")
        assert ("0 of 4 layers" in finding.sentence) is flagged
        level = level_of([finding] if finding.flagged else [], [], survivors=3)
        assert level.level == ("B" if flagged else "A")
