"""Does a change leave every number as it was: the suites on three networks, bit for bit.

`python -m tests.same_runs record FILE` evaluates and writes what came out; after the change, and on
the same machine, `python -m tests.same_runs compare FILE` evaluates again and says what differs.
Both take names such as `standard:fashion-mnist/vgg5-snn` to do less. Seconds are left out, since
they are the clock's. `same_runs.json` is what one machine recorded before the packages of
`robustsnn` were laid out as they are; another machine rounds differently, so there only the
identities have to be those, and a test holds them to it. Where it has a level and no verdict, the
level was A: since then that needs 200 images.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

import robustsnn
from tests.traps.networks import TRAPS, trap_images

SUITES = ("quick", "curve", "hire-iccv21", "light", "standard")
NETWORKS = ("fashion-mnist/vgg5-ann", "fashion-mnist/vgg5-snn", "fashion-mnist/resnet12-snn")
POISSON = "rand:poisson"
IMAGES = 20
#: What a black-box attacker crafts on, for networks that name nobody.
SUBSTITUTE = "fashion-mnist/vgg5-snn-b"


def names() -> list[str]:
    """What is evaluated, as `suite:network`."""
    return [f"{suite}:{network}" for suite in SUITES for network in NETWORKS] + [POISSON]


def outcome(name: str) -> dict[str, Any]:
    """What an evaluation says, but for its seconds.

    Args:
        name: One of `names()`.
    """
    suite, _, model = name.partition(":")
    if name == POISSON:
        images, labels = trap_images(IMAGES)
        done = robustsnn.evaluate(TRAPS["poisson"]().network, (images, labels), suite, seed=0)
    else:
        done = robustsnn.evaluate(
            model,
            suite=suite,
            samples=IMAGES,
            seed=0,
            substitute=SUBSTITUTE if suite == "hire-iccv21" else None,
        )
    records = done.records.drop(columns="seconds")
    results = done.results.drop(columns="seconds")
    return {
        "identity": done.manifest.identity,
        "records": _digest(records.to_csv(index=False, float_format="%.17g")),
        "results": _digest(results.to_csv(index=False, float_format="%.17g")),
        "rows": len(records),
        "flags": [[f["flag"], f["severity"], f["sentence"]] for f in done.manifest.flags],
        "flags_whole": _digest(json.dumps(done.manifest.flags, sort_keys=True)),
        "level": done.manifest.verdict["level"],
        "verdict": _digest(json.dumps(done.manifest.verdict, sort_keys=True)),
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The names of what is not the same."""
    return [key for key in before if before[key] != now.get(key)]


def main(arguments: list[str]) -> int:
    """Record or compare; exit 1 where something differs."""
    torch.set_num_threads(1)
    verb, file, *chosen = arguments
    path = Path(file)
    known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    wrong = 0
    for name in chosen or names():
        found = outcome(name)
        if verb == "record":
            known[name] = found
            path.write_text(json.dumps(known, indent=1) + "\n")
            print(f"recorded {name}: {found['rows']} rows, level {found['level']}", flush=True)
            continue
        other = differences(known[name], found)
        wrong += bool(other)
        print(f"{'DIFFERENT' if other else 'the same'}: {name} {' '.join(other)}", flush=True)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
