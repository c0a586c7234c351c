"""A call that is forked off is what a process of its own would be, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import warm_cli
from tests.conftest import run_cli

MEDDLING = """
import os, sys, warnings
import torch
os.environ["ROBUSTSNN_DATA"] = "nowhere"
os.chdir("/")
sys.path.clear()
torch.set_default_dtype(torch.float64)
warnings.simplefilter("error")
print("heard")
os.write(2, b"heard too\\n")
raise MemoryError("let out")
"""


@pytest.mark.parametrize("arguments", [["zoo", "show", "nobody"], ["attacks", "list"], ["--help"]])
def test_it_answers_as_a_process_of_its_own(arguments, warm, run_warm, tmp_path):
    one, other = warm(*arguments), run_cli(arguments, tmp_path)
    for name in ("returncode", "stdout", "stderr"):
        assert getattr(one, name) == getattr(other, name)


def test_what_a_call_does_to_its_process_is_gone_after_it(warm, checkpoints, tmp_path):
    (tmp_path / "meddling.py").write_text(MEDDLING)
    arguments = ["evaluate", checkpoints / "ann", "--samples", "8", "--attack", "fgsm", "--json"]
    before = warm(*arguments, "--output", "a")
    meddled = warm("evaluate", "meddling:make", "--data", "fashion-mnist", "--samples", "8")
    assert meddled.returncode != 0 and meddled.stdout == "heard\n"
    assert meddled.stderr.splitlines()[0] == "heard too"
    after = warm(*arguments, "--output", "a")
    assert (before.returncode, after.returncode) == (0, 0), before.stderr + after.stderr
    assert after.stdout == before.stdout
    (line,) = after.stderr.splitlines()
    assert line.endswith("not computed again.")


@pytest.mark.skipif(not warm_cli.AVAILABLE, reason="calls are not forked here")
def test_an_error_that_main_lets_out_is_a_traceback_and_exit_1(tmp_path):
    code = (
        "from tests.cli.warm_cli import leave\n"
        "call = {'cwd': '.', 'arguments': [], 'environment': {}, 'files': ['out', 'err']}\n"
        "leave(call, lambda: 1 / 0)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )
    assert done.returncode == 1
    assert "ZeroDivisionError" in (tmp_path / "err").read_text()
