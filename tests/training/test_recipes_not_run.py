"""The recipes that ship without weights: each trains for one batch on a made-up folder."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from robustsnn.common.content import folder
from robustsnn.models.checkpoint import load_model
from robustsnn.models.zoo import zoo_names
from robustsnn.training.recipe import load_recipe
from robustsnn.training.run import train

NOT_RUN = sorted(
    path.parent.relative_to(folder("zoo")).as_posix()
    for path in folder("zoo").glob("*/*/recipe.yaml")
    if not (path.parent / "model.json").exists()
)
#: One batch of the published network takes a gigabyte; every layer is there in a narrow one too.
NARROW = {"vgg11": {"network.widths": [8] * 8, "network.classifier": [16, 16]},
          "resnet12": {"network.widths": [8] * 4}}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the layout of CIFAR-100 as it is distributed, with noise for images."""
    root = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    rows = []
    for index in range(100):
        stream = io.BytesIO()
        pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(stream, format="PNG")
        rows.append(
            {"img": {"bytes": stream.getvalue(), "path": None}, "fine_label": index,
             "coarse_label": index // 5}
        )  # fmt: skip
    for split in ("train", "test"):
        pq.write_table(pa.Table.from_pylist(rows), root / f"{split}-00000-of-00001.parquet")
    return root


def test_there_are_some_and_none_is_listed() -> None:
    assert {f"cifar100/{a}-{k}" for a in NARROW for k in ("ann", "snn", "snn-hire")} == set(NOT_RUN)
    assert not set(NOT_RUN) & set(zoo_names())


@pytest.mark.parametrize("architecture", NARROW)
def test_a_first_batch_is_trained(architecture: str, images: Path, tmp_path: Path) -> None:
    zoo = tmp_path / "cifar100"
    for end in ("ann", "snn", "snn-hire"):
        name = f"{architecture}-{end}"
        shutil.copytree(folder("zoo") / "cifar100" / name, zoo / name)
        recipe = zoo / name / "recipe.yaml"
        assert "It was never run" in recipe.read_text(encoding="utf-8")
        described = load_recipe(recipe)
        assert described.network.widths is None and described.network.classes == 100
        short = {"epochs": 1, "train_images": 4, "batch_size": 4, **NARROW[architecture]}
        made = train(recipe, images, tmp_path / "made" / name, overrides=short)
        # Where an SNN finds its ANN.
        for file in ("model.json", "model.safetensors"):
            shutil.copy(made / file, zoo / name)
        assert load_model(made).kind == described.network.kind
