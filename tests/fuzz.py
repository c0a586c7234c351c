"""A fuzz target: what a stranger may send, changed at random, and the command line run on it.

Each input is a file of ours, of which one or several places are changed: a field is dropped, copied
or renamed, a value becomes one of another type, size or meaning, a table loses a column or a row, a
file loses its end. Whatever the input is, the command has to end in time, with an exit code of its
own and one line on stderr if it is 2; it must not run what the file names nor leave files behind.

    python -m tests.fuzz 2000 --seed 0
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from tests.cli import warm_cli
from tests.conftest import cli_environment, make_checkpoint

#: The seconds that a command may take on any input, on a machine that does nothing else.
LIMIT = float(os.environ.get("FUZZ_LIMIT", "60"))
#: The exit codes that are documented, but for a mistake of ours and an interrupt.
CODES = (0, 1, 2, 3)

RECIPE = """
name: fuzzed
data: folder
method: ann
network: {architecture: vgg5, kind: ann, classes: 2, image: [1, 28, 28], widths: [2, 2, 2],
  classifier: [8], mean: [0.286], std: [0.353], encoding: direct, time_steps: 1, dropout: 0.0}
init: start
guidance: {teacher: start, attention: 1.0, distillation: 0.1, temperature: 2.0}
optimizer: {name: sgd, lr: 0.001, weight_decay: 0.0, momentum: 0.9}
augmentation: {crop: 1, flip: true}
sparsity: {start: magnitude, density: 0.5, rewiring: {rate: 0.5, every: 1}}
epochs: 1
batch_size: 4
holdout: 0
train_images: 8
seed: 0
substitute: start
"""
SUITE = """
name: fuzzed
version: 1
description: attacks of all kinds
norm: Linf
epsilon: [8/255, 0.01]
fixed: false
cascade: true
draws: 1
energy: true
entries:
- {label: Probe, attack: "pgd:steps=2", estimator: "bptt:arctan(width=0.5)", probe: true}
- {label: FGSM, attack: fgsm, estimator: bptt, norm: Linf, epsilon: 8/255, kinds: [ann, snn]}
- {label: Best, attack: "apgd:steps=2", estimator: best, least_classes: 2, deterministic: false}
- {label: Noise, attack: gaussian-noise}
- {label: Peer, attack: "torchattacks:PGD:steps=2"}
"""


@dataclass(frozen=True)
class Input:
    """One changed file and the command that reads it.

    Args:
        file: The file, relative to the working folder.
        content: What it holds.
        command: The arguments of the command line.
        change: What was changed, for a report.
    """

    file: str
    content: bytes
    command: tuple[str, ...]
    change: str


@dataclass(frozen=True)
class Outcome:
    """What a command did on an input; `faults` is empty if that is what it should do."""

    given: Input
    code: int
    seconds: float
    stderr: str
    faults: tuple[str, ...]


class Target:
    """A folder with good files, and the command line on changed copies of it."""

    def __init__(self, root: Path, run: Callable[..., Any]) -> None:
        self.root, self._run = root, run
        self.good = root / "good"
        self.good.mkdir()
        self.tracer = root / "robustsnn_tracer.py"
        self.mark, self.heard = root / "marked", root / "heard"
        self.tracer.write_text(f"from pathlib import Path\nPath({str(self.mark)!r}).touch()\n")
        self._make()

    def _make(self) -> None:
        make_checkpoint(self.good / "ann", "ann", seed=1)
        make_checkpoint(self.good / "snn", "snn", substitute="../good/ann")
        make_checkpoint(
            self.good / "start", "ann", classes=2, widths=(2, 2, 2), classifier=(8,),
            mean=(0.286,), std=(0.353,),
        )  # fmt: skip
        rng = np.random.default_rng(0)
        for split in ("train", "test"):
            for name in ("even", "odd"):
                (self.good / "images" / split / name).mkdir(parents=True)
                for k in range(6):
                    pixels = rng.integers(0, 256, (28, 28), dtype=np.uint8)
                    Image.fromarray(pixels).save(self.good / "images" / split / name / f"{k}.png")
        (self.good / "recipe.yaml").write_text(RECIPE)
        (self.good / "suite.yaml").write_text(SUITE)
        asked = ["--samples", "3", "--energy"]
        for name, attacks in (
            ("run", ["--attack", "fgsm", "--attack", "pgd:steps=2", "--epsilon", "8/255,0.01"]),
            ("cascade", ["--suite", "suite.yaml"]),
        ):
            done = self._run(["evaluate", "snn", *attacks, *asked, "--output", name], self.good, {})
            assert done.returncode == 0, done.stderr

    def commands(self, file: str, rng: random.Random) -> tuple[str, ...]:
        """A command that reads a file."""
        folder = file.partition("/")[0]
        if file == "recipe.yaml":
            return ("train", file, "--data-root", "images", "--output", "trained")
        if file == "suite.yaml":
            return ("evaluate", "snn", "--suite", file, "--samples", "2", "--output", "new")
        if folder in ("run", "cascade"):
            asked = ["--samples", "3", "--energy", "--output", folder]
            again = ["--attack", "fgsm", "--attack", "pgd:steps=2", "--epsilon", "8/255,0.01"]
            if folder == "cascade":
                again = ["--suite", "suite.yaml"]
            verbs = [
                ("verify", folder),
                ("verify", folder),
                ("verify", folder),
                ("evaluate", "snn", *again, *asked),
                ("report", folder, "--output", "page"),
                ("report", folder, "--output", "page", "--diagnose-again"),
            ]
            return rng.choice(verbs)
        return ("evaluate", folder, "--attack", "fgsm", "--samples", "2", "--output", "new")

    def draw(self, rng: random.Random) -> Input:
        """An input, drawn at random."""
        runs = ("manifest.json",) * 4 + (
            "records.parquet", "results.csv", "activity.parquet", "examples.safetensors",
        )  # fmt: skip
        file = rng.choice(
            [
                *(("suite.yaml",) * 4),
                *(("recipe.yaml",) * 3),
                *(("snn/model.json",) * 3),
                "snn/model.safetensors",
                *(f"{rng.choice(('run', 'run', 'cascade'))}/{name}" for name in runs),
            ]
        )
        content, change = changed(self.good / file, rng, str(self.tracer))
        return Input(file, content, self.commands(file, rng), change)

    def try_on(self, given: Input) -> Outcome:
        """Run the command on an input in a folder of its own, and look at what it did."""
        with tempfile.TemporaryDirectory(dir=self.root) as scratch:
            base = Path(scratch)
            where, temporary = base / "given" / "here", base / "temporary"
            shutil.copytree(self.good, where)
            temporary.mkdir()
            (where / given.file).write_bytes(given.content)
            before = _listing(base)
            began = time.monotonic()
            done = self._run(
                list(given.command),
                where,
                {warm_cli.AUDIT: str(self.heard), "TMPDIR": str(temporary)},
            )
            seconds = time.monotonic() - began
            left = sorted(_listing(base) - before)
        faults = _faults(done.returncode, done.stderr, seconds, left, given)
        if self.mark.exists() or (self.heard.exists() and self.heard.read_text()):
            faults.append("it executed what the file names")
            self.mark.unlink(missing_ok=True)
            self.heard.unlink(missing_ok=True)
        return Outcome(given, done.returncode, seconds, done.stderr, tuple(faults))


def _listing(base: Path) -> set[str]:
    return {str(path.relative_to(base)) for path in base.rglob("*")}


def _faults(code: int, stderr: str, seconds: float, left: list[str], given: Input) -> list[str]:
    faults = []
    if "Traceback" in stderr:
        faults.append("a traceback")
    if code not in CODES:
        faults.append(f"exit code {code}")
    if code == 2 and len(stderr.splitlines()) != 1:
        faults.append(f"{len(stderr.splitlines())} lines on stderr")
    if seconds > LIMIT:
        faults.append(f"{seconds:.0f} seconds")
    # torch makes a folder of its own when parts of it are imported.
    left = [path for path in left if "torchinductor_" not in path]
    allowed = ("new", "page", "trained")
    written = [
        path for path in left
        if not path.startswith(tuple(f"given/here/{name}" for name in allowed))
        or (code == 2 and not path.startswith("given/here/new"))
    ]  # fmt: skip
    if given.command[0] == "evaluate" and code != 2:
        # The folder of a run that goes on is written to.
        written = [path for path in written if not path.startswith("given/here/")]
    if written:
        faults.append(f"left behind: {', '.join(written[:5])}")
    return faults


# --- changes -------------------------------------------------------------------------------------


def values(rng: random.Random, tracer: str) -> Any:
    """A value that a field may not expect."""
    deep: Any = []
    for _ in range(rng.choice((3, 200))):
        deep = [deep]
    numbers = [0, 1, 2, -1, 7, 10**6, 2**31, 2**63, 10**400, 0.5, -0.5, 1e-300, 1e300]
    numbers += [float("nan"), float("inf"), 0.031]
    texts = [
        *("", " ", "x", "x" * 300, "..", "../..", "/", "/etc/passwd", "~", "\0", "\n", "\u202e"),
        *("8/255", "1e300", "8/0", "nan", "-1", "Linf", "L2", "best", "bptt", "fgsm", "none"),
        *("true", "null", "vgg16", "snn", "ann", "A", "clean", "worst-case", "=1+1", "<b>", "é"),
        *("torchattacks:PGD:steps=0", "pgd:steps=0", "bptt:arctan(width=0)", "transfer:fgsm"),
        *("robustsnn_tracer:build", tracer, f"bptt:{tracer}", f"transfer:{tracer}"),
    ]
    others = [None, True, False, [], {}, [None], {"a": 1}, [[]], deep, "\ud800"]
    return rng.choice([*numbers, *texts, *others])


def change(document: Any, rng: random.Random, tracer: str) -> tuple[Any, str]:
    """A JSON-like document with one place changed, and what was changed."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        inside = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in list(inside):
            places.append((node, key))
            if isinstance(value, dict | list):
                walk(value)

    walk(document)
    if not places:
        return document, "nothing"
    # Shallow places are few, so the deep ones of long lists must not crowd them out.
    shallow = [place for place in places if place[0] is document]
    node, key = rng.choice(shallow if rng.random() < 0.4 else places)
    how = rng.random()
    if how < 0.2:
        del node[key]
        return document, f"dropped {key!r}"
    if how < 0.3 and isinstance(node, dict):
        node[str(values(rng, tracer))] = node.pop(key)
        return document, f"renamed {key!r}"
    if how < 0.4 and isinstance(node, list):
        node.extend([node[key]] * rng.choice((1, 3, 50)))
        return document, f"repeated {key!r}"
    if how < 0.5:
        other, another = rng.choice(places)
        try:
            node[key] = json.loads(json.dumps(other[another]))
        except (KeyError, IndexError, TypeError):
            node[key] = None
        return document, f"{key!r} became {another!r}"
    node[key] = values(rng, tracer)
    return document, f"{key!r} = {node[key]!r}"[:120]


def tame(document: Any) -> Any:
    """The document with counts that are allowed and would only take long made small."""
    if isinstance(document, dict):
        for key, value in document.items():
            counts = ("epochs", "steps", "periods", "draws", "time_steps")
            if key in counts and isinstance(value, int) and 20 < value < 2**31:
                document[key] = 2
            else:
                tame(value)
    elif isinstance(document, list):
        for value in document:
            tame(value)
    return document


def changed(path: Path, rng: random.Random, tracer: str) -> tuple[bytes, str]:
    """The content of a file with some change, and what was changed."""
    content = path.read_bytes()
    if rng.random() < 0.08:
        return _cut(content, rng)
    if path.suffix == ".json" or path.suffix == ".yaml":
        reads = path.suffix == ".json"
        document = json.loads(content) if reads else yaml.safe_load(content)
        said = []
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            document, what = change(document, rng, tracer)
            said.append(what)
        document = tame(document)
        try:
            text = json.dumps(document) if reads else yaml.safe_dump(document, allow_unicode=True)
            return text.encode("utf-8", "surrogatepass"), "; ".join(said)
        except (ValueError, TypeError, RecursionError):
            return _cut(content, rng)
    if path.suffix in (".parquet", ".csv"):
        return _table(path, rng, tracer)
    return _cut(content, rng)


def _cut(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    at = rng.randrange(len(content) or 1)
    how = rng.randrange(4)
    if how == 0:
        return content[:at], f"cut at {at}"
    if how == 1:
        return b"", "emptied"
    if how == 2:
        flipped = bytes([content[at] ^ (1 << rng.randrange(8))])
        return content[:at] + flipped + content[at + 1 :], f"flipped a bit at {at}"
    return content[:at] + rng.randbytes(16) + content[at:], f"16 bytes at {at}"


def _table(path: Path, rng: random.Random, tracer: str) -> tuple[bytes, str]:
    """A table with a column or some rows changed."""
    reads = path.suffix == ".parquet"
    frame = pd.read_parquet(path) if reads else pd.read_csv(path, dtype=str, keep_default_na=False)
    name = rng.choice(list(frame.columns))
    how = rng.randrange(6)
    if how == 0:
        frame, said = frame.drop(columns=name), f"dropped {name}"
    elif how == 1:
        # No table holds half of a character.
        other = str(values(rng, tracer))[:50].encode(errors="replace").decode()
        frame, said = frame.rename(columns={name: other}), f"renamed {name}"
    elif how == 2:
        kept = sorted(rng.sample(range(len(frame)), rng.randrange(len(frame))))
        frame, said = frame.iloc[kept], f"kept {len(kept)} rows"
    elif how == 3:
        frame, said = pd.concat([frame] * rng.choice((2, 40))), "repeated rows"
    else:
        value = values(rng, tracer)
        frame, said = frame.astype({name: object}), f"{name} = {value!r}"[:80]
        rows = range(len(frame)) if how == 4 else [rng.randrange(len(frame))]
        for row in rows:
            frame.iat[row, list(frame.columns).index(name)] = value
    target = path.with_name(f"changed-{path.name}")
    try:
        if not reads:
            return frame.to_csv(index=False).encode("utf-8", "surrogatepass"), said
        frame.to_parquet(target)
        return target.read_bytes(), said
    except Exception:
        # Not every value fits into a column of Parquet.
        return _cut(path.read_bytes(), rng)
    finally:
        target.unlink(missing_ok=True)


def warm_runner() -> tuple[Callable[..., Any], Callable[[], None]]:
    """The command line without the seconds of starting, and what ends it."""
    kept = {k: v for k, v in cli_environment().items() if k not in (warm_cli.AUDIT, "TMPDIR")}
    kept["PYTHONWARNINGS"] = "ignore"
    warm = warm_cli.WarmCli(kept)

    def run(arguments: list[str], where: Path, more: Mapping[str, str]) -> Any:
        return warm.run(arguments, where, {**kept, **more})

    return run, warm.close


def main() -> int:
    """Try some inputs, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inputs", type=int, nargs="?", default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    asked = parser.parse_args()
    run, close = warm_runner()
    codes: Counter[int] = Counter()
    faulty = slowest = tried = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        target = Target(Path(scratch), run)
        for number in range(asked.inputs):
            if time.monotonic() - began > asked.seconds:
                break
            found = target.try_on(target.draw(random.Random(f"{asked.seed}:{number}")))
            tried += 1
            codes[found.code] += 1
            slowest = max(slowest, round(found.seconds))
            if found.faults:
                faulty += 1
                print(f"{number}: {found.given.file}, {found.given.change}")
                print(f"  {' '.join(found.given.command)}: {'; '.join(found.faults)}")
                print(f"  {found.stderr.strip()[-600:]}", flush=True)
    close()
    spread = ", ".join(f"{code}: {n}" for code, n in sorted(codes.items()))
    print(f"{tried} inputs, {faulty} with faults; exit codes {spread}; slowest {slowest} s")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
