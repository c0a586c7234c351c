"""The command line on a network of another library: one line says what was found and reached."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import run_cli
from tests.foreign.networks import needs

FACTORY = f"""
import sys, warnings

sys.path.append({str(Path(__file__).parents[2])!r})

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tests.foreign.networks import SpikingJelly


def build():
    import torch

    torch.manual_seed(0)
    return SpikingJelly("s", "ParametricLIFNode")
"""


@pytest.mark.slow
@needs("spikingjelly")
@pytest.mark.parametrize(("source", "reached"), [((), 2), (("--from", "none"), 0)])
def test_the_terminal_says_what_is_reached(
    tmp_path: Path, source: tuple[str, ...], reached: int
) -> None:
    (tmp_path / "nets.py").write_text(FACTORY)
    arguments = ("evaluate", "nets:build", "--data", "fashion-mnist", "--samples", "8")
    done = run_cli([*arguments, "--attack", "fgsm", "--output", "run", *source], tmp_path)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "2 layers of ParametricLIFNode" in said
    assert f"estimators reach {reached} of 2 layers" in said
    assert ("Estimators reach 0 of 2 layers of neurons, because --from none" in said) is (
        reached == 0
    )
    page = run_cli(["report", "run", "--output", "page"], tmp_path)
    assert page.returncode == 0, page.stderr
    text = " ".join((tmp_path / "page" / "index.html").read_text().split())
    assert f"estimators reach {reached} of 2 layers" in text
