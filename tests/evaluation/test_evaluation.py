"""The evaluation believes no attack, touches nothing of the caller's, and counts right."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

import robustsnn
from robustsnn.errors import InputError
from robustsnn.evaluation.plan import prepare
from robustsnn.evaluation.request import Request
from robustsnn.evaluation.run import evaluate
from robustsnn.evaluation.suites import suite_of
from robustsnn.models.subject import subject_of
from robustsnn.records.schema import RESULTS

LIAR = """
from dataclasses import dataclass
from typing import ClassVar
import torch

@dataclass(frozen=True)
class Liar:
    kind: ClassVar[str] = "fixed-epsilon"
    how: str = "far"

    def __call__(self, victim, images, labels, threat, rng):
        if self.how == "far":
            return images + 0.5
        if self.how == "nan":
            return torch.full_like(images, float("nan"))
        if self.how == "raise":
            raise KeyError("oh")
        if self.how == "shape":
            return images[:1]
        if self.how == "weights":
            with torch.no_grad():
                for p in victim.network.parameters():
                    p.zero_()
            return images.clone()
        images.fill_(0.25)
        return images

ATTACK = Liar
"""


class Linear(nn.Module):
    """Logits +-(mean - 0.5): class 1 above a mean of 0.5, with a distance known in closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        z = self.scale * (images.flatten(1).mean(1) - 0.5)
        return torch.stack([-z, z], 1)


def data(n: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat grey images 0.4 .. 0.6; the label is whether they are above 0.5, but for the first."""
    levels = torch.linspace(0.4, 0.6, n)
    images = levels[:, None, None, None].expand(n, 1, 4, 4).clone()
    labels = (levels > 0.5).long()
    labels[0] = 1
    return images, labels


@pytest.fixture
def liar(tmp_path: Path) -> Path:
    path = tmp_path / "liar.py"
    path.write_text(LIAR)
    return path


def test_accuracy_is_the_fraction_beyond_the_closed_form_distance():
    images, labels = data()
    for attack in ("fgsm", "pgd:steps=5"):
        found = evaluate(Linear(), (images, labels), suite_of([attack], "0.045"))
        row = found.results.set_index("attack").loc["worst-case"]
        far = (torch.linspace(0.4, 0.6, 20) - 0.5).abs() > 0.045
        robust = int(far.sum()) - 1  # the label of the first is wrong
        assert row["accuracy"] == robust / 20
        assert list(found.results.columns) == RESULTS
        clean = found.results.set_index("attack").loc["clean", "accuracy"]
        assert clean == 19 / 20
        assert row["attack_success_rate"] == 1 - robust / 19


def test_images_that_are_wrong_are_attacked_only_where_the_suite_says_so():
    images, labels = data()
    suite = suite_of(["fgsm"], "8/255")
    spared = evaluate(Linear(), (images, labels), suite).records
    attacked = evaluate(
        Linear(), (images, labels), suite.model_copy(update={"attack_misclassified": True})
    ).records
    for records, passes in ((spared, 0), (attacked, 1)):
        first = records[(records["attack"] == "fgsm") & (records["image_id"] == 0)].iloc[0]
        assert first["backward_passes"] == passes and not first["success"]
        assert (first["linf"] > 0) == bool(passes)
        assert first["clean_prediction"] == 0 and first["prediction"] == 0


@pytest.mark.parametrize("how", ["far", "nan"])
def test_proposals_outside_are_projected_and_counted(liar, how):
    images, labels = data()
    found = evaluate(Linear(), (images, labels), suite_of([f"{liar}:how={how}"], "0.01"))
    rows = found.records[found.records["attack"] != "clean"]
    right = rows["clean_prediction"] == rows["label"]
    assert (rows[right]["projected"] == 1).all() and (rows[~right]["projected"] == 0).all()
    assert (rows["linf"] <= 0.01 + 1e-6).all()
    assert (rows[right]["linf"] > 0.009).all() if how == "far" else (rows["linf"] == 0).all()
    assert "projected" in found.results.set_index("attack").loc[rows["attack"].iloc[0], "flags"]


@pytest.mark.parametrize("how", ["weights", "images"])
def test_an_attack_that_tampers_changes_no_verdict(liar, how):
    images, labels = data()
    network = Linear()
    kept = copy.deepcopy(network.state_dict())
    pixels = images.clone()
    suite = suite_of([f"{liar}:how={how}", "gaussian-noise"], "0.001")
    found = evaluate(network, (images, labels), suite).results.set_index("attack")["accuracy"]
    assert (found == 19 / 20).all()
    assert torch.equal(images, pixels)
    assert all(torch.equal(kept[k], v) for k, v in network.state_dict().items())


def test_an_attack_of_another_shape_is_refused(liar):
    with pytest.raises(InputError, match="one image for each"):
        evaluate(Linear(), data(), suite_of([f"{liar}:how=shape"]))


def test_a_users_attack_that_fails_is_told_by_line_and_costs_no_finished_batch(liar, tmp_path):
    suite = suite_of(["fgsm", f"{liar}:how=raise"])
    with pytest.raises(InputError, match=r"liar.py, line \d+\): KeyError: 'oh'"):
        evaluate(Linear(), data(), suite, output=tmp_path / "run")
    assert len(list((tmp_path / "run" / "parts").glob("*.parquet"))) == 2


def test_a_full_disk_is_told_in_a_line(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("robustsnn.records.folder.write_atomically", full)
    with pytest.raises(InputError, match=r"No space left on device.*--output"):
        evaluate(Linear(), data(), output=tmp_path / "run")


def test_a_network_in_memory_is_left_as_it_was():
    network = Linear().train()
    evaluate(network, data(), "quick")
    assert network.training and network.scale.requires_grad and network.scale.grad is None


def test_epsilon_zero_is_clean_and_costs_nothing():
    found = evaluate(Linear(), data(), suite_of(["pgd"], "0")).results.set_index("attack")
    assert found.loc["pgd", "accuracy"] == found.loc["clean", "accuracy"]
    assert found.loc["pgd", "forward_passes"] == 0
    assert found.loc["pgd", "epsilon"] == "0"


def test_results_do_not_depend_on_how_many_images_are_asked_for(checkpoints):
    some = evaluate(checkpoints / "snn", samples=40, batch_size=16).records
    more = evaluate(checkpoints / "snn", samples=150, batch_size=16).records
    more = more[more["image_id"].isin(some["image_id"])]
    keys = ["attack", "image_id"]
    a, b = (r.sort_values(keys).reset_index(drop=True) for r in (some, more))
    assert np.mean(a["prediction"] == b["prediction"]) >= 0.995


def test_a_run_reprints_without_computing(checkpoints, tmp_path):
    first = evaluate(checkpoints / "snn", samples=30, output=tmp_path / "run")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run").iterdir()}
    again = evaluate(
        checkpoints / "snn",
        samples=30,
        output=tmp_path / "run",
        progress=lambda *_: pytest.fail("computed"),
    )
    assert again.reprinted and not first.reprinted
    pd.testing.assert_frame_equal(first.results, again.results)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run").iterdir()} == before
    assert sorted(before) == [
        "activity.parquet",
        "examples.safetensors",
        "manifest.json",
        "records.parquet",
        "results.csv",
    ]
    with pytest.raises(InputError, match="holds another run"):
        evaluate(checkpoints / "snn", samples=31, output=tmp_path / "run")


def test_identity_changes_with_all_it_promises(checkpoints, tmp_path, liar):
    def identity(model="snn", suite="quick", **changes):
        settings = {"samples": 20, **changes}
        return prepare(Request.of(checkpoints / model, None, suite, **settings)).identity

    found = {
        identity(),
        identity("ann"),
        identity(suite="curve"),
        identity(samples=21),
        identity(seed=1),
        identity(epsilon="4/255"),
        identity(epsilon="0.5", norm="L2"),
        identity(save_images=True),
        identity(suite=suite_of([str(liar)])),
    }
    liar.write_text(LIAR + "# changed\n")
    found.add(identity(suite=suite_of([str(liar)])))
    assert len(found) == 10
    assert identity(batch_size=7) == identity()


def test_examples_hold_what_the_records_say(checkpoints, tmp_path):
    run = evaluate(
        checkpoints / "ann", samples=70, batch_size=8, output=tmp_path / "r", save_images=True
    )
    saved = load_file(tmp_path / "r" / "examples.safetensors")
    assert saved["image_id"].tolist() == list(range(70))
    for attack in ("gaussian", "fgsm", "pgd-10"):
        rows = run.records[run.records["attack"] == attack].set_index("image_id").loc[range(70)]
        adversarial = saved[f"adversarial/{attack}@8/255"]
        linf = np.abs(adversarial - saved["clean"]).max((1, 2, 3))
        np.testing.assert_allclose(linf, rows["linf"], atol=1e-7)
        assert saved[f"prediction/{attack}@8/255"].tolist() == rows["prediction"].tolist()
    few = evaluate(checkpoints / "ann", samples=70, batch_size=4, output=tmp_path / "few")
    assert len(load_file(tmp_path / "few" / "examples.safetensors")["clean"]) == 24
    assert few.manifest.status == "done"


def test_black_box_needs_and_records_a_substitute(checkpoints):
    found = evaluate(checkpoints / "snn", suite="hire-iccv21", samples=20)
    rows = found.results.set_index("attack")
    assert rows.loc["bb-fgsm", "substitute"] == str(checkpoints / "snn-b")
    assert rows.loc["fgsm", "substitute"] == ""
    assert rows.loc["bb-pgd-7", "steps"] == "7" and rows.loc["bb-pgd-7", "backward_passes"] == 7
    assert set(rows["norm"]) == {"", "Linf", "L2"}
    with pytest.raises(InputError, match="--substitute"):
        prepare(Request.of(checkpoints / "snn-b", None, "hire-iccv21", samples=20))


def test_energy_and_activity_are_in_the_run(checkpoints):
    found = evaluate(checkpoints / "snn", samples=20)
    assert found.manifest.energy["snn_input_uj"] > 0
    assert set(found.activity["step"]) == {0, 1, 2}
    assert found.activity["spikes_per_neuron"].between(0, 1).all()
    assert found.activity["spikes_per_neuron"].max() > 0


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (torch.rand(3, 1, 4, 4) * 255, torch.zeros(3).long(), r"not in \[0, 1\]"),
        (torch.rand(3, 1, 4, 4) - 0.5, torch.zeros(3).long(), r"not in \[0, 1\]"),
        (torch.full((3, 1, 4, 4), torch.nan), torch.zeros(3).long(), "NaN"),
        (torch.zeros(3, 1, 4, 4).byte(), torch.zeros(3).long(), "give floats"),
        (torch.rand(3, 1, 4, 4), torch.zeros(2).long(), "labels must be 3"),
        (torch.rand(3, 1, 4, 4), torch.zeros(3), "labels must be 3"),
        (torch.rand(3, 1, 4, 4), torch.full((3,), 2), "2 classes"),
    ],
)
def test_images_that_are_no_images_are_refused(images, labels, said):
    with pytest.raises(InputError, match=said):
        evaluate(Linear(), (images, labels))


def test_public_names_are_there_and_no_others():
    for name in robustsnn.__all__:
        assert callable(getattr(robustsnn, name)) or name == "__version__"
    with pytest.raises(AttributeError):
        robustsnn.attack  # noqa: B018


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
@pytest.mark.slow
def test_memory_does_not_grow_over_200_attack_batches(checkpoints, monkeypatch):
    monkeypatch.setattr("robustsnn.evaluation.batch.TOGETHER", 1)
    page = os.sysconf("SC_PAGE_SIZE")
    resident: list[float] = []

    def watch(what: str, done: int, total: int) -> None:
        if not what.startswith("clean"):
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * page / 2**20)

    suite = suite_of(["fgsm"]).model_copy(update={"attack_misclassified": True})
    entry = suite.entries[0]
    many = tuple(entry.model_copy(update={"label": f"FGSM {i}"}) for i in range(10))
    suite = suite.model_copy(update={"entries": many})
    evaluate(checkpoints / "snn", suite=suite, samples=80, batch_size=4, progress=watch)
    assert len(resident) == 200
    early, late = np.median(resident[20:40]), np.median(resident[-20:])
    assert late - early < 5, f"{early:.0f} MiB after 30 batches, {late:.0f} MiB after 190"


class Steep(Linear):
    """The same classes with logits so large that cross-entropy saturates."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 1e4 * super().forward(images)


@pytest.mark.parametrize("name", ["quick", "curve"])
def test_the_scale_of_the_logits_saves_nobody(name):
    images, labels = data()
    for network in (Linear(), Steep()):
        rows = evaluate(network, (images, labels), name).results.set_index(["attack", "epsilon"])
        # Every image lies within 0.1 of the boundary; the grey levels are 1/95 apart.
        far = (torch.linspace(0.4, 0.6, 20) - 0.5).abs() > 8 / 255
        robust = (int(far.sum()) - 1) / 20
        assert rows.loc[("pgd-10" if name == "quick" else "pgd-20", "8/255"), "accuracy"] == robust


def test_a_substitute_goes_with_an_attack_that_uses_it(checkpoints):
    suite = suite_of(["fgsm"])
    entry = suite.entries[0].model_copy(update={"substitute": True})
    with pytest.raises(InputError, match="transfer:fgsm"):
        prepare(
            Request.of(
                checkpoints / "snn",
                None,
                suite.model_copy(update={"entries": (entry,)}),
                samples=20,
            )
        )


def test_the_file_behind_a_transfer_is_part_of_the_identity(checkpoints, liar):
    suite = suite_of([f"transfer:{liar}"])
    before = prepare(Request.of(checkpoints / "snn", None, suite, samples=20)).identity
    liar.write_text(LIAR + "# changed\n")
    assert prepare(Request.of(checkpoints / "snn", None, suite, samples=20)).identity != before


def test_a_factory_is_called_once_and_gives_separate_copies(tmp_path, monkeypatch):
    (tmp_path / "made_anew.py").write_text(
        "from torch import nn\n"
        "def build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))\n"
        "kept = build()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for text in ("made_anew:build", "made_anew:kept"):
        subject = subject_of(text)
        one, other = subject.load(), subject.load()
        assert one is not other
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())
        next(one.parameters()).fill_(7)
        assert not torch.equal(next(subject.load().parameters()), next(one.parameters()))
