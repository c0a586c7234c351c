from __future__ import annotations

import os
import subprocess
import sys

import pytest

from robustsnn.common.process import let_idle_threads_sleep

# The median counts, since a heap that keeps its blocks still grows now and then.
FAULTS = """
import resource, statistics, sys
from robustsnn.common.process import keep_freed_memory
kept = sys.argv[1] == "kept" and keep_freed_memory()
import torch
faults = []
for _ in range(25):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(2**24).fill_(1.0)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(statistics.median_low(faults[5:]), kept)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_not_fetched_again_page_by_page():
    faults = {}
    for how in ("kept", "default"):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True
        )
        number, kept = done.stdout.split()
        faults[how] = int(number)
        assert kept == str(how == "kept")
    assert faults["kept"] * 5 < faults["default"], faults


def test_the_users_choice_for_idle_threads_stands(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    let_idle_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    let_idle_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
