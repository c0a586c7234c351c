"""Data as people keep it: splits in any spelling, deep and transparent images, text labels."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from robustsnn.data.datasets import load_dataset, load_training
from robustsnn.data.pixels import decode
from robustsnn.data.splits import split_of, split_within
from robustsnn.errors import InputError


def image(path: Path, value: int, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (4, 3), value if mode == "L" else (value,) * 3).save(path)


def values(root: Path, split: str = "test") -> dict[str, list[int]]:
    """The first pixel of each image, by class name."""
    data = load_dataset("folder", root, split)
    found: dict[str, list[int]] = {name: [] for name in data.class_names}
    for pixels, label in zip(data.images, data.labels, strict=True):
        found[data.class_names[label]].append(int(pixels[0, 0, 0]))
    return {name: sorted(numbers) for name, numbers in found.items()}


def refused(root: Path, split: str = "test") -> str:
    with pytest.raises(InputError) as caught:
        load_dataset("folder", root, split)
    return str(caught.value)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        *(("Train", "Test"), ("TRAIN", "TEST"), ("training", "testing"), ("Training", "Testing")),
        *(("train_set", "test_set"), ("training-set", "test-set"), ("trainset", "testset")),
        *(("train_images", "test_images"), ("Training Images", "Test Images"), ("trn", "tst")),
        *(("train", "val"), ("train", "valid"), ("train", "validation"), ("Train", "Validation")),
        *(("train", "dev"), ("train", "eval"), ("imgs_train", "imgs_test"), ("train01", "test01")),
        *(("seg_train", "seg_test"), ("photosTrain", "photosTest"), ("my train", "my validation")),
    ],
)
def test_split_folders_are_splits_and_never_classes(tmp_path, train, test):
    for number, split in enumerate((train, test)):
        for label, name in enumerate(("cat", "dog")):
            image(tmp_path / split / name / "a.png", 10 * number + label)
    assert values(tmp_path, "train") == {"cat": [0], "dog": [1]}
    assert values(tmp_path) == {"cat": [10], "dog": [11]}


def test_test_images_are_preferred_to_validation_images(tmp_path):
    for number, split in enumerate(("Train", "Val", "Test")):
        image(tmp_path / split / "cat" / "a.png", number)
    assert values(tmp_path) == {"cat": [2]}


@pytest.mark.parametrize("around", ["photos", "photos/photos", "archive/my photos"])
def test_folders_around_the_splits_are_not_classes(tmp_path, around):
    image(tmp_path / around / "Train" / "cat" / "a.png", 1)
    image(tmp_path / around / "Test" / "cat" / "a.png", 2)
    (tmp_path / "readme.txt").write_text("")
    assert values(tmp_path) == {"cat": [2]}


def test_a_split_folder_within_itself_is_one_split(tmp_path):
    for number, split in enumerate(("seg_train", "seg_test")):
        for name in ("sea", "street"):
            image(tmp_path / split / split / name / "a.png", number)
    assert values(tmp_path) == {"sea": [1], "street": [1]}


def test_splits_may_lie_within_the_classes(tmp_path):
    for label, name in enumerate(("cat", "dog")):
        image(tmp_path / name / "Train" / "a.png", label)
        image(tmp_path / name / "Test" / "a.png", 10 + label)
    assert values(tmp_path, "train") == {"cat": [0], "dog": [1]}
    assert values(tmp_path) == {"cat": [10], "dog": [11]}


def test_two_spellings_of_one_split_are_not_guessed_at(tmp_path):
    image(tmp_path / "Test" / "cat" / "a.png", 1)
    image(tmp_path / "testing" / "cat" / "a.png", 2)
    assert "both test images" in refused(tmp_path)


def test_split_folders_without_classes_are_not_taken_for_classes(tmp_path):
    image(tmp_path / "Train" / "a.png", 1)
    image(tmp_path / "Test" / "a.png", 1)
    assert "no class folders" in refused(tmp_path)
    assert "no class folders" in refused(tmp_path, "train")


def test_images_beside_each_other_are_told_to_be_sorted(tmp_path):
    image(tmp_path / "cat1.png", 1)
    assert "one folder for each class" in refused(tmp_path)


def test_a_vehicle_is_a_class(tmp_path):
    for number, name in enumerate(("car", "freight_train", "train")):
        image(tmp_path / name / "a.png", number)
    assert values(tmp_path) == {"car": [0], "freight_train": [1], "train": [2]}


def test_names_of_splits():
    assert [split_of(name) for name in ("trainer", "contest", "value", "devil", "latest")] == [
        None
    ] * 5
    assert split_within("train_test_split") is None
    assert split_within("contest") is None


# --- what programs leave behind ------------------------------------------------------------


def test_what_is_not_counted_is_told(tmp_path):
    for name in ("cat", "dog"):
        image(tmp_path / "test" / name / "a.png", 3)
        image(tmp_path / "test" / name / "b.JPEG", 3)
    image(tmp_path / "test" / "cat" / ".ipynb_checkpoints" / "a-checkpoint.png", 9)
    image(tmp_path / "test" / ".ipynb_checkpoints" / "b.png", 9)
    image(tmp_path / "__MACOSX" / "test" / "cat" / "._a.png", 9)
    image(tmp_path / "test" / "dog" / "._a.png", 9)
    image(tmp_path / "test" / "stray.png", 9)
    (tmp_path / "test" / "cat" / "c.heic").write_bytes(b"?")
    (tmp_path / "test" / "cat" / "Thumbs.db").write_bytes(b"?")
    (tmp_path / "test" / "bird").mkdir()
    (tmp_path / "test" / "bird" / "a.avif").write_bytes(b"?")
    data = load_dataset("folder", tmp_path)
    assert len(data) == 4 and data.class_names == ("cat", "dog")
    told = "; ".join(data.notes)
    for said in (
        *("2 files in .ipynb_checkpoints", "1 image in __MACOSX", "1 file with a dot in front"),
        *("1 image outside class folders", "1 file of type .heic", "1 file of type .avif"),
        *("not a class", "bird"),
    ):
        assert said in told, told
    assert "Thumbs" not in told and ".db" not in told
    assert told in repr(data) and "0 = cat, 1 = dog" in repr(data)
    assert load_dataset("folder", tmp_path, samples=2).notes == data.notes


@pytest.mark.slow
def test_the_terminal_tells_the_order_of_the_classes_and_what_is_left_out(tmp_path, cli):
    for number in range(30):
        for label, name in enumerate(("10", "2", "cat")):
            image(tmp_path / "d" / "Test" / name / f"{number}.png", 80 * label + number)
    (tmp_path / "d" / "Test" / "cat" / "x.heic").write_bytes(b"?")
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))\n"
    )
    asked = ["--data", "folder", "--data-root", "d", "--attack", "fgsm", "--samples", "6"]
    done = cli("evaluate", "net:make", *asked)
    assert done.returncode == 0, done.stderr
    assert "classes: 0 = 10, 1 = 2, 2 = cat" in done.stderr
    assert "1 file of type .heic" in done.stderr


def test_a_model_is_not_judged_by_classes_in_another_order(tmp_path):
    import torch

    import robustsnn
    from robustsnn.models.checkpoint import save_checkpoint
    from robustsnn.snn.network import Network, NetworkConfig

    config = {"architecture": "vgg5", "kind": "ann", "classes": 2, "image": (1, 8, 8)}
    config |= {"widths": (2, 2, 2), "classifier": (4,), "mean": (0.5,), "std": (0.5,)}
    torch.manual_seed(0)
    network = Network(NetworkConfig.model_validate(config)).eval()
    names = ("cat", "dog")
    save_checkpoint(network, tmp_path / "m", data="folder", class_names=names, provenance={})
    for root, classes in (("same", ("Cat", "Dog")), ("other", ("bird", "cat"))):
        for name in classes:
            (tmp_path / root / name).mkdir(parents=True)
            Image.new("L", (8, 8), 90).save(tmp_path / root / name / "a.png")
    robustsnn.evaluate(tmp_path / "m", tmp_path / "same", attack="fgsm")
    with pytest.raises(InputError, match=r"0 = cat, 1 = dog.* 0 = bird, 1 = cat"):
        robustsnn.evaluate(tmp_path / "m", tmp_path / "other", attack="fgsm")


# --- pixels --------------------------------------------------------------------------------


def png16(kind: int, channels: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow cannot write in colour."""
    rows = b"".join(
        b"\0" + struct.pack(">" + "H" * 4 * channels, *([257 * 200 + 9] * 4 * channels))
        for _ in range(3)
    )

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    head = struct.pack(">IIBBBBB", 4, 3, 16, kind, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff16() -> bytes:
    """An RGB TIFF of 16 bits a channel."""
    pixels = struct.pack("<" + "H" * 36, *([50_000] * 36))
    entries = [
        (256, 3, 1, 4),
        (257, 3, 1, 3),
        (258, 3, 3, 8 + len(pixels)),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 8),
        (277, 3, 1, 3),
        (278, 3, 1, 3),
        (279, 4, 1, len(pixels)),
    ]
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", *entry) for entry in entries) + b"\0" * 4
    offset = 8 + len(pixels) + 6
    return (
        b"II*\0" + struct.pack("<I", offset) + pixels + struct.pack("<HHH", 16, 16, 16) + directory
    )


@pytest.mark.parametrize(
    "content",
    [
        *(png16(2, 3), png16(6, 4), png16(4, 2), png16(0, 1), tiff16()),
        b"P6 4 3 65535\n" + b"\xc3\x50" * 36,
        b"P5 4 3 65535\n" + b"\xc3\x50" * 12,
    ],
    ids=["rgb", "rgba", "la", "grey", "tiff", "ppm", "pgm"],
)
def test_more_than_8_bits_are_refused_and_not_cut(content):
    with pytest.raises(InputError, match="more than 8 bits a channel"):
        decode(io.BytesIO(content), "a.png")


def saved(made: Image.Image, kind: str = "PNG", **options: object) -> io.BytesIO:
    buffer = io.BytesIO()
    made.save(buffer, kind, **options)
    buffer.seek(0)
    return buffer


def test_transparent_pixels_are_refused_and_opaque_ones_read():
    clear = Image.new("RGBA", (4, 3), (200, 100, 50, 0))
    part = Image.new("RGBA", (4, 3), (200, 100, 50, 255))
    part.putpixel((1, 1), (0, 0, 0, 254))
    palette = Image.new("P", (4, 3), 0)
    palette.putpalette([200, 100, 50, 1, 2, 3])
    for made, options in (
        (clear, {}),
        (part, {}),
        (Image.new("LA", (4, 3), (90, 10)), {}),
        (palette, {"transparency": 0}),
        (Image.new("RGB", (4, 3), (1, 2, 3)), {"transparency": (1, 2, 3)}),
    ):
        with pytest.raises(InputError, match="transparent pixels"):
            decode(saved(made, **options), "a.png")
    opaque = decode(saved(Image.new("RGBA", (4, 3), (200, 100, 50, 255))), "a.png")
    assert opaque.shape == (3, 4, 3) and opaque[0, 0].tolist() == [200, 100, 50]
    unused = decode(saved(palette, transparency=1), "a.png")
    assert unused[0, 0].tolist() == [200, 100, 50]
    assert decode(saved(Image.new("LA", (4, 3), (90, 255))), "a.png")[0, 0].tolist() == [90]


def test_several_frames_are_refused():
    frames = [Image.new("L", (4, 3), value) for value in (10, 200)]
    for kind in ("GIF", "TIFF", "WEBP"):
        made = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        with pytest.raises(InputError, match="several frames"):
            decode(made, "a.gif")


def test_few_bits_are_scaled_to_eight():
    assert decode(io.BytesIO(b"P5 1 1 15\n\x0f"), "a")[0, 0].tolist() == [255]
    assert decode(saved(Image.new("1", (2, 2), 1)), "a")[0, 0].tolist() == [255]
    assert decode(saved(Image.new("RGB", (2, 2), (9, 8, 7)), "BMP"), "a")[0, 0].tolist() == [
        9,
        8,
        7,
    ]


# --- Parquet -------------------------------------------------------------------------------


def parquet(
    path: Path, labels: Any, column: str = "label", image: str = "image", nested: bool = True
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = labels if isinstance(labels, pa.Array) else pa.array(labels)
    shown = [saved(Image.new("L", (4, 3), 10 * i)).getvalue() for i in range(len(labels))]
    rows = [{"bytes": each, "path": None} for each in shown] if nested else shown
    pq.write_table(pa.table({image: rows, column: labels}), path)


@pytest.mark.parametrize(
    "name",
    [
        *("test.parquet", "Test.parquet", "validation-00000-of-00001.parquet", "val.parquet"),
        *("validation.parquet", "data/valid-0.parquet", "validation/0000.parquet"),
        *("TEST/part-0.parquet", "pets_test.parquet", "pets-test-00000-of-00001.parquet"),
        "test_0.parquet",
    ],
)
def test_files_of_a_split_in_any_spelling(tmp_path, name):
    parquet(tmp_path / name, [0, 1, 1])
    parquet(tmp_path / "train.parquet", [0, 1])
    assert len(load_dataset("folder", tmp_path)) == 3
    assert len(load_training("folder", tmp_path)) == 2


def test_test_files_are_preferred_to_validation_files(tmp_path):
    parquet(tmp_path / "validation-0.parquet", [0, 1, 1])
    parquet(tmp_path / "test-0.parquet", [0, 1])
    parquet(tmp_path / "._test-0.parquet", [0, 1])
    parquet(tmp_path / "__MACOSX" / "test-0.parquet", [0, 1])
    assert len(load_dataset("folder", tmp_path)) == 2


@pytest.mark.parametrize("column", ["labels", "target", "Label", "targets", "class", "category"])
def test_label_columns_by_their_usual_names(tmp_path, column):
    parquet(tmp_path / "test.parquet", [1, 0, 1], column=column)
    assert sorted(load_dataset("folder", tmp_path).labels.tolist()) == [0, 1, 1]


def test_images_may_be_bytes_without_a_path(tmp_path):
    parquet(tmp_path / "test.parquet", [0, 1], nested=False, image="img")
    assert len(load_dataset("folder", tmp_path)) == 2


@pytest.mark.parametrize("encoded", [False, True])
def test_labels_may_be_texts(tmp_path, encoded):
    def texts(*labels: str) -> pa.Array:
        column = pa.array(labels)
        return column.dictionary_encode() if encoded else column

    parquet(tmp_path / "test.parquet", texts("dog", "dog", "emu"))
    data = load_dataset("folder", tmp_path)
    assert data.class_names == ("dog", "emu") and sorted(data.labels) == [0, 0, 1]
    parquet(tmp_path / "train.parquet", texts("dog", "cat", "emu"))
    data = load_dataset("folder", tmp_path)
    assert data.class_names == ("cat", "dog", "emu") and sorted(data.labels) == [1, 1, 2]
    parquet(tmp_path / "test.parquet", texts("dog", "ant"))
    assert "'ant' of row 1" in refused(tmp_path)
    parquet(tmp_path / "test.parquet", texts("3", "1"))
    (tmp_path / "train.parquet").unlink()
    assert sorted(load_dataset("folder", tmp_path).labels) == [1, 3]


def test_labels_may_be_whole_numbers_of_any_type(tmp_path):
    for labels in ([1.0, 0.0], [True, False], np.array([1, 0], np.uint8)):
        parquet(tmp_path / "test.parquet", pa.array(labels))
        assert sorted(load_dataset("folder", tmp_path).labels.tolist()) == [0, 1]
    parquet(tmp_path / "test.parquet", [0.5, 1.0])
    assert "0.5" in refused(tmp_path) and "whole number" in refused(tmp_path)
    parquet(tmp_path / "test.parquet", [float("nan"), 1.0])
    assert "no label" in refused(tmp_path)


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    image(tmp_path / "d" / "cat" / "a.png", 1)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_dataset("folder", "~/d").class_names == ("cat",)
