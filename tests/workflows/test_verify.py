"""Verification through the command line: an honest run passes, and no forgery of it does.

Each forgery is made twice where that matters: by hand, and by somebody who has read the source and
makes everything that follows from the lie follow from it, the digest of the manifest included.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from robustsnn.data.datasets import load_dataset
from robustsnn.evaluation.digests import run_identity, suite_digest
from robustsnn.evaluation.suites import load_suite
from robustsnn.models.subject import checkpoint_subject
from robustsnn.records.manifest import content_digest, read_manifest
from robustsnn.workflows.rediagnose import diagnosis_of

SAMPLES = 24
SUITE = """
name: mine
epsilon: [8/255, 16/255]
energy: true
entries:
- {label: Noise, attack: gaussian-noise}
- {label: FGSM, attack: fgsm}
- {label: PGD, attack: "pgd:steps=6"}
- {label: Black box, attack: "transfer:fgsm", substitute: true}
"""


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, run_warm: Any, checkpoints: Path) -> Path:
    """A run with all its images, made by the command line."""
    root = tmp_path_factory.mktemp("honest")
    (root / "suite.yaml").write_text(SUITE)
    asked = ["--suite", "suite.yaml", "--samples", str(SAMPLES), "--save-images"]
    done = run_warm(["evaluate", str(checkpoints / "snn"), *asked, "--output", "run"], root)
    assert done.returncode == 0, done.stderr
    return root / "run"


class Forger:
    """A copy of a run that can be edited, file by file."""

    def __init__(self, source: Path, target: Path) -> None:
        self.folder = Path(shutil.copytree(source, target))
        self.manifest = json.loads((self.folder / "manifest.json").read_text())
        self.records = pd.read_parquet(self.folder / "records.parquet")
        self.results = pd.read_csv(self.folder / "results.csv", dtype=str, keep_default_na=False)
        self.activity = pd.read_parquet(self.folder / "activity.parquet")
        self.saved = dict(load_file(self.folder / "examples.safetensors"))

    def write(self) -> None:
        (self.folder / "manifest.json").write_text(json.dumps(self.manifest))
        self.records.to_parquet(self.folder / "records.parquet")
        self.results.to_csv(self.folder / "results.csv", index=False)
        self.activity.to_parquet(self.folder / "activity.parquet")
        save_file(
            {k: np.ascontiguousarray(v) for k, v in self.saved.items()},
            self.folder / "examples.safetensors",
        )

    def seal(self) -> None:
        """Write a digest that fits the manifest."""
        self.manifest["digest"] = content_digest(self.manifest)
        self.write()

    def follow(self) -> None:
        """Let suite digest, identity, flags, level, ledger and results follow from the lie."""
        said = self.manifest
        fields = {
            "name": said["suite"],
            "version": said["suite_version"],
            "norm": said["norm"],
            "epsilon": said["epsilon"].split(", "),
            "fixed": False,
            "attack_misclassified": said["attack_misclassified"],
            "cascade": said["cascade"],
            "curve": said["curve"],
            "draws": said["draws"],
            "energy": "synaptic_operations" in self.records,
            "entries": said["entries"],
        }
        said["suite_sha256"] = suite_digest(fields)
        substitute = said["substitute"] and checkpoint_subject(said["substitute"]).identity
        said["identity"] = run_identity(
            model=checkpoint_subject(said["origin"]).identity,
            data=[said["data_fingerprint"], said["data"], said["samples"]],
            suite=[said["suite"], said["suite_version"], said["suite_sha256"], []],
            substitute=substitute,
            seed=said["seed"],
            save_images=said["save_images"],
        )
        self.write()
        found = diagnosis_of(read_manifest(self.folder), self.records)
        said.update(json.loads(json.dumps(found.fields())))
        self.results = found.results
        self.seal()


@pytest.fixture
def forger(honest: Path, tmp_path: Path) -> Forger:
    return Forger(honest, tmp_path / "run")


def test_an_honest_run_is_verified(warm, honest, checkpoints, tmp_path):
    fine = warm("verify", honest)
    assert fine.returncode == 0, fine.stdout + fine.stderr
    assert fine.stdout.splitlines()[-1] == f"verified: all of {SAMPLES} images."
    assert read_manifest(honest).digest in fine.stdout
    again = warm("verify", honest, "--attack-again", "5")
    assert again.returncode == 0, again.stdout + again.stderr


def test_what_was_not_saved_is_verified_in_part(warm, checkpoints, tmp_path):
    done = warm("evaluate", checkpoints / "ann", "--samples", "40", "--attack", "fgsm",
                "--output", "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = warm("verify", "run")
    assert said.returncode == 3, said.stdout + said.stderr
    assert said.stdout.splitlines()[-1] == "partly verified: 24 of 40 images."


def test_data_that_is_not_at_hand_is_told(warm, forger, tmp_path):
    # A folder that holds no such images.
    (tmp_path / "empty").mkdir()
    said = warm("verify", "run", "--data-root", "empty")
    assert said.returncode == 3, said.stdout + said.stderr
    assert "the data set is not at hand" in said.stdout.splitlines()[-1]


def test_an_older_run_is_verified_in_part(warm, forger):
    del forger.manifest["digest"]
    forger.write()
    said = warm("verify", "run")
    assert said.returncode == 3 and "no digest" in said.stdout, said.stdout


def test_where_the_model_lay_is_no_claim(warm, forger):
    """It may be mended by hand, and seconds are those of a machine."""
    forger.manifest["origin"], kept = "/nowhere/anymore", forger.manifest["origin"]
    forger.write()
    said = warm("verify", "run", "--model", kept)
    assert said.returncode == 0, said.stdout + said.stderr


# --- forgeries -----------------------------------------------------------------------------------


def attacked(forger: Forger) -> Any:
    return forger.records["attack"] != "clean"


def all_robust(forger: Forger) -> None:
    """Every proposal becomes the clean image, which the network is right about."""
    rows, clean = attacked(forger), forger.records[~attacked(forger)].set_index("image_id")
    ids = forger.records.loc[rows, "image_id"]
    for name in ("prediction", "margin", "synaptic_operations", "draws_right"):
        forger.records.loc[rows, name] = ids.map(clean[name]).to_numpy()
    forger.records.loc[rows, ["linf", "l2"]] = 0.0
    forger.records.loc[rows, "success"] = False
    for name in list(forger.saved):
        if name.startswith("adversarial/"):
            forger.saved[name] = forger.saved["clean"].copy()
        if name.startswith("prediction/"):
            forger.saved[name] = forger.saved["prediction/clean"].copy()


def all_robust_with_noise(forger: Forger) -> None:
    """The proposals of one attack become harmless noise of the right size, scored as they should.

    The forger shows every other attack the proposals of the noise that ships.
    """
    noise = forger.records[forger.records["attack"] == "noise"]
    for (attack, epsilon), rows in forger.records.groupby(["attack", "epsilon"]):
        if attack in ("clean", "noise"):
            continue
        same = noise[noise["epsilon"] == epsilon].set_index("image_id")
        ids = rows["image_id"]
        for name in (
            *("prediction", "margin", "synaptic_operations", "draws_right", "success"),
            *("linf", "l2"),
        ):
            forger.records.loc[rows.index, name] = ids.map(same[name]).to_numpy()
        for kind in ("adversarial", "prediction"):
            forger.saved[f"{kind}/{attack}@{epsilon}"] = forger.saved[f"{kind}/noise@{epsilon}"]


def keep(forger: Forger, ids: list[int], renumber: bool = False) -> None:
    """Only some of the images."""
    where = [i for i, one in enumerate(forger.saved["image_id"].tolist()) if one in ids]
    forger.saved = {name: values[where] for name, values in forger.saved.items()}
    forger.records = forger.records[forger.records["image_id"].isin(ids)].reset_index(drop=True)
    forger.manifest["samples"] = forger.manifest["activity_images"] = len(ids)
    if renumber:
        numbers = {one: i for i, one in enumerate(ids)}
        forger.records["image_id"] = forger.records["image_id"].map(numbers)
        forger.saved["image_id"] = np.arange(len(ids))


def robust_ids(forger: Forger) -> list[int]:
    right = forger.records["prediction"] == forger.records["label"]
    every = right.groupby(forger.records["image_id"]).all()
    found: list[int] = every.index[every].tolist()
    return found or forger.records["image_id"].unique().tolist()[:5]


def other_images(forger: Forger) -> None:
    """Images of the data set that were not asked for, in the place of the first ones."""
    other = load_dataset("fashion-mnist", None, samples=200).tensor().numpy()[-SAMPLES:]
    shift = other - forger.saved["clean"]
    for name in ("clean", *(n for n in forger.saved if n.startswith("adversarial/"))):
        forger.saved[name] = np.clip(forger.saved[name] + shift, 0, 1)


def relabelled(old: str, new: str) -> Callable[[Forger], None]:
    """A size under another name, everywhere."""

    def lie(forger: Forger) -> None:
        held = json.dumps(forger.manifest).replace(old, new)
        forger.manifest = json.loads(held)
        for frame in (forger.records, forger.results):
            frame["epsilon"] = frame["epsilon"].replace(old, new)
        forger.saved = {name.replace(old, new): v for name, v in forger.saved.items()}

    return lie


def more_steps(forger: Forger) -> None:
    for place, entry in enumerate(forger.manifest["entries"]):
        if entry["attack"] == "pgd:steps=6":
            forger.manifest["entries"][place] = {**entry, "attack": "pgd:steps=100"}
    for stage in forger.manifest["stages"]:
        if stage["attack"] == "pgd":
            stage["steps"] = 100


def without_pgd(forger: Forger, entry: bool) -> None:
    forger.records = forger.records[forger.records["attack"] != "pgd"].reset_index(drop=True)
    forger.saved = {name: v for name, v in forger.saved.items() if "/pgd@" not in name}
    if entry:
        kept = [e for e in forger.manifest["entries"] if e["label"] != "PGD"]
        forger.manifest["entries"] = kept
        forger.manifest["stages"] = [s for s in forger.manifest["stages"] if s["attack"] != "pgd"]


def says(**changes: Any) -> Callable[[Forger], None]:
    return lambda forger: forger.manifest.update(changes)


def raised(name: str, key: str, factor: float = 0.5) -> Callable[[Forger], None]:
    return lambda forger: forger.manifest[name].update({key: forger.manifest[name][key] * factor})


def column(frame: str, name: str, value: Any) -> Callable[[Forger], None]:
    def lie(forger: Forger) -> None:
        table = getattr(forger, frame)
        table[name] = value(table) if callable(value) else value

    return lie


def named_quick(forger: Forger) -> None:
    forger.manifest.update(suite="quick", suite_version=load_suite("quick").version)
    forger.records["suite"] = "quick"


def fewer_spikes(forger: Forger) -> None:
    forger.activity["spikes_per_neuron"] *= 0.9


def cheaper_layers(forger: Forger) -> None:
    for layer in forger.manifest["operations"]:
        for name, value in layer.items():
            if isinstance(value, float):
                layer[name] = value / 2


def passed_checks(forger: Forger) -> None:
    forger.manifest["preflight"] = [
        {**row, "passed": False} if row["check"] == "repeatable" else row
        for row in forger.manifest["preflight"]
    ]


#: Lies, and what the last line says of them. Whoever tells them lets all else follow.
LIES: dict[str, tuple[Callable[[Forger], Any], str]] = {
    "all robust": (all_robust, "left"),
    "all robust under noise": (all_robust_with_noise, "one step of FGSM breaks"),
    "other images": (other_images, "the saved clean images are not those of the data set"),
    "the robust images kept": (lambda f: keep(f, robust_ids(f)), "not those of the data set"),
    "the robust images kept and numbered anew": (
        lambda f: keep(f, robust_ids(f), renumber=True),
        "the images are not the first",
    ),
    "fewer images": (lambda f: keep(f, list(range(20))), "the images are not the first 20"),
    "the size raised": (relabelled("16/255", "64/255"), "goes further than"),
    "the size lowered": (relabelled("16/255", "4/255"), "outside their ball"),
    "more steps": (more_steps, "its steps take 100"),
    "an attack dropped from the records": (
        lambda f: without_pgd(f, entry=False),
        "the records lack pgd Linf 8/255",
    ),
    "a name of ours": (named_quick, "is not the one of that name"),
    "estimators of its own": (says(suite="custom-under-bptr"), "in place of the entries' own"),
    "class names": (says(class_names=[*"abcdefghij"]), "the names of the classes"),
    "the fingerprint": (says(data_fingerprint="0" * 16), "the images are not the first"),
    "another data set": (says(data="mnist"), "the names of the classes are not those of the data"),
    "the architecture": (says(architecture="vgg16"), 'architecture "vgg16" does not follow'),
    "the time steps": (says(time_steps=1), "time_steps 1 does not follow"),
    "the method": (says(method="adversarial"), "method"),
    "deterministic": (says(stochastic=True), "stochastic"),
    "the substitute": (says(substitute_sha256="0" * 64), "substitute_sha256"),
    "what was left out": (says(left_out=["Square"]), "left_out"),
    "the sizes": (says(sizes=["8/255"]), "the sizes in the manifest"),
    "the energy": (raised("energy", "ann_uj"), "the energy in the manifest"),
    "the counts": (raised("counts", "synaptic_operations"), "the counts in the manifest"),
    "the layers": (cheaper_layers, "the operations in the manifest"),
    "the spikes": (fewer_spikes, "activity.parquet"),
    "a check": (passed_checks, "the check repeatable is passed"),
    "the label": (column("records", "label", lambda r: r["prediction"]), "labels"),
    "the seed of the rows": (column("records", "seed", 7), "the column seed"),
    "the model of the rows": (column("records", "model", "better"), "the column model"),
    "the estimator": (
        column("records", "estimator", lambda r: r["estimator"].replace("bptt", "hart")),
        "estimator",
    ),
    "success": (column("records", "success", False), "the column success"),
    "the distances": (column("records", "linf", lambda r: r["linf"] / 2), "the linf of"),
    "the margins": (column("records", "margin", lambda r: r["margin"] * 3), "the margins of"),
    "less than no time": (column("records", "seconds", -1.0), "counts that cannot be"),
    "a cascade": (says(cascade=True), "has rows of its own"),
    "no weights": (says(densities=None), "does not state the weights"),
    "no spikes": (says(activity_images=None), "does not say how many spikes"),
    "a file": (says(files={"mine.py": "0" * 64}), "files"),
    "another basis": (says(basis="0" * 64), "basis"),
    "nothing counted": (says(uncounted="it is new"), "what could not be counted"),
    "the operations": (
        column("records", "synaptic_operations", lambda r: r["synaptic_operations"] / 2),
        "synaptic operations",
    ),
}
#: Lies that are told by hand, in one place.
BY_HAND: dict[str, tuple[Callable[[Forger], Any], str]] = {
    "versions": (lambda f: f.manifest["versions"].update(torch="1.0"), "its digest is another"),
    "the machine": (says(machine={"processor": "abacus", "cores": 1}), "its digest is another"),
    "the start": (says(start="1999-12-31T23:59:59+00:00"), "its digest is another"),
    "the command": (says(command=["robustsnn", "prove"]), "its digest is another"),
    "the seed": (says(seed=1), "the identity of the run"),
    "the identity": (says(identity="0" * 64), "the identity of the run"),
    "the suite digest": (says(suite_sha256="0" * 64), "the digest of the suite"),
    "the version of the suite": (says(suite_version=9), "the digest of the suite"),
    "flags": (says(flags=[{"flag": "ties", "severity": "caution", "rows": []}]), "do not follow"),
    "the level": (
        says(verdict={"level": "A", "sentence": "A.", "next": "Quote it.", "because": []}),
        "the level is stated as A",
    ),
    "the ledger": (says(ledger=[]), "the ledger in the manifest"),
    "the diagnostics": (says(diagnostics=[]), "the diagnostics in the manifest"),
    "an attack dropped with its entry": (lambda f: without_pgd(f, True), "the digest of the suite"),
    "n": (says(samples=1000), "not a record of each image"),
    **{
        f"results: {name}": (column("results", name, "7"), "results.csv do not follow")
        for name in (
            *("model", "data", "samples", "suite", "estimator", "substitute", "steps", "restarts"),
            *("seed", "accuracy", "ci_low", "ci_high", "attack_success_rate", "mean_linf"),
            *("mean_l2", "forward_passes", "backward_passes", "flags", "draws_accuracy"),
            *("synaptic_operations", "certified"),
        )
    },
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_from_which_all_else_follows_is_told(warm, forger, lie):
    tell, reason = LIES[lie]
    tell(forger)
    forger.follow()
    said = warm("verify", "run")
    assert said.returncode == 1, said.stdout + said.stderr
    last = said.stdout.splitlines()[-1]
    assert last.startswith("not verified: ") and reason in last, last


@pytest.mark.parametrize("lie", BY_HAND)
def test_a_lie_in_one_place_is_told(warm, forger, lie):
    tell, reason = BY_HAND[lie]
    tell(forger)
    forger.write()
    said = warm("verify", "run")
    assert said.returncode == 1, said.stdout + said.stderr
    last = said.stdout.splitlines()[-1]
    assert last.startswith("not verified: ") and reason in last, last


def test_attacked_again_tells_who_never_attacked(warm, honest, tmp_path):
    """Attacks of which nobody can say how far they go leave their number to a second run."""
    forger = Forger(honest, tmp_path / "run")
    broken = forger.records[(forger.records["attack"] == "pgd") & forger.records["success"]]
    assert broken["image_id"].nunique() > 0.2 * SAMPLES
    all_robust_with_noise(forger)
    forger.follow()
    said = warm("verify", "run", "--attack-again", "100")
    assert said.returncode == 1
    assert "fell that the run calls robust" in said.stdout.splitlines()[-1]
    assert "attacked again" in said.stdout


def test_attacked_again_tells_what_attacks_cost(warm, forger):
    """Searches that were shorter than they are said to be, and gradients that were missing."""
    rows = attacked(forger)
    forger.records.loc[rows, ["forward_passes", "backward_passes"]] *= 10
    forger.records.loc[rows & (forger.records["attack"] == "fgsm"), "zero_grad"] = 10
    forger.follow()
    said = warm("verify", "run", "--attack-again", "100")
    assert said.returncode == 1, said.stdout + said.stderr
    last = said.stdout.splitlines()[-1]
    assert "fgsm takes 1 forward passes per image, and the run says 10" in last, last
    assert "of the gradients of fgsm are all zero, and the run says 100%" in last, last


#: A curve in L2 with steps of its own length, and entries of one label for other networks.
CURVE = """
name: walked
norm: L2
epsilon: [0.8, 1.6]
curve: true
energy: true
entries:
- {label: Noise, attack: gaussian-noise}
- {label: PGD, attack: "pgd:steps=6,step_size=0.4", kinds: [snn]}
- {label: PGD, attack: gaussian-noise, kinds: [ann]}
"""


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory, run_warm: Any, checkpoints: Path) -> Path:
    root = tmp_path_factory.mktemp("walked")
    (root / "suite.yaml").write_text(CURVE)
    asked = ["--suite", "suite.yaml", "--samples", str(SAMPLES), "--save-images"]
    done = run_warm(["evaluate", str(checkpoints / "snn"), *asked, "--output", "run"], root)
    assert done.returncode == 0, done.stderr
    return root / "run"


def test_entries_of_one_label_are_told_apart_by_their_networks(warm, walked):
    said = warm("verify", walked)
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [(("0.8", "1.6"), "one step of FGSM breaks"), (("1.6",), "does not keep what it found")],
)
def test_noise_for_attacks_with_steps_of_their_own_is_told(warm, walked, tmp_path, sizes, reason):
    forger = Forger(walked, tmp_path / "run")
    before = forger.records.copy()
    all_robust_with_noise(forger)
    kept = (forger.records["attack"] == "pgd") & ~forger.records["epsilon"].isin(sizes)
    forger.records[kept] = before[kept]
    pgd = forger.records["attack"] == "pgd"
    forger.records.loc[pgd, ["forward_passes", "backward_passes"]] = 8
    if "0.8" not in sizes:
        forger.saved["adversarial/pgd@0.8"] = load_file(walked / "examples.safetensors")[
            "adversarial/pgd@0.8"
        ]
        forger.saved["prediction/pgd@0.8"] = load_file(walked / "examples.safetensors")[
            "prediction/pgd@0.8"
        ]
    forger.follow()
    said = warm("verify", "run")
    assert said.returncode == 1, said.stdout + said.stderr
    assert reason in said.stdout.splitlines()[-1], said.stdout


def test_a_network_of_code_and_a_file_are_run_only_when_asked_for(warm, checkpoints, tmp_path):
    (tmp_path / "mine.py").write_text(
        "print('mine was run')\nfrom robustsnn.attacks.fgsm import FGSM\nATTACK = FGSM\n"
    )
    done = warm("evaluate", checkpoints / "ann", "--samples", "8", "--attack", "mine.py",
                "--output", "run")  # fmt: skip
    assert done.returncode == 0 and "mine was run" in done.stdout, done.stderr
    said = warm("verify", "run")
    assert said.returncode == 3 and "mine was run" not in said.stdout, said.stdout + said.stderr
    assert "a file of the user's own" in said.stdout
    refused = warm("verify", "run", "--attack-again", "4")
    assert refused.returncode == 2 and "--allow-code" in refused.stderr
    assert "mine was run" not in refused.stdout
    allowed = warm("verify", "run", "--attack-again", "4", "--allow-code")
    assert allowed.returncode == 3 and "mine was run" in allowed.stdout, allowed.stderr
    assert "the suite runs mine.py" in allowed.stderr
    (tmp_path / "mine.py").write_text("print('mine was run')\nATTACK = None\n")
    other = warm("verify", "run", "--attack-again", "4", "--allow-code")
    assert other.returncode == 2 and "is not the file that was run" in other.stderr
    assert "mine was run" not in other.stdout
