"""A training run: from a recipe to a checkpoint, epoch by epoch, resumable."""

from __future__ import annotations

import csv
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from robustsnn.common.randomness import derive
from robustsnn.data.datasets import ImageSet, load_dataset, load_training
from robustsnn.errors import InputError
from robustsnn.models.checkpoint import load_network, read_checkpoint, save_checkpoint
from robustsnn.snn.conversion import convert
from robustsnn.snn.network import Network
from robustsnn.training import ann, hybrid
from robustsnn.training import step as updates
from robustsnn.training.adversarial import adversarial_update
from robustsnn.training.augmentation import augment
from robustsnn.training.card import write_card
from robustsnn.training.hire import hire_update
from robustsnn.training.recipe import Recipe, load_recipe
from robustsnn.training.state import STATE, load_state, save_state

Update = Callable[[Network, torch.optim.Optimizer, Tensor, Tensor], updates.Progress]
Log = list[dict[str, Any]]
SCORING_BATCH = 250


def train(
    path: Path,
    data_root: Path | None,
    output: Path | None = None,
    *,
    resume: bool = False,
    overrides: dict[str, Any] | None = None,
    device: str = "cpu",
) -> Path:
    """Train what a recipe describes.

    Each epoch leaves a line in `training.csv` and a state to resume from; the end leaves the
    checkpoint and, unless images were held out, a card with the accuracy on the test set, which
    is scored once. The same recipe on the same machine gives the same weights, resumed or not.

    Args:
        path: The recipe.
        data_root: Where the data set lies.
        output: Folder of the run; by default `training-runs/<name>`.
        resume: Go on from the last finished epoch.
        overrides: Values by dotted field name that replace those of the recipe.
        device: Where to train.

    Raises:
        InputError: Recipe, data or output folder cannot be used.
    """
    recipe = load_recipe(path, overrides)
    folder = output if output is not None else Path("training-runs") / recipe.name
    console = Console(stderr=True)
    training = load_training(recipe.data, data_root)
    _fits(recipe, training)
    held = slice(0, recipe.holdout)
    last = None if recipe.train_images is None else recipe.holdout + recipe.train_images
    used = slice(recipe.holdout, last)
    images, labels = training.tensor(used), torch.from_numpy(training.labels[used]).long()
    if len(images) < recipe.batch_size:
        raise InputError(f"{len(images)} training images are left, fewer than one batch.")
    network = _start(recipe, path, images).to(device).to(memory_format=torch.channels_last)
    optimizer = _optimizer(recipe, network)
    batches = len(images) // recipe.batch_size
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs * batches)
    done, log = 0, Log()
    if resume:
        done, log = load_state(folder, network, optimizer, scheduler, recipe.digest())
    elif folder.exists() and any(folder.iterdir()):
        known = {STATE, "training.csv", "model.json", "model.safetensors", "card.md"}
        if not {p.name for p in folder.iterdir()} <= known:
            raise InputError(f"{folder} holds other files: choose another --output.")
        if (folder / STATE).exists():
            raise InputError(f"{folder} holds an unfinished run: add --resume or remove it.")
    _make(folder)
    update = _method(recipe)
    for epoch in range(done, recipe.epochs):
        started = time.perf_counter()
        summary = _epoch(
            recipe, network, optimizer, scheduler, images, labels, epoch, update, console
        )
        row: dict[str, Any] = {"epoch": epoch + 1, **summary}
        if recipe.holdout:
            row["holdout_accuracy"] = round(
                accuracy(network, training.tensor(held), training.labels[held]), 5
            )
        row["seconds"] = round(time.perf_counter() - started, 1)
        log.append(row)
        save_state(folder, network, optimizer, scheduler, epoch + 1, recipe.digest(), log)
        _write_log(folder / "training.csv", log)
        console.print("  ".join(f"{k} {v}" for k, v in row.items()), highlight=False)
    network = network.to("cpu").to(memory_format=torch.contiguous_format)
    digest = save_checkpoint(
        network,
        folder,
        data=recipe.data,
        class_names=training.class_names,
        substitute=recipe.substitute,
        provenance={
            "recipe": recipe.name,
            "method": recipe.method,
            "recipe_sha256": recipe.digest(),
            "seed": recipe.seed,
            "epochs": recipe.epochs,
            "training_images": len(images),
            "data_fingerprint": training.fingerprint,
            "torch": torch.__version__.split("+")[0],
            "python": platform.python_version(),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        },
    )
    if not recipe.holdout and recipe.train_images is None:
        test = load_dataset(recipe.data, data_root, split="test")
        score = accuracy(network, test.tensor(slice(None)), test.labels)
        write_card(folder, recipe, network, score, len(test), len(images), log, digest)
        console.print(f"test accuracy {score:.4f} on {len(test):,} images", highlight=False)
    (folder / STATE).unlink(missing_ok=True)
    return folder


def _fits(recipe: Recipe, data: ImageSet) -> None:
    shape = tuple(data.tensor(slice(0, 1)).shape[1:])
    if shape != tuple(recipe.network.image):
        raise InputError(
            f"network.image is {list(recipe.network.image)}, {data.name} holds {list(shape)}."
        )
    if len(data.class_names) != recipe.network.classes:
        raise InputError(
            f"network.classes is {recipe.network.classes}, "
            f"{data.name} has {len(data.class_names)} classes."
        )
    if recipe.holdout >= len(data):
        raise InputError(f"holdout {recipe.holdout} leaves nothing of {len(data)} images.")


def _start(recipe: Recipe, path: Path, images: Tensor) -> Network:
    """The network before its first update: drawn from the seed, or converted from its ANN."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(recipe.seed, "weights"))
        if recipe.init is None or recipe.conversion is None:
            return Network(recipe.network)
        nearby = path.parent / recipe.init
        teacher = load_network(
            read_checkpoint(nearby if nearby.is_dir() else recipe.init), device="cpu"
        )
        theirs, ours = teacher.config, recipe.network
        same = ("architecture", "widths", "classifier", "classes", "image", "mean", "std")
        for field in same:
            if getattr(theirs, field) != getattr(ours, field):
                raise InputError(f"init {recipe.init}: its {field} differs from the recipe's.")
        settings = recipe.conversion
        return convert(
            teacher,
            ours,
            [images[: settings.images]],
            scale=settings.scale,
            steps=settings.steps,
            q=settings.percentile,
            leak=settings.leak,
        )


def _optimizer(recipe: Recipe, network: Network) -> torch.optim.Optimizer:
    settings = recipe.optimizer
    # Decay would also shrink thresholds and leaks, which are not weights.
    dynamics = [p for layer in network.spiking_layers().values() for p in layer.parameters()]
    ids = {id(p) for p in dynamics}
    weights = [p for p in network.parameters() if id(p) not in ids]
    groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": settings.weight_decay}]
    if dynamics:
        groups.append({"params": dynamics, "weight_decay": 0.0})
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=True)
    return torch.optim.Adam(groups, lr=settings.lr)


def _method(recipe: Recipe) -> Update:
    if recipe.hire is not None:
        return partial(hire_update, settings=recipe.hire)
    if recipe.adversarial is not None:
        return partial(adversarial_update, settings=recipe.adversarial)
    return ann.update_batch if recipe.method == "ann" else hybrid.update_batch


def _epoch(
    recipe: Recipe,
    network: Network,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    images: Tensor,
    labels: Tensor,
    epoch: int,
    update: Update,
    console: Console,
) -> dict[str, Any]:
    """One pass over the training images; its draws depend on the seed and the epoch only."""
    network.train()
    generator = torch.Generator().manual_seed(derive(recipe.seed, "order", epoch))
    order = torch.randperm(len(images), generator=generator)
    batches = order[: len(order) // recipe.batch_size * recipe.batch_size].split(recipe.batch_size)
    device = next(network.parameters()).device
    loss, correct, seen = 0.0, 0, 0
    with torch.random.fork_rng(devices=[]), _bar(console) as bar:
        torch.manual_seed(derive(recipe.seed, "dropout", epoch))
        task = bar.add_task(f"epoch {epoch + 1}/{recipe.epochs}", total=len(batches), loss=0.0)
        for index in batches:
            batch = augment(images[index], recipe.augmentation, generator)
            batch = batch.to(device, memory_format=torch.channels_last)
            part = update(network, optimizer, batch, labels[index].to(device))
            scheduler.step()
            loss, correct, seen = loss + part.loss, correct + part.correct, seen + part.images
            bar.update(task, advance=1, loss=loss / seen)
    return {
        "loss": round(loss / seen, 5),
        "train_accuracy": round(correct / seen, 5),
        "lr": f"{scheduler.get_last_lr()[0]:.3g}",
    }


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


@torch.no_grad()
def accuracy(network: Network, images: Tensor, labels: Any) -> float:
    """Fraction of images classified right, in evaluation mode; the mode is put back."""
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    truth = torch.as_tensor(labels).long()
    right = 0
    for start in range(0, len(images), SCORING_BATCH):
        part = slice(start, start + SCORING_BATCH)
        logits = network(images[part].to(device), torch.arange(len(images))[part])
        right += int((logits.argmax(1).cpu() == truth[part]).sum())
    network.train(was_training)
    return right / len(images)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".write"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write to {folder} ({error.strerror}): choose --output.") from None


def _write_log(path: Path, log: Log) -> None:
    part = path.with_name(f".{path.name}.part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(log[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(log)
    part.replace(path)
