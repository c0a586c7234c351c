"""Networks at other numbers of time steps, converted networks, and held thresholds and leaks."""

from __future__ import annotations

from pathlib import Path

import torch

from robustsnn.evaluation.suites import Suite, load_suite
from robustsnn.models.checkpoint import load_network, read_checkpoint
from robustsnn.models.subject import Subject, subject_of
from robustsnn.models.zoo import zoo_folder
from robustsnn.snn.network import Network
from robustsnn.training.run import accuracy, train
from studies.claims.members import CONVERTED, FROM_RATE, RATE, SNN_AT, TRADITIONAL, Member
from studies.claims.study import CONVERSION, GRID, LONG, RAND, STANDARD, STEPS, Bench, Row, about
from studies.shared import root_of

#: The time steps at which networks are evaluated, whatever they were trained with; more of them
#: would make averages over draws too long.
STEPS_OF = {FROM_RATE: (2, 4, 8), TRADITIONAL: (2, 4, 8), SNN_AT: (2, 4, 8), RATE: (2, 4, 8)}
#: The images of converted networks that are classified clean, and those that are attacked.
CLEAN_IMAGES, ATTACKED = 2000, 50
#: The attack on converted networks: averages over few draws, since a pass takes long.
LONG_ATTACK = Suite.model_validate(
    {
        "name": "long",
        "description": "PGD-20 with gradients averaged over draws, for many time steps",
        "epsilon": "8/255",
        "draws": 5,
        "entries": [
            {
                "label": "PGD-20",
                "attack": "pgd:steps=20,loss=margin",
                "estimator": "bptt:draws=4,average=logits",
            }
        ],
    }
)
#: The factors on calibrated thresholds, and the leaks, that are held while a network is trained.
SCALES, LEAKS, GRID_EPOCHS = (0.15, 0.3, 0.6), (1.0, 0.9, 0.75), 3
GRID_PARENT = "fashion-mnist/vgg5-snn"


def at_steps(name: str, steps: int) -> Subject:
    """A network of the zoo that is run over another number of time steps."""
    trained = load_network(read_checkpoint(name))
    config = trained.config.model_copy(update={"time_steps": steps})
    network = Network(config)
    network.load_state_dict(trained.state_dict())
    return subject_of(network, name=f"{name} at T = {steps}")


def steps_rows(member: Member, bench: Bench) -> list[Row]:
    """A network at several numbers of time steps under the strongest attack."""
    if member.kind not in STEPS_OF or member.architecture != "vgg5" or member.seed != 1:
        return []
    original = subject_of(member.name)
    draws = bool(getattr(original.load(), "stochastic", False))
    suite = load_suite(RAND if draws else STANDARD)
    # The same images for both, so that they can be compared.
    images = bench.images(original, bench.of(RAND))
    found = []
    for steps in STEPS_OF[member.kind]:
        subject = at_steps(member.name, steps)
        said = {**about(STEPS, member), "model": subject.name}
        found += bench.measured(said, subject, images, suite)
    return found


def conversion_rows(member: Member, bench: Bench) -> list[Row]:
    """A converted network over many time steps: accuracy, and what an attack leaves."""
    if member.kind != CONVERTED or member.seed != 1:
        return []
    original = subject_of(member.name)
    found = []
    for steps in LONG:
        subject = at_steps(member.name, steps)
        said = {**about(CONVERSION, member), "model": subject.name}
        found += bench.measured(
            said,
            subject,
            bench.images(original, min(ATTACKED, bench.samples or ATTACKED)),
            LONG_ATTACK,
            recompute=8,
        )
        known = [r for r in bench.known(CONVERSION, subject.name) if r["suite"] == "clean"]
        if known or bench.finished_only:
            found += known
            continue
        images = bench.images(original, min(CLEAN_IMAGES, bench.samples or CLEAN_IMAGES))
        if images is None:
            continue
        network = subject.load()
        assert isinstance(network, Network)
        bench.say(f"{subject.name}, {len(images)} clean images")
        score = accuracy(network, images.tensor(), torch.from_numpy(images.labels))
        found.append(
            {
                **said,
                "suite": "clean",
                "attack": "clean",
                "accuracy": score,
                "samples": len(images),
                "steps": steps,
            }
        )
    return found


def grid_rows(bench: Bench) -> list[Row]:
    """Networks with held thresholds and leaks: trained for three epochs, then attacked."""
    found = []
    for scale in SCALES:
        for leak in LEAKS:
            name = f"grid/threshold-{scale:g}-leak-{leak:g}"
            said = {
                "part": GRID, "model": name, "data": "fashion-mnist", "architecture": "vgg5",
                "kind": "held thresholds and leaks", "seed": 1, "scale": scale, "leak": leak,
            }  # fmt: skip
            folder = bench.runs / name
            if not (folder / "model.json").is_file():
                if bench.finished_only:
                    found += bench.known(GRID, name)
                    continue
                trained_with(scale, leak, folder, bench)
            subject = subject_of(folder, name=name)
            images = bench.images(subject, bench.of(STANDARD))
            found += bench.measured(said, subject, images, load_suite(STANDARD))
    return found


def trained_with(scale: float, leak: float, folder: Path, bench: Bench) -> Path:
    """Train the SNN of the zoo again with thresholds and leaks that stay as they are.

    Every threshold is the calibrated one times `scale`, and every leak is `leak`.
    """
    bench.say(f"training with thresholds x {scale:g} and leak {leak:g}")
    checkpoint = read_checkpoint(GRID_PARENT)
    root = None if bench.data_root is None else root_of(bench.data_root, checkpoint.meta)
    return train(
        zoo_folder(GRID_PARENT) / "recipe.yaml",
        root,
        folder,
        resume=(folder / "state.safetensors").is_file(),
        overrides={
            "name": folder.name,
            "dynamics": "held",
            "epochs": GRID_EPOCHS,
            "conversion.scale": scale,
            "conversion.leak": leak,
        },
    )
