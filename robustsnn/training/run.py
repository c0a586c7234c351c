"""A training run: from a recipe to a checkpoint, epoch by epoch; it can be resumed."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
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

from robustsnn.common.files import expanded
from robustsnn.common.randomness import derive
from robustsnn.common.telling import Telling, telling
from robustsnn.data.catalogue import DATASETS
from robustsnn.data.datasets import ImageSet, load_dataset, load_training
from robustsnn.errors import InputError
from robustsnn.models.checkpoint import outline, save_checkpoint
from robustsnn.models.half_precision import rounded
from robustsnn.snn.channels import slim
from robustsnn.snn.network import Network
from robustsnn.training.adversarial import adversarial_update
from robustsnn.training.augmentation import augment
from robustsnn.training.card import write_card
from robustsnn.training.gaussian import gaussian_update
from robustsnn.training.guidance import guided_update
from robustsnn.training.hire import hire_update
from robustsnn.training.output import LOG, check_folder, open_folder, write_log
from robustsnn.training.recipe import Recipe, load_recipe
from robustsnn.training.sparse import SparseTraining
from robustsnn.training.start import check_start, dense_weights, named, start
from robustsnn.training.state import STATE, load_state, save_state
from robustsnn.training.step import BatchOutcome, plain_update

Update = Callable[[Network, torch.optim.Optimizer, Tensor, Tensor], BatchOutcome]
Log = list[dict[str, Any]]
#: The most images of a pass that scores, and the most images times time steps.
SCORING_BATCH, SCORING_STEPS = 250, 1000
#: The most test images whose prediction may change for weights to be stored as float16.
CHANGED_AT_MOST = 5


@dataclass(frozen=True, eq=False)
class _Run:
    """What every epoch works with.

    `data` is the whole train split; `images` and `labels` are the part of it that is trained on.
    `dense_weights` is None unless channels are removed, here or from the network of `init`.
    """

    recipe: Recipe
    folder: Path
    data: ImageSet
    images: Tensor
    labels: Tensor
    network: Network
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.CosineAnnealingLR
    update: Update
    sparse: SparseTraining | None
    dense_weights: int | None
    console: Console
    told: Telling

    def say(self, text: str) -> None:
        """Print a line for the user, on stderr."""
        self.told.line(text)


def train(
    path: Path | str,
    data_root: Path | str | None,
    output: Path | str | None = None,
    *,
    resume: bool = False,
    overrides: dict[str, Any] | None = None,
    device: str = "cpu",
    download: bool = False,
) -> Path:
    """Train what a recipe describes.

    The folder keeps the recipe as it was trained. Each epoch leaves a line in `training.csv` and a
    state to resume from; the end leaves the checkpoint and, unless images were held out, a card
    with the accuracy on the test set, which is scored once. The same recipe on the same machine
    gives the same weights, resumed or not.

    Args:
        path: The recipe.
        data_root: The folder where the data set lies.
        output: The folder of the run; by default `training-runs/<name>`.
        resume: Whether to go on from the last finished epoch.
        overrides: Values by dotted field name that replace those of the recipe.
        device: The device to train on.
        download: Whether missing data are fetched to `data_root`.

    Returns:
        The folder of the run, which is the checkpoint.

    Raises:
        InputError: The recipe, the data or the output folder cannot be used, or training diverged.

    Examples:
        >>> train(Path("no/recipe.yaml"), None)
        Traceback (most recent call last):
            ...
        robustsnn.errors.InputError: no file no/recipe.yaml: name a YAML file.
    """
    path = expanded(path)
    recipe = load_recipe(path, overrides)
    outline(recipe.network, str(path))
    folder = expanded(output) if output is not None else Path("training-runs") / recipe.name
    check_folder(folder, path, recipe, overrides, resume=resume)
    _check_known(recipe)
    check_start(recipe, path)
    update = _update(recipe, path, device)
    with telling("reading the training images") as told:
        data = load_training(recipe.data, data_root, download=download)
        told.now("preparing the network")
        run = _prepared(recipe, path, data, folder, device, update, told)
        done, log = _begun(run) if resume else (0, [])
        open_folder(folder, path, overrides, resume=resume)
        _train(run, done, log)
        _finish(run, data_root, log, download)
    (folder / STATE).unlink(missing_ok=True)
    return folder


def _train(run: _Run, done: int, log: Log) -> None:
    """Train the epochs that are left, each of which leaves a state and a row of the log."""
    for epoch in range(done, run.recipe.epochs):
        log.append(_logged_epoch(run, epoch))
        save_state(
            run.folder,
            run.network,
            run.optimizer,
            run.scheduler,
            epoch + 1,
            run.recipe.digest(),
            log,
            {} if run.sparse is None else run.sparse.masks,
        )
        write_log(run.folder / LOG, log)
        run.say("  ".join(f"{k} {v}" for k, v in log[-1].items()))


def _prepared(
    recipe: Recipe,
    path: Path,
    data: ImageSet,
    folder: Path,
    device: str,
    update: Update,
    told: Telling,
) -> _Run:
    """The run before its first epoch, with a network that was drawn or converted."""
    _check_fit(recipe, data)
    last = None if recipe.train_images is None else recipe.holdout + recipe.train_images
    used = slice(recipe.holdout, last)
    images, labels = data.tensor(used), torch.from_numpy(data.labels[used]).long()
    if len(images) < recipe.batch_size:
        raise InputError(f"{len(images)} training images are left, fewer than one batch.")
    network = start(recipe, path, images).to(device).to(memory_format=torch.channels_last)
    optimizer = _optimizer(recipe, network)
    updates = recipe.epochs * (len(images) // recipe.batch_size)
    sparse = None
    if recipe.sparsity is not None:
        sparse = SparseTraining(recipe, network, optimizer, updates)
    return _Run(
        recipe=recipe,
        folder=folder,
        data=data,
        images=images,
        labels=labels,
        network=network,
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates),
        update=update,
        sparse=sparse,
        dense_weights=dense_weights(recipe, path),
        console=Console(stderr=True),
        told=told,
    )


def _begun(run: _Run) -> tuple[int, Log]:
    """The number of finished epochs and their log, after the state of the folder was put back."""
    done, log, masks = load_state(
        run.folder, run.network, run.optimizer, run.scheduler, run.recipe.digest()
    )
    if run.sparse is not None:
        run.sparse.put_back(masks)
    return done, log


def _logged_epoch(run: _Run, epoch: int) -> dict[str, Any]:
    """One epoch of training, and its row in the log."""
    started = time.perf_counter()
    row: dict[str, Any] = {"epoch": epoch + 1, **_epoch(run, epoch)}
    if run.recipe.holdout:
        run.told.now("scoring the images that are held out")
        held = slice(0, run.recipe.holdout)
        score = accuracy(run.network, run.data.tensor(held), run.data.labels[held])
        row["holdout_accuracy"] = round(score, 5)
    row["seconds"] = round(time.perf_counter() - started, 1)
    return row


def as_stored(network: Network, images: Tensor) -> tuple[Network, int | None, Tensor]:
    """The network as it is to be stored, and what that changes.

    Its weights are rounded to float16 where that changes the prediction of at most 5 of the images.

    Args:
        network: The trained network.
        images: The test images `[n, channel, height, width]`, in pixel units of [0, 1].

    Returns:
        The network, the number of predictions that differ from those before rounding (None for a
        network that is stored as float32), and its predictions, int64 `[n]`.
    """
    before, coarse = predictions(network, images), rounded(network)
    if all(torch.isfinite(p).all() for p in coarse.parameters()):
        after = predictions(coarse, images)
        changed = int((after != before).sum())
        if changed <= CHANGED_AT_MOST:
            return coarse, changed, after
    return network, None, before


def _finish(run: _Run, data_root: Path | str | None, log: Log, download: bool) -> None:
    """Write the checkpoint and, unless images were held out, the card."""
    recipe = run.recipe
    network = run.network.to("cpu").to(memory_format=torch.contiguous_format)
    if recipe.sparsity is not None and recipe.sparsity.pattern == "channel":
        network = slim(network)
    if recipe.holdout or recipe.train_images is not None:
        _save(run, network)
        return
    run.told.now("scoring the test images")
    test = load_dataset(recipe.data, data_root, split="test", download=download)
    images = test.tensor(slice(None))
    network, changed, found = as_stored(network, images)
    digest = _save(run, network, changed)
    score = float((found.numpy() == test.labels).mean())
    about = (score, len(test), len(run.images), log, digest, run.dense_weights, changed)
    write_card(run.folder, recipe, network, *about)
    run.say(f"test accuracy {score:.4f} on {len(test):,} images")


def _save(run: _Run, network: Network, changed: int | None = None) -> str:
    """Write the checkpoint, and return the sha256 of its weights.

    `changed` is the number of predictions that storage as float16 changes; None for float32.
    """
    recipe = run.recipe
    half = {} if changed is None else {"stored_as": "float16", "changed_predictions": changed}
    return save_checkpoint(
        network,
        run.folder,
        data=recipe.data,
        class_names=run.data.class_names,
        substitute=recipe.substitute,
        dense_weights=run.dense_weights,
        half=changed is not None,
        provenance={
            "recipe": recipe.name,
            "method": recipe.trained_by,
            "recipe_sha256": recipe.digest(),
            "seed": recipe.seed,
            "epochs": recipe.epochs,
            "training_images": len(run.images),
            "data_fingerprint": run.data.fingerprint,
            "torch": torch.__version__.split("+")[0],
            "python": platform.python_version(),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            **half,
        },
    )


def _check_fit(recipe: Recipe, data: ImageSet) -> None:
    """Refuse a recipe whose network or holdout does not fit the data."""
    _check_network(recipe, data.name, data.shape, len(data.class_names))
    if recipe.data_fingerprint not in (None, data.fingerprint):
        raise InputError(
            f"the recipe was written for {recipe.data} with the fingerprint "
            f"{recipe.data_fingerprint}, and these images have {data.fingerprint}: give the same "
            "data, or drop data_fingerprint from the recipe."
        )
    if recipe.holdout >= len(data):
        raise InputError(f"holdout {recipe.holdout} leaves nothing of {len(data)} images.")


def _check_known(recipe: Recipe) -> None:
    """Refuse a recipe whose network does not fit a published data set, before that is read."""
    known = DATASETS.get(recipe.data)
    if known is not None:
        _check_network(recipe, known.title, known.shape, known.classes)


def _check_network(recipe: Recipe, name: str, shape: tuple[int, ...], classes: int) -> None:
    if shape != tuple(recipe.network.image):
        raise InputError(
            f"network.image is {list(recipe.network.image)}, {name} holds {list(shape)}."
        )
    if classes != recipe.network.classes:
        raise InputError(
            f"network.classes is {recipe.network.classes}, {name} has {classes} classes."
        )


def _optimizer(recipe: Recipe, network: Network) -> torch.optim.Optimizer:
    """The optimizer of weights, and of the thresholds and leaks that the recipe does not hold."""
    settings = recipe.optimizer
    held = {"learned": (), "thresholds": ("leak",), "held": ("leak", "threshold")}[recipe.dynamics]
    layers = network.spiking_layers().values()
    for layer in layers:
        for name in held:
            getattr(layer, name).requires_grad_(False)
    # Weight decay would also shrink thresholds and leaks, which are not weights.
    dynamics = [parameter for layer in layers for parameter in layer.parameters()]
    ids = {id(p) for p in dynamics}
    weights = [p for p in network.parameters() if id(p) not in ids]
    dynamics = [p for p in dynamics if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": settings.weight_decay}]
    if dynamics:
        groups.append({"params": dynamics, "weight_decay": 0.0})
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=True)
    return torch.optim.Adam(groups, lr=settings.lr)


def _update(recipe: Recipe, path: Path, device: str) -> Update:
    """What the method of the recipe does with a batch."""
    if recipe.guidance is not None:
        teacher = named(recipe.guidance.teacher, path).to(device)
        if teacher.config.architecture != recipe.network.architecture or teacher.kind != "ann":
            raise InputError(
                f"guidance.teacher {recipe.guidance.teacher} is a {teacher.kind} of "
                f"{teacher.config.architecture}: name an ANN of {recipe.network.architecture}."
            )
        return partial(guided_update, settings=recipe.guidance, teacher=teacher)
    if recipe.hire is not None:
        return partial(hire_update, settings=recipe.hire)
    if recipe.gaussian is not None:
        return partial(gaussian_update, settings=recipe.gaussian)
    if recipe.adversarial is not None:
        return partial(adversarial_update, settings=recipe.adversarial)
    return plain_update


def _epoch(run: _Run, epoch: int) -> dict[str, Any]:
    """One pass over the training images; its draws depend on the seed and the epoch only."""
    recipe, network = run.recipe, run.network
    network.train()
    generator = torch.Generator().manual_seed(derive(recipe.seed, "order", epoch))
    order = torch.randperm(len(run.images), generator=generator)
    batches = order[: len(order) // recipe.batch_size * recipe.batch_size].split(recipe.batch_size)
    device = next(network.parameters()).device
    loss, correct, seen = 0.0, 0, 0
    rate = run.scheduler.get_last_lr()[0]
    with torch.random.fork_rng(devices=[]), _bar(run.console) as bar:
        torch.manual_seed(derive(recipe.seed, "dropout", epoch))
        task = bar.add_task(f"epoch {epoch + 1}/{recipe.epochs}", total=len(batches), loss=0.0)
        for number, index in enumerate(batches, start=1):
            batch = augment(run.images[index], recipe.augmentation, generator)
            batch = batch.to(device, memory_format=torch.channels_last)
            part = run.update(network, run.optimizer, batch, run.labels[index].to(device))
            run.scheduler.step()
            if run.sparse is not None:
                run.sparse.after_update(epoch * len(batches) + number)
            loss, correct, seen = loss + part.loss, correct + part.correct, seen + part.images
            bar.update(task, advance=1, loss=loss / seen)
            run.told.now(f"epoch {epoch + 1} of {recipe.epochs}: batch {number} of {len(batches)}")
    row = {
        "loss": round(loss / seen, 5),
        "train_accuracy": round(correct / seen, 5),
        # That of its first update.
        "lr": f"{rate:.3g}",
    }
    return row if run.sparse is None else {**row, "kept": run.sparse.kept()}


def _bar(console: Console) -> Progress:
    """The progress bar of an epoch, on a terminal only."""
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


def accuracy(network: Network, images: Tensor, labels: Any) -> float:
    """The fraction of images that a network classifies right, in evaluation mode.

    Args:
        network: The network; its mode is put back afterwards.
        images: Images `[n, channel, height, width]`, in pixel units of [0, 1].
        labels: True classes `[n]`.
    """
    truth = torch.as_tensor(labels).long()
    return int((predictions(network, images) == truth).sum()) / len(images)


@torch.no_grad()
def predictions(network: Network, images: Tensor) -> Tensor:
    """The predicted classes, int64 `[n]`, in evaluation mode; the arguments are as in `accuracy`.

    A network that draws does so by the place of an image.
    """
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    found = []
    size = max(1, min(SCORING_BATCH, SCORING_STEPS // network.time_steps))
    for begin in range(0, len(images), size):
        part = slice(begin, begin + size)
        logits = network(images[part].to(device), torch.arange(len(images))[part])
        found.append(logits.argmax(1).cpu())
    network.train(was_training)
    return torch.cat(found)
