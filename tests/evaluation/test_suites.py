"""Suites: the ones that ship say what the papers did, and mistakes are told by line and field."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import pytest
import torch

from robustsnn.adversary.catalogue import load_attack
from robustsnn.adversary.peers import MissingLibrary
from robustsnn.adversary.threat import ThreatModel
from robustsnn.common.epsilon import resolve_epsilon
from robustsnn.errors import InputError
from robustsnn.estimators.bptt import Bptt
from robustsnn.estimators.make import make_estimator
from robustsnn.evaluation.suites import load_suite, suite_names, suite_of
from robustsnn.snn.network import Network, NetworkConfig

GOOD = """
name: mine
epsilon: 8/255
entries:
  - {label: FGSM, attack: fgsm}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", suite_names())
def test_every_suite_that_ships_can_be_built(name):
    suite = load_suite(name)
    assert suite.name == name
    for entry in suite.entries:
        # Libraries that are not installed are no fault of the suite.
        with contextlib.suppress(MissingLibrary):
            load_attack(entry.attack)
        for norm, epsilon in suite.budgets(entry, 784):
            assert ThreatModel(norm, epsilon).radius >= 0


def test_hire_suite_is_the_official_evaluation():
    suite = load_suite("hire-iccv21")
    assert suite.fixed and suite.attack_misclassified
    pgd = load_attack(next(e for e in suite.entries if e.label == "PGD-7").attack)
    assert (pgd.steps, pgd.step_size, pgd.restarts) == (7, "0.01", 1)
    assert pgd.random_start and pgd.iterate == "last" and not pgd.early_exit
    assert {e.label for e in suite.entries if e.substitute} == {"BB FGSM", "BB PGD-7"}
    budgets = {e.label: suite.budgets(e, 3 * 32 * 32) for e in suite.entries}
    assert budgets["FGSM"] == [("Linf", "0.031")]
    (norm, epsilon) = budgets["Gaussian L2"][0]
    assert norm == "L2" and math.isclose(float(epsilon), 0.031 * math.sqrt(3072), rel_tol=1e-3)


def test_quick_steps_by_two_255ths_at_eight():
    suite = load_suite("quick")
    pgd = load_attack(suite.entries[-1].attack)
    assert pgd.steps == 10 and pgd.step_size is None
    assert math.isclose(2.5 * ThreatModel("Linf", suite.epsilon[0]).radius / 10, 2 / 255)


@pytest.mark.parametrize("kind", ["ann", "snn"])
def test_standard_has_the_stages_it_promises(kind):
    suite = load_suite("standard")
    assert suite.cascade and not suite.fixed and suite.epsilon == ("8/255",)
    run = [e for e in suite.entries if e.runs_on(kind, classes=10, stochastic=False)]
    probes = [e for e in run if e.probe]
    assert run[: len(probes)] == probes and {e.attack for e in probes} == {
        "apgd:steps=10,loss=margin"
    }
    estimators = [e.estimator for e in probes]
    assert estimators == ["bptt"] if kind == "ann" else len(set(estimators)) == 8
    made = {e.label: (load_attack(e.attack), e.estimator) for e in run if not e.probe}
    steps = {
        label: (attack.steps, attack.loss, attack.restarts)
        for label, (attack, _) in made.items()
        if hasattr(attack, "steps")
    }
    common = {"SA-PGD": (200, "cross-entropy", 1), "APGD margin": (200, "margin", 1)}
    assert steps == common | (
        {
            "APGD CE": (100, "cross-entropy", 5),
            "APGD targeted": (100, "targeted-dlr", 2),
        }
        if kind == "ann"
        else {
            "APGD CE": (100, "cross-entropy", 1),
            "SA-PGD wider": (200, "cross-entropy", 1),
            "APGD margin again": (200, "margin", 1),
        }
    )
    warm, cold = made["Square warm"][0], made["Square"][0]
    assert (warm.queries, warm.warm, warm.offset) == (1000, True, 200)
    assert (cold.queries, cold.warm, cold.offset) == (5000, False, 0)
    assert list(made)[-2:] == ["Square warm", "Square"]
    if kind == "ann":
        assert {e for _, e in made.values()} == {"bptt"}
        targeted = made["APGD targeted"][0]
        assert (targeted.targets, targeted.loss, targeted.steps) == (9, "targeted-dlr", 100)
        assert not any(
            e.label == "APGD targeted" for e in suite.entries if e.runs_on(kind, 3, False)
        )
    else:
        assert made["APGD margin"][1] == "assg:vanishing=0.45"
        assert made["SA-PGD"][1] == "assg:vanishing=0.425"
        assert made["SA-PGD wider"][1] == "assg:vanishing=0.45"
        assert made["APGD CE"][1] == "best"
        # Alpha 8 of `alpha/2 / (1 + (pi/2 alpha z)^2)`, as high as it may be.
        again = make_estimator(made["APGD margin again"][1], tiny_snn())
        assert isinstance(again, Bptt) and again.reset == "attached" and again.surrogate is not None
        there, peak = again.surrogate.derivative(torch.tensor([0.1, 0.0], dtype=torch.float64))
        assert math.isclose(there / peak, 1 / (1 + (0.4 * math.pi) ** 2), rel_tol=1e-3)


@pytest.mark.parametrize("kind", ["ann", "snn"])
def test_plus_has_of_every_attack_of_standard_as_much_or_more(kind):
    """Its own attacks included: where `standard` is in doubt, `plus` may leave none of it out."""

    def runs(name):
        for one in load_suite(name).entries:
            if one.runs_on(kind, 10, False) and not one.probe:
                attack = load_attack(one.attack)
                size = [getattr(attack, f, 0) for f in ("steps", "restarts", "queries", "targets")]
                how = (getattr(attack, "loss", ""), getattr(attack, "warm", False), one.estimator)
                yield one.label, (type(attack), *how), size

    more = list(runs("plus"))
    for label, shape, size in runs("standard"):
        found = [s for _, other, s in more if other == shape]
        assert any(all(a >= b for a, b in zip(s, size, strict=True)) for s in found), label
    probes = {
        name: [e for e in load_suite(name).entries if e.probe and e.runs_on(kind, 10, False)]
        for name in ("standard", "plus", "light")
    }
    assert probes["plus"] == probes["standard"] == probes["light"]


@pytest.mark.parametrize("name", ["light", "standard", "plus"])
@pytest.mark.parametrize("kind", ["ann", "snn"])
def test_every_estimator_of_a_cascade_that_ships_can_be_made(name, kind):
    network = tiny_snn() if kind == "snn" else torch.nn.Flatten()
    for one in load_suite(name).entries:
        if one.runs_on(kind, classes=10, stochastic=False) and one.estimator != "best":
            make_estimator(one.estimator, network)


def tiny_snn() -> Network:
    return Network(
        NetworkConfig(
            architecture="vgg5", kind="snn", classes=3, image=(1, 8, 8), widths=(2, 2, 2),
            classifier=(4,), mean=(0.5,), std=(0.25,), time_steps=2,
        )
    )  # fmt: skip


def test_curve_covers_the_sizes():
    sizes = [ThreatModel("Linf", e).radius for e in load_suite("curve").epsilon]
    assert sizes == [k / 255 for k in (0, 1, 2, 4, 8, 16, 32)]


def test_epsilon_is_kept_as_written(tmp_path):
    for written in ("8/255", "0.031", '"0.0310"', "0"):
        suite = load_suite(write(tmp_path, GOOD.replace("8/255", written)))
        assert suite.epsilon == (written.strip('"'),)
    assert resolve_epsilon("0.031*sqrt(d)", 784) == "0.868"


def test_overrides():
    suite = load_suite("quick").at(epsilon="4/255, 8/255")
    assert suite.epsilon == ("4/255", "8/255")
    assert suite.digest() != load_suite("quick").digest()
    assert load_suite("quick").at(norm="L2", epsilon="0.5").norm == "L2"
    # The norm that it has already keeps its sizes.
    assert load_suite("curve").at(norm="Linf").digest() == load_suite("curve").digest()
    with pytest.raises(InputError, match="needs an epsilon"):
        load_suite("quick").at(norm="L2")
    for change in ({"norm": "L2"}, {"epsilon": "8/255"}):
        with pytest.raises(InputError, match="fixes its threat model"):
            load_suite("hire-iccv21").at(**change)


def test_attacks_on_the_command_line():
    suite = suite_of(["pgd:steps=20", "torchattacks:MIFGSM", "transfer:fgsm"], "4/255")
    assert [e.slug for e in suite.entries] == ["pgd-20", "torchattacks-mifgsm", "transfer-fgsm"]
    assert [e.substitute for e in suite.entries] == [False, False, True]
    with pytest.raises(InputError, match="two have the label"):
        suite_of(["fgsm", "fgsm"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace("attack: fgsm", "attack: fgms"), r"line 5: entries.0.attack: .*'fgsm'"),
        (GOOD.replace("8/255", "-1/255"), r"line 3: epsilon.0: .*negative"),
        (GOOD.replace("8/255", "8/0"), r"line 3: epsilon.0: .*divides by zero"),
        (GOOD + "colour: red\n", r"line 6: colour: no such field"),
        (GOOD.replace("label: FGSM", "label: clean"), r"line 5: entries.0.label: .*reserved"),
        (GOOD.replace("name: mine", "name: [1]"), r"line 2: name: "),
        ("name: mine\nepsilon: 8/255\n", r"entries: Field required"),
        ("[1, 2]\n", r"a suite is a mapping"),
        ("name: 'mine\n", r"line \d+"),
    ],
)
def test_mistakes_name_line_and_field(tmp_path, text, said):
    with pytest.raises(InputError, match=said) as caught:
        load_suite(write(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "suite.yaml") in str(caught.value)


CASCADE = """
name: mine
epsilon: [8/255, 4/255]
cascade: true
entries:
  - {label: P, attack: fgsm, probe: true}
  - {label: Q, attack: fgsm, estimator: best}
"""


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("cascade: true\n", "", r"entries.0: probe works in a cascade only"),
        (", probe: true", ", estimator: best", r"entries.0: no probe on an ANN at Linf 8/255"),
        ("probe: true", "probe: true, kinds: [ann]", r"entries.1: no probe on an SNN at Linf 8/"),
        ("probe: true", "probe: true, epsilon: 8/255", r"entries.1: no probe on an ANN .* 4/255"),
        ("probe: true", "probe: true, least_classes: 4", r"entries.1: no probe on an ANN"),
        ("probe: true", "probe: true, deterministic: true", r"entries.1: no probe on an ANN"),
        ("probe: true", "probe: true, norm: L2", r"entries.1: no probe on an ANN at Linf"),
        ("probe: true", "probe: true, estimator: best", r"entries.0: a probe ranks"),
        ("probe: true", "probe: true, substitute: true", r"entries.0: a probe ranks"),
        ("estimator: best", "estimator: best, substitute: true", r"entries.1: best is an estim"),
        ("label: Q", "label: P", r"two have the label 'p'"),
        ("label: Q", "label: P, kinds: [snn]", r"two have the label 'p'"),
        ("cascade: true", "cascade: true\nattack_misclassified: true", r"cascade: .*drop one"),
        ("probe: true", "probe: true, kinds: [gnn]", r"line 6: entries.0.kinds.0: "),
        ("probe: true", "probe: true, kinds: []", r"line 6: entries.0.kinds: "),
    ],
)
def test_cascades_that_cannot_work_are_refused(tmp_path, before, after, said):
    assert before in CASCADE
    with pytest.raises(InputError, match=said) as caught:
        load_suite(write(tmp_path, CASCADE.replace(before, after)))
    assert "\n" not in str(caught.value)


def test_a_cascade_is_read(tmp_path):
    suite = load_suite(write(tmp_path, CASCADE))
    assert suite.cascade and [e.probe for e in suite.entries] == [True, False]
    again = CASCADE.replace("8/255, 4/255", "8/255").replace("best", "best, epsilon: 8/255")
    load_suite(write(tmp_path, again))
    # An ANN and an SNN may be attacked differently under one name, to be compared.
    kinds = CASCADE.replace("P,", "P, kinds: [ann],").replace("Q", "P, kinds: [snn]")
    with pytest.raises(InputError, match="no probe on an SNN"):
        load_suite(write(tmp_path, kinds))
    assert len(load_suite(write(tmp_path, kinds.replace("best", "bptt"))).entries) == 2
    with pytest.raises(InputError, match="works in a cascade only"):
        load_suite(write(tmp_path, GOOD.replace("fgsm}", "fgsm, estimator: best}")))


def test_what_a_suite_does_not_use_is_no_part_of_its_identity(tmp_path):
    # Runs of before there were cascades still belong to their suites.
    assert load_suite(write(tmp_path, GOOD)).digest() == (
        "da6d7a70433239eb23a7ffa3d1bbc829da2521aef8fab485a22c31c7edb0fe6c"
    )
    plain = load_suite(write(tmp_path, CASCADE)).digest()
    for before, after in (
        ("probe: true", "probe: true, kinds: [ann, snn]"),
        ("estimator: best", "estimator: best, least_classes: 3"),
        ("cascade: true", "cascade: true\nversion: 2"),
    ):
        assert load_suite(write(tmp_path, CASCADE.replace(before, after))).digest() != plain


def test_yaml_that_expands_without_end_is_refused(tmp_path):
    lines = ["a0: &a0 [x, x]"] + [
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)
    ]
    with pytest.raises(InputError, match="line 2: aliases"):
        load_suite(write(tmp_path, "\n".join(lines)))
    with pytest.raises(InputError):
        load_suite(write(tmp_path, "[" * 100_000))


def test_unknown_suite_suggests():
    with pytest.raises(InputError, match=r"'qiuck'.*'quick'"):
        load_suite("qiuck")


def test_long_specifications_get_short_labels_that_differ():
    long = "pgd:steps=100,step_size=2/255,restarts=5,iterate=best,early_exit=false,loss="
    one, other = (e.label for e in suite_of([f"{long}margin", f"{long}dlr"]).entries)
    assert one != other and max(len(one), len(other)) <= 60 and one.startswith("pgd-100-")
