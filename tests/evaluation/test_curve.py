"""Curves over epsilon: no size forgets what a smaller one found, and none is weaker than alone."""

import numpy as np
import pytest
import torch

import robustsnn
from robustsnn.errors import InputError
from robustsnn.evaluation.suites import load_suite, suite_of
from robustsnn.records.folder import RunFolder

SIZES = "1/255, 8/255, 32/255"
PGD = "pgd:steps=3,loss=margin"
#: It finds what it is given at small sizes, and gives up where the ball is large.
WEAK = """
from dataclasses import dataclass
import robustsnn

@dataclass(frozen=True)
class Weak:
    kind = "KIND"
    def __call__(self, victim, images, labels, threat, rng):
        if threat.radius > 0.1:
            return images.clone()
        found = victim.gradient(images, labels, "margin")
        return threat.project(images + threat.radius * threat.ascent(found.gradient), images)

ATTACK = Weak
"""


class Net(torch.nn.Module):
    """A smooth network of three classes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Linear(16, 8), torch.nn.Linear(8, 3)

    def forward(self, images):
        return self.last(torch.tanh(self.first(images.flatten(1) - 0.5)))


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(1)
    images = torch.rand(60, 1, 4, 4)
    with torch.no_grad():
        return images, Net()(images).argmax(1)


def right(found):
    """Which images are right at each size, by id."""
    records = found.records[found.records["attack"] != "clean"]
    verdict = (records["prediction"] == records["label"]).groupby(
        [records["epsilon"], records["image_id"]]
    )
    return verdict.first().unstack("epsilon")


def weak(tmp_path, kind="fixed-epsilon"):
    path = tmp_path / "weak.py"
    path.write_text(WEAK.replace("KIND", kind))
    return str(path)


def test_an_attack_that_gives_up_at_a_large_size_keeps_what_it_found(tmp_path, data):
    attack = weak(tmp_path)
    alone = robustsnn.evaluate(Net(), data, attack=attack, epsilon="32/255")
    assert alone.accuracy == 1.0
    found = robustsnn.evaluate(Net(), data, attack=attack, epsilon=SIZES, output=tmp_path / "run")
    held = right(found)
    assert 0 < held["8/255"].mean() < 1
    assert (held["32/255"] <= held["8/255"]).all() and (held["8/255"] <= held["1/255"]).all()
    assert found.accuracy == held["32/255"].mean() == held["8/255"].mean()
    # What fell is not attacked again, and each proposal is judged as it was.
    records = found.records.set_index(["epsilon", "image_id"]).drop(index="", level=0)
    fell = held.index[~held["8/255"]]
    assert records.loc["32/255"].loc[fell, "backward_passes"].sum() == 0
    assert (records["linf"] <= 32 / 255 + 1e-6).all()
    for name in ("margin", "prediction", "linf", "l2"):
        smaller, larger = (records.loc[size].loc[fell, name] for size in ("8/255", "32/255"))
        assert (smaller == larger).all()
    assert found.manifest.curve and not found.results["flags"].str.contains("monotone").any()
    assert not (tmp_path / "run" / "parts").exists()


def test_no_size_of_a_curve_is_weaker_than_the_attack_alone(data):
    curve = right(robustsnn.evaluate(Net(), data, attack=PGD, epsilon=SIZES))
    for size in SIZES.split(", "):
        alone = right(robustsnn.evaluate(Net(), data, attack=PGD, epsilon=size))
        assert (curve[size] <= alone[size]).all(), size
    assert curve["32/255"].sum() < curve["1/255"].sum()


def test_noise_is_measured_at_each_size_for_itself(tmp_path, data):
    found = robustsnn.evaluate(Net(), data, attack=weak(tmp_path, "noise"), epsilon=SIZES)
    held = right(found)
    assert held["8/255"].mean() < held["32/255"].mean() == 1


def test_sizes_may_come_in_any_order(data):
    orders = ("32/255, 1/255, 8/255", SIZES)
    found = [right(robustsnn.evaluate(Net(), data, attack=PGD, epsilon=e)) for e in orders]
    assert found[0][found[1].columns].equals(found[1])


def test_a_stopped_curve_goes_on_as_if_it_had_not_been(tmp_path, data):
    whole = robustsnn.evaluate(Net(), data, attack=PGD, epsilon=SIZES, output=tmp_path / "whole")

    def stop(what, done, total):
        if "8/255" in what:
            raise KeyboardInterrupt

    given = {"attack": PGD, "epsilon": SIZES, "output": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        robustsnn.evaluate(Net(), data, progress=stop, **given)
    again = robustsnn.evaluate(Net(), data, **given)
    columns = [name for name in whole.records if name != "seconds"]
    assert whole.records[columns].equals(again.records[columns])
    kept = RunFolder(tmp_path / "run").path / "examples.safetensors"
    from safetensors.numpy import load_file

    assert not any("proposal" in name for name in load_file(kept))


def test_which_suites_are_curves():
    assert load_suite("curve").curve and load_suite("curve").version == 2
    assert not load_suite("quick").curve and load_suite("quick").at(epsilon=SIZES).curve
    assert not load_suite("curve").at(epsilon="8/255").curve
    assert not load_suite("light").at(epsilon=SIZES).curve
    assert not suite_of(["fgsm"], "1/255, 2/255").curve
    # Two suites that differ in this alone are told apart.
    suite = load_suite("curve")
    assert suite.digest() != suite.model_copy(update={"curve": False}).digest()
    with pytest.raises((InputError, ValueError), match="drop one"):
        type(suite).model_validate(
            {**load_suite("light").model_dump(), "curve": True, "cascade": True}
        )


def test_ties_do_not_stop_a_larger_size(data):
    """An image that ties is right by its class, so that it is attacked again."""
    images, labels = data
    found = robustsnn.evaluate(
        Tied(), (images, torch.zeros_like(labels)), attack=PGD, epsilon=SIZES
    )
    records = found.records[found.records["epsilon"] == "32/255"]
    assert (records["backward_passes"] > 0).all()
    assert np.isclose(found.accuracy, 0)


class Tied(torch.nn.Module):
    """Two classes that always tie, the first of which is the label."""

    def forward(self, images):
        one = images.flatten(1).sum(1, keepdim=True)
        return torch.cat([one, one, one - 5], 1)
