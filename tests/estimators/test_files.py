"""Estimators as files: what ships is found by its name, and a user's own by its path."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import robustsnn
from robustsnn.adversary.victim import Victim
from robustsnn.common.content import files_in, folder
from robustsnn.errors import InputError
from robustsnn.estimators.base import Estimator
from robustsnn.estimators.catalogue import MECHANISM, check_estimator, estimator_names
from robustsnn.estimators.make import estimator_class, make_estimator
from robustsnn.evaluation.plan import prepare
from robustsnn.evaluation.request import Request
from robustsnn.evaluation.suites import Suite, load_suite
from robustsnn.snn.network import Network, NetworkConfig

#: Passes where a neuron fired at that step; the closed form is in the test.
FIRED = '''
from dataclasses import dataclass
from robustsnn import Estimator

@dataclass(frozen=True)
class Fired(Estimator):
    """Where it fired."""

    share: float = 1.0

    def rule(self, grad, trace):
        return self.share * grad * trace.spikes

ESTIMATOR = Fired
'''


@pytest.fixture
def fired(tmp_path: Path) -> Path:
    path = tmp_path / "fired.py"
    path.write_text(FIRED)
    return path


def tiny() -> Network:
    torch.manual_seed(0)
    made = Network(
        NetworkConfig(
            architecture="vgg5", kind="snn", classes=3, image=(1, 8, 8), widths=(4, 4, 4),
            classifier=(8, 8), mean=(0.5,), std=(0.25,), time_steps=3,
        )
    )  # fmt: skip
    for layer in made.classifier.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    for spiking in made.spiking_layers().values():
        spiking.threshold.data.fill_(0.3)
    return made


def test_every_file_is_a_name_and_the_mechanism_is_none():
    stems = {path.stem for path in folder("estimators").glob("[a-z]*.py")}
    assert {name.replace("-", "_") for name in estimator_names()} == stems - set(MECHANISM)
    for name in estimator_names():
        kind = estimator_class(name)
        assert issubclass(kind, Estimator) and kind.kind == name
        assert dataclasses.is_dataclass(kind) and kind.__doc__


def test_only_what_remembers_says_so():
    remembering = {n for n in estimator_names() if estimator_class(n).remembers}
    assert remembering == {"assg"}
    averaged = make_estimator("assg:draws=2", tiny())
    assert averaged.remembers and averaged.draws == 2
    assert not make_estimator("bptt:draws=2", tiny()).remembers


def test_a_users_own_gives_the_gradient_of_its_rule(fired):
    made = tiny().double()
    estimator = make_estimator(f"{fired}:share=0.5", made)
    assert estimator.name == "fired.py:share=0.5"
    images, labels = torch.rand(4, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0])

    def halved(grad: Tensor, trace) -> Tensor:
        found: Tensor = 0.5 * grad * trace.spikes
        return found

    x = images.clone().requires_grad_()
    for layer in made.spiking_layers().values():
        layer.rule = halved
    loss = nn.functional.cross_entropy(made.eval()(x), labels, reduction="sum")
    (expected,) = torch.autograd.grad(loss, x)
    for layer in made.spiking_layers().values():
        layer.rule = None
    found = Victim(made, estimator, range(4)).gradient(images, labels).gradient
    torch.testing.assert_close(found, expected)
    assert all(layer.rule is None for layer in made.spiking_layers().values())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("none.py", "no estimator file"),
        ("{fired}:shre=1", "Did you mean 'share'"),
        ("{fired}:share=much", "must be a number"),
        ("{fired}:draws=0", "draws must be at least 1"),
        ("{empty}", "defines no estimator"),
        ("{plain}", "derive its class from robustsnn.Estimator"),
        ("{broken}", "does not load: ZeroDivisionError"),
    ],
)
def test_mistakes_are_one_line(fired, tmp_path, text, says):
    files = {"empty": "x = 1\n", "plain": "class A: pass\nESTIMATOR = A\n", "broken": "1 / 0\n"}
    for name, content in files.items():
        (tmp_path / f"{name}.py").write_text(content)
    given = {name: tmp_path / f"{name}.py" for name in files} | {"fired": fired}
    with pytest.raises(InputError, match=says) as caught:
        make_estimator(text.format(**given), tiny())
    assert "\n" not in str(caught.value)


def test_an_estimator_that_does_not_exist_is_told_without_loading_one(fired):
    check_estimator(f"{fired}:anything")
    for text in ("bppt", "no/such.py"):
        with pytest.raises(InputError, match=r"bptt|no estimator file"):
            check_estimator(text)


def test_which_files_a_specification_names():
    assert files_in("transfer:mine/a.py:steps=3") == [Path("mine/a.py")]
    assert files_in("transfer:attack=b.py") == [Path("b.py")]
    assert files_in("bptt:laplace.py:width=2/255,cut=1") == [Path("laplace.py")]
    assert files_in("bptt:laplace.py(width=0.3):cut=1") == [Path("laplace.py")]
    assert files_in("spsa:pairs=64,sigma=2/255") == files_in("torchattacks:PGD:steps=5") == []


# --- in place of a suite's own -------------------------------------------------------------------


def test_it_takes_the_place_of_every_estimator_and_bears_another_name(fired):
    standard = load_suite("standard")
    suite = standard.under(f"{fired}:share=0.5")
    assert suite.name.startswith("standard-under-") and suite.name != standard.name
    assert len(suite.entries) == len(standard.entries)
    assert {entry.estimator for entry in suite.entries} == {f"{fired}:share=0.5"}
    assert not any(entry.probe for entry in suite.entries)
    assert suite.digest() != standard.digest()


def test_its_file_is_part_of_the_identity(fired, checkpoints):
    def identity() -> str:
        request = Request.of(checkpoints / "snn", samples=8, estimator=str(fired))
        return prepare(request).identity

    before = identity()
    assert before == identity()
    fired.write_text(FIRED + "# changed\n")
    assert identity() != before
    plain = prepare(Request.of(checkpoints / "snn", samples=8)).identity
    assert plain not in (before, identity())


class Linear(nn.Module):
    """An honest network of two classes, whose run under `FULL` has level A."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(16, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1) - 0.5)
        return logits


FULL = Suite.model_validate(
    {
        "name": "full",
        "epsilon": "8/255",
        "cascade": True,
        "entries": [
            {"label": "Probe", "attack": "apgd:steps=4,loss=margin", "probe": True},
            {"label": "CE", "attack": "apgd:steps=100,loss=cross-entropy"},
            {"label": "Margin", "attack": "apgd:steps=100,loss=margin", "estimator": "best"},
            {"label": "Square", "attack": "square:queries=1000"},
        ],
    }
)


def test_a_run_with_it_is_never_level_a():
    network = Linear()
    torch.manual_seed(3)
    images = torch.rand(200, 1, 4, 4)
    given = (images, network(images).argmax(1))
    assert robustsnn.evaluate(network, given, FULL).manifest.level == "A"
    found = robustsnn.evaluate(network, given, FULL, estimator="bptt")
    assert found.manifest.estimator == "bptt"
    assert found.manifest.suite == "full-under-bptt"
    assert found.manifest.level == "B"
    because = [reason["sentence"] for reason in found.manifest.diagnosis["because"]]
    assert any("bptt replaced" in sentence for sentence in because)
    assert set(found.records["estimator"]) == {"none", "backprop"}


def test_evaluate_and_compare_take_it_from_the_command_line(warm, fired, checkpoints, tmp_path):
    common = ("--samples", "10", "--attack", "pgd:steps=2", "--estimator", "fired.py:share=0.5")
    one = warm("evaluate", checkpoints / "snn", *common, "--output", "one", "--json")
    assert one.returncode == 0, one.stderr
    rows = json.loads(one.stdout)["results"]
    assert {row["estimator"] for row in rows if row["attack"] == "pgd-2"} == {"fired.py:share=0.5"}
    assert {row["suite"] for row in rows} == {"custom-under-fired-share-0.5"}
    files = json.loads((tmp_path / "one/manifest.json").read_text())["files"]
    assert list(files) == ["fired.py"] and len(files["fired.py"]) == 64
    both = warm(
        *("compare", checkpoints / "snn", checkpoints / "snn-b", *common, "--output", "both")
    )
    assert both.returncode == 0, both.stderr
    wrong = warm("evaluate", checkpoints / "ann", *common)
    assert wrong.returncode == 2 and "spiking" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1


# --- files that a suite names ---------------------------------------------------------------------

ATTACK = """
from pathlib import Path
from robustsnn.attacks.none import ATTACK
MARK = Path({mark!r})
MARK.write_text("ran")
"""


ENTRIES = [
    "attack: mine.py",
    "attack: 'transfer:mine.py'",
    "attack: 'transfer:attack=mine.py'",
    "attack: fgsm, estimator: mine.py",
    "attack: fgsm, estimator: 'bptt:mine.py:width=0.5'",
]


@pytest.mark.parametrize(
    ("entry", "verb"),
    [
        *((entry, "evaluate") for entry in ENTRIES),
        *((ENTRIES[0], verb) for verb in ("compare", "crosscheck", "peers")),
    ],
)
def test_a_suite_that_names_code_runs_with_leave_only(warm, checkpoints, tmp_path, entry, verb):
    mark = tmp_path / "mark"
    (tmp_path / "mine.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    (tmp_path / "s.yaml").write_text(
        f"name: sent\nepsilon: 8/255\nentries:\n  - {{label: One, {entry}}}\n"
    )
    where = ["--peers", "s.yaml"] if verb == "peers" else ["--suite", "s.yaml"]
    verb = "crosscheck" if verb == "peers" else verb
    arguments = (verb, checkpoints / "snn", "--samples", "8", *where, "--output", "out")
    refused = warm(*arguments)
    assert refused.returncode == 2 and "--allow-code" in refused.stderr
    assert "mine.py" in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert not mark.exists() and not (tmp_path / "out").exists()
    allowed = warm(*arguments, "--allow-code")
    assert "runs mine.py" in allowed.stderr.splitlines()[0]
    assert mark.exists()


@pytest.mark.parametrize("ending", ["/", "/.", " "])
@pytest.mark.parametrize("entry", ["attack: '{}'", "attack: fgsm, estimator: '{}'"])
@pytest.mark.parametrize("before", ["./", "transfer:"])
def test_no_spelling_of_a_file_runs_unlisted(warm, checkpoints, tmp_path, entry, before, ending):
    mark = tmp_path / "mark"
    (tmp_path / "mine.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    (tmp_path / "s.yaml").write_text(
        "name: sent\nepsilon: 8/255\nentries:\n"
        f"  - {{label: One, {entry.format(f'{before}mine.py{ending}')}}}\n"
    )
    said = warm("evaluate", checkpoints / "snn", "--samples", "8", "--suite", "s.yaml")
    assert said.returncode == 2 and len(said.stderr.splitlines()) == 1
    assert not mark.exists()


FAILING = {
    "in its rule": ("def rule(self, grad, trace):\n        return grad / nothing", "NameError"),
    "in shape": (
        "def rule(self, grad, trace):\n        return grad[..., :1]",
        "backward rule returns",
    ),
    "without a rule": ("pass", "neither rule nor applied"),
    "when made": ("def __post_init__(self):\n        raise ValueError('no')", "ValueError: no"),
}


@pytest.mark.parametrize("how", FAILING)
def test_a_users_estimator_that_fails_is_one_line(warm, checkpoints, tmp_path, how):
    body, says = FAILING[how]
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom robustsnn import Estimator\n\n"
        f"@dataclass(frozen=True)\nclass Mine(Estimator):\n    {body}\n\nESTIMATOR = Mine\n"
    )
    said = warm(
        *("evaluate", checkpoints / "snn", "--samples", "8", "--attack", "fgsm"),
        *("--estimator", "mine.py", "--output", "run"),
    )
    assert said.returncode == 2 and says in said.stderr, said.stderr
    told = [line for line in said.stderr.splitlines() if line.startswith("robustsnn:")]
    assert len(told) == 1 and "Traceback" not in said.stderr


def test_a_surrogate_has_to_have_its_parts(tmp_path):
    (tmp_path / "half.py").write_text("class Half:\n    name = 'half'\nSURROGATE = Half\n")
    with pytest.raises(InputError, match="width, amplitude, derivative, primitive"):
        make_estimator(f"bptt:{tmp_path / 'half.py'}", tiny())


def test_a_suite_from_a_file_needs_leave_in_python_too(tmp_path, fired):
    path = tmp_path / "s.yaml"
    path.write_text(
        "name: sent\nepsilon: 8/255\nentries:\n"
        f"  - {{label: One, attack: fgsm, estimator: {fired}}}\n"
    )
    with pytest.raises(InputError, match="allow-code"):
        robustsnn.evaluate("fashion-mnist/vgg5-snn", suite=path, samples=2)
    assert load_suite(path, allow_code=True).files() == [fired]
