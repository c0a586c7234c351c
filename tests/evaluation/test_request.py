"""A request checks itself, without torch, and is the one list of options that there is."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from typing import Any

import pytest
import typer

from robustsnn.cli.main import app
from robustsnn.errors import InputError
from robustsnn.evaluation.options import Options, options
from robustsnn.evaluation.request import Request
from robustsnn.evaluation.run import evaluate
from robustsnn.evaluation.suites import load_suite

MODEL = "fashion-mnist/vgg5-ann"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"threads": 0}, "--threads 0"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"recompute": 0}, "--recompute 0"),
        ({"samples": 0}, "--samples 0"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**63}, "below 2\\^63"),
        ({"device": "gpu"}, "no device 'gpu'"),
        ({"suite": "quik"}, "Did you mean 'quick'"),
        ({"suite": "none.yaml"}, "no suite file"),
        ({"attack": ["pgdd"]}, "Did you mean 'pgd'"),
        ({"attack": ["pgd"], "suite": "quick"}, "exclude each other"),
        ({"attack": ["pgd"], "norm": "L2"}, "needs an epsilon too"),
        ({"norm": "L3", "epsilon": "1"}, "L3"),
        ({"epsilon": "big"}, "big"),
        ({"estimator": "bppt"}, "Did you mean 'bptt'"),
        ({"estimator": "none.py"}, "no estimator file"),
        ({"data": "cifar11"}, "Did you mean 'cifar10'"),
        ({"substitute": "fashion-mnist/vgg5"}, "no model"),
    ],
)
def test_mistakes_are_told_when_it_is_made(settings, says):
    with pytest.raises(InputError, match=says) as caught:
        Request.of(MODEL, **settings)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_not_there_and_no_model_at_all():
    with pytest.raises(InputError, match="Did you mean"):
        Request.of("fashion-mnist/vgg5-an")
    with pytest.raises(InputError, match="no model given"):
        Request(())


def test_it_holds_what_was_asked():
    request = Request.of(MODEL, suite="quick", epsilon="4/255,8/255", samples=7)
    assert request.chosen.epsilon == ("4/255", "8/255")
    assert len(request.images) == 7 and request.images.name == "fashion-mnist"
    other = request.but(estimator="bptt")
    assert other.chosen.name == "quick-under-bptt" and request.chosen.name == "quick"
    assert Request.of(MODEL).chosen == load_suite("quick")
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.samples = 3


def test_numbers_paths_and_single_attacks_are_taken_for_what_they_are(tmp_path):
    import numpy as np

    request = Request.of(MODEL, samples=np.int64(5), seed=np.int64(2), attack="fgsm")
    assert (request.samples, request.seed, request.attack) == (5, 2, ("fgsm",))
    assert type(request.seed) is int and request.chosen.entries[0].attack == "fgsm"
    with pytest.raises(InputError, match="whole number"):
        Request.of(MODEL, samples=2.5)
    with pytest.raises(InputError, match="Did you mean 'samples'"):
        Request.of(MODEL, sample=3)


def test_threads_are_set(checkpoints):
    import torch

    before = torch.get_num_threads()
    try:
        evaluate(checkpoints / "ann", samples=4, attack=["fgsm"], threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_it_needs_no_torch():
    code = (
        "import sys\nfrom robustsnn.evaluation.request import Request\n"
        f"request = Request.of({MODEL!r}, samples=5)\nrequest.check(None)\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- one edit -------------------------------------------------------------------------------------


def parameters(verb: str) -> dict[str, Any]:
    command: Any = typer.main.get_command(app)
    return {p.name: p for p in command.commands[verb].params}


def test_every_option_of_the_command_line_is_one_field():
    known = set(options())
    assert known == {f.name for f in dataclasses.fields(Options)} - {"name"}
    assert known <= set(parameters("evaluate"))
    assert set(parameters("evaluate")) - known == {"model", "output", "json_output", "fail_under"}
    assert known - set(parameters("compare")) == {"weights"}
    for verb in ("evaluate", "compare", "crosscheck"):
        for name, one in parameters(verb).items():
            if name in known and not (verb == "crosscheck" and name == "suite"):
                assert one.help == options()[name].metadata["help"]


def test_options_are_described_once():
    described = re.findall(r"^    (\w+): [A-Z`]", inspect.getdoc(Options) or "", re.MULTILINE)
    assert described == [f.name for f in dataclasses.fields(Options)]


def test_a_new_option_is_one_edit(monkeypatch):
    """A field more is an option more of each verb that takes a request."""
    from robustsnn.cli import options as of_commands

    more = dataclasses.field(default=3, metadata={"kind": int, "help": "A new thing."})
    more.name, more.type = "novelty", "int"  # as a dataclass would
    monkeypatch.setattr(of_commands, "options", lambda: {**options(), "novelty": more})
    seen = {}

    def command(model: str, settings: dict[str, object]) -> None:
        seen.update(settings)

    verb = of_commands.takes_request()(command)

    assert inspect.signature(verb).parameters["novelty"].default == 3
    verb(model="m", novelty=4, **{name: one.default for name, one in options().items()})
    assert seen["novelty"] == 4
