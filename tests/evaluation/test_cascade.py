"""Cascades: what they leave is what separate runs leave together, and nothing is asked twice."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from robustsnn.errors import InputError
from robustsnn.evaluation.batch import Batch, Networks
from robustsnn.evaluation.cascade import Ranked, best_probe
from robustsnn.evaluation.judging import attacked
from robustsnn.evaluation.memory import calls, membranes
from robustsnn.evaluation.plan import prepare
from robustsnn.evaluation.request import Request
from robustsnn.evaluation.run import Evaluation, evaluate
from robustsnn.evaluation.suites import Suite
from robustsnn.models.checkpoint import load_network, read_checkpoint
from robustsnn.records.folder import RunFolder
from robustsnn.records.runs import load_runs
from robustsnn.reporting.comparison import comparisons
from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.workflows.verify.run import verify
from tests.evaluation.test_resume import Stop, same

#: Moves every pixel by a share of epsilon, or returns where it was told to start.
SHIFT = """
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Shift:
    kind: ClassVar[str] = "fixed-epsilon"
    by: float = 0.0
    witness: bool = False

    def __call__(self, victim, images, labels, threat, rng):
        victim.logits(images)
        assert victim.start is not None and victim.start.shape == images.shape
        if self.witness:
            return victim.start.clone()
        return (images + self.by * threat.radius).clamp(0, 1)

ATTACK = Shift
"""


class Grid(nn.Module):
    """Two layers in float64 whose weights, like the pixels, lie on a grid: every sum is exact."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(seed)
        self.one, self.two = (
            nn.Parameter(torch.randint(-16, 17, shape, generator=draws).double() / 16)
            for shape in ((16, 24), (24, 4))
        )

    def forward(self, images: Tensor) -> Tensor:
        return ((images.double().flatten(1) - 0.5) @ self.one).relu() @ self.two


class Line(nn.Module):
    """Logits +-(mean - 1/2) of the pixels, exact: how far an image is from the other class."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        z = self.scale * (images.double().flatten(1).mean(1) - 0.5)
        return torch.stack([-z, z], 1)


class Wide(nn.Module):
    """A spiking network in float64."""

    def __init__(self, inner: Network) -> None:
        super().__init__()
        self.inner = inner.double()
        self.spiking_layers = self.inner.spiking_layers
        self.classes = inner.classes

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.inner(images.double())
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class Some:
    """Images in any order that keep their ids."""

    pixels: Tensor
    labels: Any
    ids: Any
    name: str = "some"
    class_names: tuple[str, ...] = ()
    fingerprint: str = "some"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.pixels.shape[1:])

    def __len__(self) -> int:
        return len(self.pixels)

    def tensor(self, index: slice = slice(None)) -> Tensor:
        return self.pixels[index]

    def reversed(self) -> Some:
        return Some(self.pixels.flip(0), self.labels[::-1].copy(), self.ids[::-1].copy())


def data_of(network: nn.Module, n: int = 60, size: int = 4, wrong: int = 3) -> Some:
    """Pixels on the grid of 1/256 with the network's own classes, the first few wrong."""
    draws = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 257, (n, 1, size, size), generator=draws).float() / 256
    with torch.no_grad():
        logits = network(pixels)
    labels = logits.argmax(1)
    labels[:wrong] = (labels[:wrong] + 1) % logits.shape[1]
    return Some(pixels, labels.numpy(), np.arange(n) + 100)


def suite_of(*entries: dict[str, Any], cascade: bool = True, epsilon: Any = "16/256") -> Suite:
    return Suite.model_validate(
        {"name": "mine", "epsilon": epsilon, "cascade": cascade, "entries": list(entries)}
    )


def entry(label: str, attack: str, **more: Any) -> dict[str, Any]:
    return {"label": label, "attack": attack, **more}


def by_image(found: Evaluation, attack: str, epsilon: str | None = None) -> pd.DataFrame:
    rows = found.records[found.records["attack"] == attack]
    if epsilon is not None:
        rows = rows[rows["epsilon"] == epsilon]
    return rows.set_index("image_id").sort_index()


@pytest.fixture(autouse=True)
def _without_diagnosis(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is diagnosed beside the attacks has tests of its own, and takes longer than these."""
    monkeypatch.setattr("robustsnn.evaluation.ongoing.wanted", lambda *about: [])


@pytest.fixture
def shift(tmp_path: Path) -> Path:
    path = tmp_path / "shift.py"
    path.write_text(SHIFT)
    return path


@pytest.fixture(scope="module")
def spiking() -> Wide:
    torch.manual_seed(2)
    settings = {
        "architecture": "vgg5", "kind": "snn", "classes": 3, "image": (1, 8, 8),
        "widths": (4, 4, 4), "classifier": (8,), "mean": (0.5,), "std": (0.25,),
        "time_steps": 3, "dropout": 0.0,
    }  # fmt: skip
    network = Network(NetworkConfig.model_validate(settings)).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    for layer in network.spiking_layers().values():
        nn.init.constant_(layer.threshold, 0.3)
    return Wide(network)


#: Without draws: what each does to an image is the same in any run.
EXACT = (
    entry("Slight", "pgd:steps=1,step_size=2/256,random_start=no,loss=margin"),
    entry("Short", "pgd:steps=2,step_size=3/256,random_start=no,loss=cross-entropy"),
    entry("FGSM", "fgsm:loss=margin"),
    entry("Long", "pgd:steps=8,step_size=4/256,random_start=no,loss=margin"),
    entry("Last", "pgd:steps=8,step_size=4/256,random_start=no,loss=dlr,iterate=last"),
)


# --- what is left -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_a_cascade_is_the_union_of_separate_runs(seed):
    network = Grid(seed)
    images = data_of(network)
    found = evaluate(network, images, suite_of(*EXACT))
    clean = by_image(found, "clean")
    alive = (clean["prediction"] == clean["label"]) & (clean["margin"] < 0)
    settled = clean.copy()
    results = found.results.set_index("attack")
    attacked = []
    for one in EXACT:
        slug = one["label"].lower().replace(" ", "-")
        alone = evaluate(network, images, suite_of(one, cascade=False))
        rows, single = by_image(found, slug), by_image(alone, slug)
        spent = rows["forward_passes"] + rows["backward_passes"] > 0
        assert (spent == alive).all()
        same_columns = ["prediction", "margin", "linf", "l2", "success", "clean_prediction"]
        pd.testing.assert_frame_equal(rows[alive][same_columns], single[alive][same_columns])
        counts = ["forward_passes", "backward_passes", "zero_grad", "nonfinite_grad", "projected"]
        pd.testing.assert_frame_equal(rows[alive][counts], single[alive][counts])
        # The others have the row of the entry that broke them, and cost nothing.
        pd.testing.assert_frame_equal(rows[~alive][same_columns], settled[~alive][same_columns])
        assert (rows[~alive][[*counts, "seconds"]] == 0).all(axis=None)
        assert set(rows["estimator"]) == {"backprop"} and set(rows["epsilon"]) == {"16/256"}
        attacked.append(int(alive.sum()))
        broken = alive & ~(single["margin"] < 0)
        settled.loc[broken] = single.loc[broken]
        alive &= ~broken
        assert results.loc[slug, "accuracy"] == alive.mean()
        assert (
            results.loc[slug, "accuracy"]
            <= alone.results.set_index("attack").loc["worst-case", "accuracy"]
        )
    assert results.loc["worst-case", "accuracy"] == alive.mean()
    assert len(set(attacked)) > 3 and 0 < alive.sum() < 57


def test_each_size_is_a_cascade_of_its_own():
    network = Grid()
    images = data_of(network)
    sizes = ["4/256", "16/256", "0"]
    together = evaluate(network, images, suite_of(*EXACT, epsilon=sizes))
    for size in sizes:
        alone = evaluate(network, images, suite_of(*EXACT, epsilon=size))
        for one in alone.results["attack"].drop_duplicates():
            if one in ("clean", "worst-case"):
                continue
            pd.testing.assert_frame_equal(
                by_image(together, one, size).drop(columns="seconds"),
                by_image(alone, one).drop(columns="seconds"),
            )
    nothing = together.records[together.records["epsilon"] == "0"]
    assert (nothing["forward_passes"] == 0).all() and (nothing["linf"] == 0).all()


def test_a_tie_is_broken_and_is_not_attacked_again(shift, tmp_path):
    # Means of 1/2 - 16/256 tie after a shift by all of epsilon; the third ties when clean.
    levels = torch.tensor([0.5 - 16 / 256, 0.5 - 17 / 256, 0.5])
    images = Some(levels[:, None, None, None].expand(3, 1, 4, 4), np.zeros(3, int), np.arange(3))
    found = evaluate(
        Line(),
        images,
        suite_of(entry("Up", f"{shift}:by=1"), entry("Up again", f"{shift}:by=1")),
        output=tmp_path / "run",
    )
    assert by_image(found, "clean")["margin"].tolist() == [-2 * 16 / 256, -2 * 17 / 256, 0.0]
    assert by_image(found, "up")["margin"].tolist() == [0.0, -2 / 256, 0.0]
    assert by_image(found, "up")["forward_passes"].tolist() == [1, 1, 0]
    assert by_image(found, "up-again")["forward_passes"].tolist() == [0, 1, 0]
    assert by_image(found, "up-again")["margin"].tolist() == [0.0, -2 / 256, 0.0]
    # What is left, by the rows of the entries as by the worst case: a tie is not.
    for name in ("up", "up-again", "worst-case"):
        assert found.results.set_index("attack").loc[name, "accuracy"] == 1 / 3
    loaded = comparisons(load_runs([tmp_path / "run"]))[0]
    assert set(loaded.table[loaded.table["attack"] != "clean"]["accuracy"]) == {1 / 3}


# --- where attacks start ------------------------------------------------------------------------


def test_an_attack_is_told_the_proposal_of_largest_margin(shift, tmp_path, monkeypatch):
    # Batches of few images, so that proposals come from several parts.
    monkeypatch.setattr("robustsnn.evaluation.batch.TOGETHER", 4)
    shares = [0.25, -0.75, 0.5, -0.5]
    levels = torch.linspace(0.25, 0.75, 16)[:, None, None, None].expand(16, 1, 4, 4)
    labels = (levels[:, 0, 0, 0] > 0.5).long().numpy()
    images = Some(levels.contiguous(), labels, np.arange(16))
    entries = [entry("First", f"{shift}:witness=yes")]
    entries += [entry(f"Shift {i}", f"{shift}:by={share}") for i, share in enumerate(shares)]
    entries += [entry("Told", f"{shift}:witness=yes"), entry("Told again", f"{shift}:witness=yes")]
    evaluate(
        Line(), images, suite_of(*entries, epsilon="32/256"), batch_size=2,
        output=tmp_path / "run", save_images=True,
    )  # fmt: skip
    saved = load_file(tmp_path / "run" / "examples.safetensors")
    np.testing.assert_array_equal(saved["adversarial/first@32/256"], saved["clean"])
    # Class 1 is left by going down, class 0 by going up; each as far as any shift went.
    sign = np.where(labels == 1, -0.75, 0.5)
    clean = saved["clean"][:, 0, 0, 0]
    moved = clean + np.float32(32 / 256) * sign.astype(np.float32)
    alive = np.where(labels == 1, moved > 0.5, moved < 0.5)
    assert 4 < alive.sum() < 16
    for name in ("told", "told-again"):
        told = saved[f"adversarial/{name}@32/256"][:, 0, 0, 0]
        np.testing.assert_allclose(told[alive], moved[alive], atol=1e-7)


def test_probes_start_alike_and_others_do_not(tmp_path):
    network = Grid()
    images = data_of(network)
    noise = "pgd:steps=1,step_size=1/25600,iterate=last,early_exit=no"
    entries = [entry(str(i), noise, probe=i < 2) for i in range(4)]
    evaluate(
        network, images, suite_of(*entries, epsilon="1/256"), output=tmp_path / "run",
        save_images=True,
    )  # fmt: skip
    saved = load_file(tmp_path / "run" / "examples.safetensors")
    found = [saved[f"adversarial/{i}@1/256"][3:] for i in range(4)]
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[1], found[2]) and not np.array_equal(found[2], found[3])


# --- which estimator ----------------------------------------------------------------------------

ESTIMATORS = ("bptt:triangle:width=3", "bptt", "bptt:arctan:width=0.2")
PROBE = "pgd:steps=3,step_size=4/256,random_start=no,loss=margin"
RANKED = tuple(
    entry(f"Probe {i}", PROBE, estimator=e, probe=True) for i, e in enumerate(ESTIMATORS)
)


def test_best_is_what_a_hand_finds(spiking):
    images = data_of(spiking, 40, size=8)
    found = evaluate(
        spiking,
        images,
        suite_of(
            *RANKED,
            entry("Main", "pgd:steps=2,random_start=no", estimator="best"),
            epsilon=["4/256", "12/256"],
        ),
    )
    chosen = []
    for size in ("4/256", "12/256"):
        # Separate runs of the same steps, which draw nothing.
        alone = [
            by_image(
                evaluate(
                    spiking, images,
                    suite_of({**one, "probe": False}, cascade=False, epsilon=size),
                ),
                f"probe-{i}",
            )
            for i, one in enumerate(RANKED)
        ]  # fmt: skip
        margins = np.stack([rows["margin"] for rows in alone])
        survive = (margins < 0).all(0) & (alone[0]["clean_prediction"] == alone[0]["label"])
        assert 5 < survive.sum() < 37
        means = margins[:, survive].mean(1)
        assert len(set(means)) > 1
        rows = by_image(found, "main", size)
        assert set(rows["estimator"]) == {alone[int(means.argmax())]["estimator"].iloc[0]}
        chosen.append(int(means.argmax()))
    assert any(chosen), "the first would win by default"


def test_ranks_break_ties_by_order_and_need_survivors():
    def rank(*margins: list[float]) -> str:
        return best_probe([Ranked(str(i), np.array(m)) for i, m in enumerate(margins)])

    nan = math.nan
    assert rank([-2.0, -1.0], [-1.0, -1.5]) == "1"
    assert rank([-2.0, -1.0], [-1.0, -2.0]) == "0"
    # An image that any of them broke says nothing, nor one that was broken before.
    assert rank([-2.0, 5.0], [-1.0, nan]) == "1"
    assert rank([-2.0, -9.0, nan], [-3.0, 0.0, nan]) == "0"
    assert rank([1.0, nan], [nan, nan]) == "0"
    # Summed in the order given these differ in the last bit; exactly they tie.
    many = [-0.1, -0.2, -0.3, -1e16, -0.7]
    assert rank(many, many[::-1]) == "0" and rank(many[::-1], many) == "0"


def test_best_without_survivors_is_the_first_probe(shift):
    network = Line()
    images = Some(torch.full((3, 1, 4, 4), 0.49), np.zeros(3, int), np.arange(3))
    entries = [
        entry("Probe", "fgsm", probe=True),
        entry("Main", f"{shift}:by=1", estimator="best"),
    ]
    found = evaluate(network, images, suite_of(*entries))
    assert set(by_image(found, "main")["estimator"]) == {"backprop"}
    assert (by_image(found, "main")["forward_passes"] == 0).all()
    assert found.results.set_index("attack").loc["main", "accuracy"] == 0


# --- nothing depends on how it is run -----------------------------------------------------------

DRAWING = (
    *(entry(f"Probe {i}", "pgd:steps=2,loss=margin", estimator=e, probe=True)
      for i, e in enumerate(ESTIMATORS)),
    entry("Noise", "uniform-noise"),
    entry("Main", "apgd:steps=3", estimator="best"),
    entry("Other", "pgd:steps=2,restarts=2", estimator="bptt:arctan:width=0.4"),
)  # fmt: skip


def test_batches_and_order_change_no_verdict(spiking, monkeypatch):
    images = data_of(spiking, 22, size=8)
    suite = suite_of(*DRAWING, epsilon="12/256")
    whole = evaluate(spiking, images, suite, batch_size=100).records
    left = whole.groupby("attack", sort=False)["success"].mean()
    assert left.nunique() > 2
    for size, together, some in ((1, 5, images), (7, 14, images), (7, 7, images.reversed())):
        monkeypatch.setattr("robustsnn.evaluation.batch.TOGETHER", together)
        other = evaluate(spiking, some, suite, batch_size=size).records
        keys = ["attack", "image_id"]
        a, b = (
            r.sort_values(keys).reset_index(drop=True).drop(columns="seconds")
            for r in (whole, other)
        )
        pd.testing.assert_frame_equal(a, b, rtol=1e-6, atol=1e-6)


def test_stopped_after_every_batch_of_a_cascade(checkpoints, tmp_path, shift, monkeypatch):
    monkeypatch.setattr("robustsnn.evaluation.batch.TOGETHER", 16)
    entries = [
        *DRAWING[1:3],
        entry("Told", f"{shift}:witness=yes"),
        entry("Last", "pgd:steps=2", estimator="best"),
    ]
    suite = suite_of(*entries, epsilon=["1/255", "4/255"])
    settings: dict[str, Any] = {"samples": 24, "batch_size": 8, "save_images": True}
    model = checkpoints / "snn"
    texts: list[str] = []
    evaluate(
        model, None, suite, output=tmp_path / "whole",
        progress=lambda what, done, total: texts.append(what), **settings,
    )  # fmt: skip

    def stop(what: str, done: int, total: int) -> None:
        if what.endswith("images left"):
            raise Stop

    stops = 0
    while True:
        try:
            evaluate(model, None, suite, output=tmp_path / "parts", progress=stop, **settings)
            break
        except Stop:
            stops += 1
            assert (tmp_path / "parts" / "parts").is_dir()
            assert not (tmp_path / "parts" / "results.csv").exists()
    assert stops == len([text for text in texts if text != "clean"]) > 8
    same(tmp_path / "whole", tmp_path / "parts")
    assert verify(tmp_path / "whole").passed


def test_killed_between_the_images_and_the_rows_of_a_batch(checkpoints, tmp_path, monkeypatch):
    from robustsnn.records import folder as records

    suite = suite_of(*DRAWING[:2], entry("Last", "apgd:steps=3"), epsilon="4/255")
    settings: dict[str, Any] = {"samples": 30, "batch_size": 8}
    evaluate(checkpoints / "snn", None, suite, output=tmp_path / "whole", **settings)
    write = records.write_atomically

    def dying(path: Path, content: bytes) -> None:
        if path.name == "attack-001.00000.parquet":
            raise Stop
        write(path, content)

    monkeypatch.setattr(records, "write_atomically", dying)
    with pytest.raises(Stop):
        evaluate(checkpoints / "snn", None, suite, output=tmp_path / "killed", **settings)
    monkeypatch.undo()
    # It goes on at the batch size that it was started with.
    settings["batch_size"] = 3
    evaluate(checkpoints / "snn", None, suite, output=tmp_path / "killed", **settings)
    same(tmp_path / "whole", tmp_path / "killed")


def test_a_lost_part_is_told(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr("robustsnn.evaluation.batch.TOGETHER", 16)
    suite = suite_of(*DRAWING, epsilon="4/255")

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("Main"):
            raise Stop

    settings: dict[str, Any] = {"samples": 40, "batch_size": 8, "output": tmp_path / "run"}
    with pytest.raises(Stop):
        evaluate(checkpoints / "snn", None, suite, progress=stop, **settings)
    (tmp_path / "run" / "parts" / "attack-001.00000.safetensors").unlink()
    with pytest.raises(InputError, match=r"attack-001.00000.safetensors is missing or damaged"):
        evaluate(checkpoints / "snn", None, suite, **settings)


# --- memory -------------------------------------------------------------------------------------


def test_neurons_are_counted_with_their_steps(checkpoints):
    network = load_network(read_checkpoint(checkpoints / "snn"))
    assert isinstance(network, Network)
    image = torch.zeros(1, *network.input_shape)
    # VGG5 of widths 4, 6, 6 pools twice and has one hidden layer of 64.
    height = network.input_shape[1]
    pixels, halved, quartered = height**2, (height // 2) ** 2, (height // 4) ** 2
    shapes = {name: 0 for name in network.spiking_layers()}
    from robustsnn.snn.activity import record_activity

    for layer in record_activity(network, image).layers:
        shapes[layer.name] = layer.neurons
    assert set(shapes.values()) <= {4 * pixels, 6 * halved, 6 * quartered, 64}
    assert membranes(network, image) == 3 * sum(shapes.values())
    assert membranes(nn.Flatten(), image) == 0


def test_an_estimator_that_remembers_is_given_few_images(spiking, monkeypatch):
    images = data_of(spiking, 20, size=8, wrong=0)
    one = entry("Adaptive", "apgd:steps=4,loss=margin", estimator="assg:vanishing=0.425")
    suite = suite_of(one, epsilon="12/256")
    whole = evaluate(spiking, images, suite, batch_size=4)
    plan = prepare(Request.of(spiking, images, suite, batch_size=4))
    networks = Networks.of(plan, plan.tasks[0], plan.subject.load())
    held = 8 * membranes(networks.judging, images.tensor(slice(0, 1)))
    where, labels = torch.arange(20), torch.zeros(20, dtype=torch.int64)
    batch = Batch(images.tensor(slice(0, 20)), labels, list(range(20)), labels)
    sizes = {}
    for fitting in (1, 3, 4, 11, 100):
        monkeypatch.setattr("robustsnn.evaluation.memory.MEMORY_BYTES", fitting * held + 1)
        sizes[fitting] = len(calls(plan.tasks[0], networks, batch, where, 4)[0])
    assert sizes == {1: 1, 3: 3, 4: 4, 11: 8, 100: 20}
    monkeypatch.setattr("robustsnn.evaluation.memory.MEMORY_BYTES", 3 * held + 1)
    few = evaluate(spiking, images, suite, batch_size=4)
    a, b = (found.records.drop(columns="seconds") for found in (whole, few))
    pd.testing.assert_frame_equal(a, b, rtol=1e-6, atol=1e-6)


# --- the suites that ship ------------------------------------------------------------------------


def test_light_from_the_command_line(checkpoints, warm, tmp_path):
    done = warm(
        "evaluate", checkpoints / "snn", "--suite", "light", "--samples", "8",
        "--epsilon", "1/255", "--output", "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Probe BPTT Linf 1/255, " in done.stderr and "of 8 images left" in done.stderr
    results = RunFolder(tmp_path / "run").results().set_index("attack")
    probes = [name for name in results.index if name.startswith("probe-")]
    assert len(probes) == 8
    assert results.loc["apgd-ce", "estimator"] in set(results.loc[probes, "estimator"])
    assert results.loc["square-warm", "estimator"] == "none"
    left = results.drop(["clean", "worst-case"])["accuracy"].tolist()
    assert left == sorted(left, reverse=True)
    assert results.loc["worst-case", "accuracy"] == left[-1] < results.loc["clean", "accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ann", "snn"])
def test_standard_leaves_no_more_than_any_attack_of_its_own(checkpoints, kind):
    found = evaluate(checkpoints / kind, None, "standard", samples=24, epsilon="2/255")
    left = found.results.set_index("attack")
    assert left.loc["apgd-ce", "estimator"] == "backprop" or kind == "snn"
    assert not left["flags"].str.contains("one-step-beats|black-box-beats").any()
    for attack in ("pgd:steps=50,loss=margin", "apgd:steps=50", "square:queries=500"):
        suite = suite_of(entry("One", attack), cascade=False, epsilon="2/255")
        alone = evaluate(checkpoints / kind, None, suite, samples=24).results.set_index("attack")
        assert left.loc["worst-case", "accuracy"] <= alone.loc["worst-case", "accuracy"]


# --- reports ------------------------------------------------------------------------------------


def test_accuracies_of_a_cascade_are_not_taken_for_those_of_attacks(shift):
    images = data_of(Grid())
    entries = [
        entry("Weak", "pgd:steps=2,step_size=1/25600,random_start=no"),
        entry("One", "fgsm"),
    ]
    alone = evaluate(Grid(), images, suite_of(*entries, cascade=False))
    cascade = evaluate(Grid(), images, suite_of(*entries))
    assert {f["flag"] for f in alone.manifest.flags} >= {"one-step-beats-many"}
    assert not {f["flag"] for f in cascade.manifest.flags} & {
        "one-step-beats-many", "noise-beats-gradient", "black-box-beats-white-box",
    }  # fmt: skip


def test_a_defect_is_flagged_where_it_was_found_only(tmp_path):
    far = tmp_path / "far.py"
    far.write_text(SHIFT.replace(".clamp(0, 1)", " + 9"))
    images = data_of(Grid())
    entries = [entry("Far", str(far)), entry("FGSM", "fgsm")]
    found = evaluate(Grid(), images, suite_of(*entries))
    flags = found.results.set_index("attack")["flags"]
    assert "projected" in flags["far"] and "projected" not in flags["fgsm"]


def test_entries_are_for_kinds_of_networks(spiking):
    both = suite_of(
        entry("Probe", "fgsm", probe=True),
        entry("Narrow", "fgsm", estimator="bptt:arctan", kinds=["snn"]),
        entry("Main", "pgd:steps=2", estimator="bptt:triangle", kinds=["snn"]),
        entry("Main", "pgd:steps=3", kinds=["ann"]),
        entry("Many", "fgsm", least_classes=4),
        entry("Still", "fgsm", deterministic=True),
    )
    ann = evaluate(Grid(), data_of(Grid()), both)
    snn = evaluate(spiking, data_of(spiking, 12, size=8), both)
    assert ann.manifest.left_out == ("Narrow",)
    assert snn.manifest.left_out == ("Many",)
    assert ann.results["attack"].tolist() == [
        "clean",
        "probe",
        "main",
        "many",
        "still",
        "worst-case",
    ]
    assert snn.results["attack"].tolist() == [
        "clean",
        "probe",
        "narrow",
        "main",
        "still",
        "worst-case",
    ]
    steps = [f.results.set_index("attack").loc["main", "steps"] for f in (ann, snn)]
    assert steps == ["3", "2"]
    only = suite_of(entry("Main", "fgsm", kinds=["snn"]))
    with pytest.raises(InputError, match=r"no entry for a network such as Grid \(ANN\)"):
        prepare(Request.of(Grid(), data_of(Grid()), only))


def test_entries_that_rank_nothing_are_refused(shift):
    network, images = Grid(), data_of(Grid())
    with pytest.raises(InputError, match="follows no gradient"):
        prepare(Request.of(network, images, suite_of(entry("Noise", "gaussian-noise", probe=True))))
    transfer = suite_of(
        entry("Probe", "fgsm", probe=True),
        entry("Other", "transfer:fgsm", estimator="best"),
    )
    with pytest.raises(InputError, match="for the network itself"):
        prepare(Request.of(network, images, transfer, substitute=Grid(1)))


@pytest.mark.parametrize(
    "attack", ["square:warm=true", "apgd:warm=true", "transfer:square:warm=true"]
)
def test_a_warm_start_without_a_cascade_is_refused_before_anything_runs(attack):
    network, images = Grid(), data_of(Grid())
    entries = (entry("First", "fgsm"), entry("Warm", attack))
    prepare(Request.of(network, images, suite_of(*entries), substitute=Grid(1)))
    with pytest.raises(InputError, match=r"^Warm: .* cascade: true"):
        prepare(Request.of(network, images, suite_of(*entries, cascade=False), substitute=Grid(1)))


def test_a_warm_transfer_starts_where_the_cascade_stopped(tmp_path):
    file = tmp_path / "begins.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "@dataclass(frozen=True)\n"
        "class Begins:\n"
        "    kind: ClassVar[str] = 'fixed-epsilon'\n"
        "    warm: ClassVar[bool] = True\n"
        "    def __call__(self, victim, images, labels, threat, rng):\n"
        "        victim.logits(images)\n"
        "        return victim.start\n"
        "ATTACK = Begins\n"
    )
    images, network = data_of(Grid()), Grid()
    suite = suite_of(entry("First", "fgsm"), entry("Warm", f"transfer:{file}"))
    found = evaluate(network, images, suite, substitute=Grid(1))
    first, warm = by_image(found, "first"), by_image(found, "warm")
    left = first["margin"] < 0
    # What stands is proposed again, by whoever may look where the first attack stopped.
    assert left.any() and (warm[left]["linf"] == first[left]["linf"]).all()
    assert (first[left]["linf"] > 0).any()


def test_a_transfer_in_a_cascade_crafts_elsewhere():
    images = data_of(Grid())
    entries = [entry("FGSM", "fgsm"), entry("Elsewhere", "transfer:fgsm")]
    found = evaluate(Grid(), images, suite_of(*entries), substitute=Grid(1))
    alone = evaluate(Grid(), images, suite_of(entries[1], cascade=False), substitute=Grid(1))
    rows, single = by_image(found, "elsewhere"), by_image(alone, "elsewhere")
    spent = rows["backward_passes"] > 0
    assert (spent == (by_image(found, "fgsm")["margin"] < 0)).all() and spent.any()
    assert (rows[spent]["margin"] == single[spent]["margin"]).all()
    assert set(rows["substitute"]) == {"Grid"}


def test_progress_says_how_many_survive():
    said: list[tuple[str, int, int]] = []
    images = data_of(Grid())
    found = evaluate(Grid(), images, suite_of(*EXACT[:2]), progress=lambda *told: said.append(told))
    left = round(60 * found.results.set_index("attack").loc["slight", "accuracy"])
    assert [what for what, _, _ in said] == [
        "clean",
        "Slight Linf 16/256, 57 of 60 images left",
        f"Short Linf 16/256, {left} of 60 images left",
    ]
    assert [done for _, done, _ in said] == [1, 2, 3] and said[-1][2] == 3


def test_few_survivors_are_not_padded_to_many(shift):
    widths: list[int] = []

    class Watched(Line):
        def forward(self, images: Tensor) -> Tensor:
            widths.append(len(images))
            return super().forward(images)

    plan = prepare(Request.of(
        Watched(), data_of(Line(), 20, wrong=0), suite_of(entry("Up", f"{shift}:by=1")),
        batch_size=16))  # fmt: skip
    judging = plan.subject.load()
    networks = Networks.of(plan, plan.tasks[0], judging)
    images, labels = plan.images.tensor(slice(0, 3)), torch.zeros(3, dtype=torch.int64)
    widths.clear()
    batch = Batch(images, labels, [0, 1, 2], labels)
    attacked(plan, networks, plan.tasks[0], batch, labels == 0, 4, images)
    assert set(widths) == {4}
