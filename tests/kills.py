"""Kill commands at random moments, let them go on, and compare what they end with.

Each command is first run to its end. Then it is started again and again in another folder, each
time killed at a moment drawn from the time that the whole run took, until it finishes; what it left
must equal the uninterrupted run in all but how long it took. The suite `light` has its diagnosis in
it, and training goes on from the last finished epoch.

    python -m tests.kills 30 --seed 0
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from safetensors.numpy import load_file

from robustsnn.data.datasets import SAMPLE
from robustsnn.records.folder import RunFolder
from tests.conftest import CLI, cli_environment, make_checkpoint

#: The fields of a manifest that differ between two runs of the same request: times, and digests of
#: files that hold times.
TIMES = ("command", "start", "seconds", "contents", "digest")
RECIPE = {
    "name": "killed",
    "data": "fashion-mnist",
    "method": "ann",
    "network": {
        "architecture": "vgg5", "kind": "ann", "classes": 10, "image": [1, 28, 28],
        "widths": [8, 8, 8], "classifier": [32], "mean": [0.286], "std": [0.353],
    },
    "epochs": 6,
    "batch_size": 32,
}  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A command that is killed.

    Args:
        arguments: Its arguments, up to the output folder.
        differing: What the folders of two runs of it do not have in common, one line each.
    """

    arguments: tuple[str, ...]
    differing: Callable[[Path, Path], list[str]]


def differing_runs(one: Path, other: Path) -> list[str]:
    """What two run folders do not have in common but for times, one line each."""
    said = []
    if (names := _names(one)) != _names(other):
        said.append(f"files {sorted(names ^ _names(other))}")
    for table in ("records", "results", "activity"):
        a, b = (getattr(RunFolder(folder), table)() for folder in (one, other))
        if not _without(a, "seconds").equals(_without(b, "seconds")):
            said.append(f"the rows of {table}")
    images = [load_file(folder / "examples.safetensors") for folder in (one, other)]
    if images[0].keys() != images[1].keys():
        said.append("the names of images")
    elif any((images[0][name] != images[1][name]).any() for name in images[0]):
        said.append("images")
    a, b = (_timeless(json.loads((f / "manifest.json").read_text())) for f in (one, other))
    said += [f"{name} of the manifest" for name in sorted(a | b) if a.get(name) != b.get(name)]
    return said


def differing_comparisons(one: Path, other: Path) -> list[str]:
    """What the folders of two comparisons do not have in common but for times."""
    said = []
    if (names := _names(one)) != _names(other):
        said.append(f"files {sorted(names ^ _names(other))}")
    runs = [sorted(path.parent for path in f.rglob("manifest.json")) for f in (one, other)]
    for a, b in zip(*runs, strict=True):
        said += [f"{a.name}: {text}" for text in differing_runs(a, b)]
    a, b = (json.loads((f / "comparison.json").read_text()) for f in (one, other))
    return said if a == b else [*said, "comparison.json"]


def differing_checkpoints(one: Path, other: Path) -> list[str]:
    """What the folders of two trainings do not have in common but for times."""
    said = []
    if (names := _names(one)) != _names(other):
        said.append(f"files {sorted(names ^ _names(other))}")
    for name in ("model.safetensors", "model.json", "recipe.yaml"):
        if (one / name).read_bytes() != (other / name).read_bytes():
            said.append(name)
    a, b = (_without(pd.read_csv(f / "training.csv"), "seconds") for f in (one, other))
    if not a.equals(b):
        said.append("training.csv")
    cards = [
        [line for line in (f / "card.md").read_text().splitlines() if "training time" not in line]
        for f in (one, other)
    ]
    return said if cards[0] == cards[1] else [*said, "card.md"]


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _without(frame: pd.DataFrame, *names: str) -> pd.DataFrame:
    return frame.drop(columns=[name for name in names if name in frame])


def _timeless(manifest: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in manifest.items() if name not in TIMES}
    kept["probe_cost"] = {k: v for k, v in kept["probe_cost"].items() if k != "seconds"}
    kept["ledger"] = [_unhurried(row) for row in kept["ledger"]]
    return kept


def _unhurried(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if "second" not in name}


def commands(place: Path) -> dict[str, Command]:
    """The commands by name, with what they read made in a folder."""
    make_checkpoint(place / "ann", "ann")
    make_checkpoint(place / "snn", "snn", substitute=str(place / "ann"))
    (place / "data").mkdir()
    sample = next(SAMPLE.glob("*.parquet"))
    for split in ("train", "test"):
        shutil.copy(sample, place / "data" / f"{split}-00000-of-00001.parquet")
    (place / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    small = ("--samples", "600", "--batch-size", "16")
    return {
        "quick": Command(("evaluate", "snn", *small), differing_runs),
        "light": Command(("evaluate", "snn", "--suite", "light", "--samples", "8"), differing_runs),
        "compare": Command(("compare", "ann", "snn", *small), differing_comparisons),
        "train": Command(("train", "recipe.yaml", "--data-root", "data"), differing_checkpoints),
    }


class Killer:
    """Runs one command to its end once, and then with kills.

    Args:
        place: The folder in which it runs.
        name: Its name.
        command: The command.
        rng: What draws the moments.
    """

    def __init__(self, place: Path, name: str, command: Command, rng: random.Random) -> None:
        self._place, self._name, self._command, self._rng = place, name, command, rng
        began = time.monotonic()
        whole = self._start(f"{name}-whole")
        said = whole.communicate()[1]
        assert whole.returncode == 0, said
        self.seconds = time.monotonic() - began

    def with_kills(self, number: int) -> tuple[int, list[str]]:
        """Let the command finish with at most so many kills.

        Returns:
            The number of kills, and what the result and that of the whole run do not share.
        """
        output = self._place / f"{self._name}-killed"
        shutil.rmtree(output, ignore_errors=True)
        kills = 0
        while True:
            process = self._start(output.name)
            wait = self._rng.uniform(0, self.seconds) if kills < number else None
            try:
                said = process.communicate(timeout=wait)[1]
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
                continue
            if process.returncode != 0:
                return kills, [f"exit code {process.returncode}: {said.strip()[-300:]}"]
            whole = self._place / f"{self._name}-whole"
            return kills, self._command.differing(whole, output)

    def _start(self, output: str) -> subprocess.Popen[str]:
        arguments = [*self._command.arguments, "--output", output]
        if (self._place / output / "state.safetensors").exists():
            arguments.append("--resume")
        return subprocess.Popen(
            [*CLI, *arguments],
            cwd=self._place,
            env=cli_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )


def main() -> int:
    """Kill as often as is asked for, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int, nargs="?", default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one of the commands")
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    wrong = done = 0
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        place = Path(scratch)
        known = commands(place)
        names = [asked.only] if asked.only else list(known)
        for turn, name in enumerate(names):
            killer = Killer(place, name, known[name], rng)
            left = asked.kills // len(names) + (turn < asked.kills % len(names))
            print(f"{name}: {killer.seconds:.0f} s without a kill", flush=True)
            while left > 0:
                kills, said = killer.with_kills(left)
                left, done, wrong = left - kills, done + kills, wrong + bool(said)
                result = "; ".join(said) or "the same"
                print(f"{name}: {kills} kills, {result}", flush=True)
                if not kills and said:
                    break
    print(f"{done} kills, {wrong} results that differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
