"""Image sets: one order for all layouts, and one clear line for what cannot be read."""

import gzip
import hashlib
import io
import json
import pickle
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import torch
import torchvision.datasets as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.functional import to_tensor

from robustsnn.data.bundled.__main__ import main, write_sample
from robustsnn.data.catalogue import DATASETS
from robustsnn.data.datasets import (
    SAMPLE,
    ImageSet,
    channel_statistics,
    check_images,
    fingerprint,
    fixed_order,
    load_dataset,
    load_training,
)
from robustsnn.errors import InputError

SHARED = Path(__file__).parents[3] / "shared" / "data"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the whole data sets are not at {SHARED}")


def mini(name: str, n: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random images `[n, h, w, c]` of a data set's shape, with uneven classes."""
    rng = np.random.default_rng(seed)
    channels, height, width = DATASETS[name].shape
    images = rng.integers(0, 256, (n, height, width, channels), dtype=np.uint8)
    labels = np.sort(rng.integers(0, DATASETS[name].classes, n))
    return images, labels.astype(np.int64)


def png(image: np.ndarray, file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, file_format)
    return buffer.getvalue()


def write_parquet(
    path: Path,
    images: np.ndarray,
    labels: Any,
    image: str = "image",
    label: str = "label",
    names: Sequence[str] | None = None,
    **extra: Any,
) -> None:
    rows = [{"bytes": png(each), "path": None} for each in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {image: pa.array(rows, kind), label: pa.array(labels)}
    columns |= {key: pa.array(value) for key, value in extra.items()}
    table = pa.table(columns)
    if names is not None:
        features = {label: {"names": list(names), "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def write_folders(
    root: Path, images: np.ndarray, labels: Sequence[int] | np.ndarray, names: Sequence[str]
) -> None:
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / names[label].replace("/", "_")
        folder.mkdir(parents=True, exist_ok=True)
        # The file names say nothing about the order of the source.
        stem = hashlib.md5(str(index).encode()).hexdigest()
        (folder / f"{stem}.png").write_bytes(png(image))


def write_idx(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    n, height, width, _ = images.shape
    header = struct.pack(">IIII", 0x803, n, height, width)
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
    header = struct.pack(">II", 0x801, len(labels))
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.astype("u1").tobytes())


def reference_order(images: np.ndarray, labels: np.ndarray) -> list[int]:
    """The order by its definition: rounds over the classes, each giving its next digest."""
    queues = {
        label: sorted(
            (hashlib.sha256(images[i].tobytes()).hexdigest(), i)
            for i in range(len(labels))
            if labels[i] == label
        )
        for label in sorted(set(labels.tolist()))
    }
    order = []
    while any(queues.values()):
        order += [queue.pop(0)[1] for queue in queues.values() if queue]
    return order


def assert_same(data: ImageSet, images: np.ndarray, labels: np.ndarray) -> None:
    order = reference_order(images, labels)
    np.testing.assert_array_equal(data.images, images[order])
    np.testing.assert_array_equal(data.labels, labels[order])
    np.testing.assert_array_equal(data.ids, np.arange(len(labels)))
    assert data.images.dtype == np.uint8
    assert data.labels.dtype == data.ids.dtype == np.int64


def refusal(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_dataset(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- order and fingerprint -----------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    seed=st.integers(0, 2**32 - 1),
)
def test_order_is_balanced_and_independent_of_the_source(labels, seed):
    rng = np.random.default_rng(seed)
    targets = np.asarray(labels, dtype=np.int64)
    # With few levels and pixels, equal images occur, also in different classes.
    images = rng.integers(0, 3, (len(targets), 1, 2, 1), dtype=np.uint8)
    order = fixed_order(images, targets)
    assert order.tolist() == reference_order(images, targets)

    shuffle = rng.permutation(len(targets))
    again = fixed_order(images[shuffle], targets[shuffle])
    np.testing.assert_array_equal(images[order], images[shuffle][again])
    np.testing.assert_array_equal(targets[order], targets[shuffle][again])

    totals = np.bincount(targets, minlength=5)
    for n in range(1, len(targets) + 1):
        counts = np.bincount(targets[order][:n], minlength=5)
        lasting = counts[counts < totals]
        if len(lasting):
            assert counts.max() - lasting.min() <= 1
            assert lasting.max() - lasting.min() <= 1


def test_equal_images_keep_their_order():
    images = np.zeros((3, 2, 2, 1), dtype=np.uint8)
    assert fixed_order(images, np.zeros(3, dtype=np.int64)).tolist() == [0, 1, 2]


def test_fingerprint_follows_pixels_labels_shape_and_order():
    images, labels = mini("mnist", 6)
    base = fingerprint(images, labels)
    assert base == fingerprint(images.copy(), labels.copy())
    assert len(base) == 16
    pixel = images.copy()
    pixel[5, 27, 27, 0] ^= 1
    label = labels.copy()
    label[0] += 1
    others = [
        fingerprint(pixel, labels),
        fingerprint(images, label),
        fingerprint(images[::-1], labels[::-1]),
        fingerprint(images.reshape(6, 14, 56, 1), labels),
        fingerprint(images[:5], labels[:5]),
    ]
    assert len({base, *others}) == 6


def test_fingerprint_is_of_the_selected_samples(tmp_path):
    images, labels = mini("mnist")
    write_parquet(tmp_path / "a" / "test-0.parquet", images, labels)
    first = load_dataset("mnist", tmp_path / "a", samples=7)
    assert first.fingerprint == load_dataset("mnist", tmp_path / "a").first(7).fingerprint
    assert first.fingerprint == fingerprint(first.images, first.labels)

    order = reference_order(images, labels)
    for name, position in (("last", order[-1]), ("first", order[0])):
        changed = images.copy()
        changed[position, 0, 0, 0] ^= 1
        write_parquet(tmp_path / name / "test-0.parquet", changed, labels)
        same = load_dataset("mnist", tmp_path / name, samples=7).fingerprint == first.fingerprint
        # A changed pixel also moves its image, so only images of other classes keep their place.
        assert not same or name == "last"


def test_tensor_equals_torchvision(tmp_path):
    images, labels = mini("cifar10", 20)
    write_parquet(tmp_path / "test-0.parquet", images, labels, image="img")
    data = load_dataset("cifar10", tmp_path)
    batch = data.tensor(slice(3, 9))
    assert batch.dtype == torch.float32
    expected = torch.stack([to_tensor(Image.fromarray(image)) for image in data.images[3:9]])
    assert torch.equal(batch, expected)
    assert torch.equal(data.tensor(np.array([4, 0]))[1], data.tensor()[0])
    assert torch.equal(data.targets(slice(3, 9)), torch.tensor(data.labels[3:9]))
    batch.zero_()
    assert data.images[3:9].any()
    assert data.shape == (3, 32, 32)


# --- layouts -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATASETS)
def test_parquet_and_class_folders_give_the_same_set(tmp_path, name):
    images, labels = mini(name)
    known = DATASETS[name]
    label = "fine_label" if name == "cifar100" else "label"
    extra = {"coarse_label": labels // 5} if name == "cifar100" else {}
    half = len(labels) // 2
    config = tmp_path / "parquet" / "plain_text"
    for shard, part in enumerate((slice(half, None), slice(half))):
        write_parquet(
            config / f"test-{shard:05d}-of-00002.parquet",
            images[part],
            labels[part],
            image="img" if name == "cifar10" else "image",
            label=label,
            names=known.class_names,
            **{key: value[part] for key, value in extra.items()},
        )
    write_parquet(config / "train-00000-of-00001.parquet", images[:3], labels[:3], label=label)
    write_folders(tmp_path / "folders" / "test", images, labels, known.class_names)
    write_folders(tmp_path / "flat", images, labels, [str(i) for i in range(known.classes)])
    moved = np.concatenate([images[half:], images[:half]])
    parquet = load_dataset(name, tmp_path / "parquet")
    assert_same(parquet, moved, np.concatenate([labels[half:], labels[:half]]))
    for other in ("folders", "flat"):
        data = load_dataset(name, tmp_path / other)
        np.testing.assert_array_equal(data.images, parquet.images)
        np.testing.assert_array_equal(data.labels, parquet.labels)
        assert data.fingerprint == parquet.fingerprint
        assert data.class_names == known.class_names
        assert data.split == "test"
    assert len(load_training(name, tmp_path / "parquet")) == 3


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_torchvision_idx_files(tmp_path, name):
    images, labels = mini(name)
    raw = tmp_path / DATASETS[name].torchvision / "raw"
    write_idx(raw, "t10k", images, labels)
    write_idx(raw, "train", images[:9], labels[:9])
    assert_same(load_dataset(name, tmp_path), images, labels)
    assert_same(load_training(name, tmp_path), images[:9], labels[:9])

    path = raw / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    assert "damaged" in refusal(name, tmp_path)
    path.write_bytes(gzip.compress(b"foreign"))
    assert "damaged" in refusal(name, tmp_path)
    write_idx(raw, "t10k", images, labels)
    (raw / "t10k-labels-idx1-ubyte").unlink()
    assert "damaged" in refusal(name, tmp_path)
    write_idx(raw, "t10k", images, labels[:-1])
    assert "damaged" in refusal(name, tmp_path)
    write_idx(raw, "t10k", images[:, ::2], labels)
    assert "[14, 28, 1]" in refusal(name, tmp_path)
    write_idx(raw, "t10k", images[:0], labels[:0])
    assert "damaged" in refusal(name, tmp_path)
    write_idx(raw, "t10k", images, labels + 10)
    assert "outside 0..9" in refusal(name, tmp_path)


def write_cifar(
    monkeypatch: pytest.MonkeyPatch,
    root: Path,
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
) -> Path:
    """Mini batches in torchvision's layout, and their md5 where torchvision keeps its own."""
    kind = getattr(tv, DATASETS[name].torchvision)
    key = "labels" if name == "cifar10" else "fine_labels"
    folder: Path = root / kind.base_folder
    folder.mkdir(parents=True)

    def store(filename: str, content: dict[str, Any]) -> list[str]:
        data = pickle.dumps(content, protocol=2)
        (folder / filename).write_bytes(data)
        return [filename, hashlib.md5(data).hexdigest()]

    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    test = store("test", {"data": rows, key: labels.tolist()})
    train = store("train", {"data": rows[:5], key: labels[:5].tolist()})
    meta = store("meta", {kind.meta["key"]: list(DATASETS[name].class_names)})
    monkeypatch.setattr(kind, "test_list", [test])
    monkeypatch.setattr(kind, "train_list", [train])
    monkeypatch.setattr(kind, "meta", kind.meta | {"filename": meta[0], "md5": meta[1]})
    return folder


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_torchvision_cifar(tmp_path, monkeypatch, name):
    images, labels = mini(name)
    write_cifar(monkeypatch, tmp_path, name, images, labels)
    assert_same(load_dataset(name, tmp_path), images, labels)
    assert_same(load_training(name, tmp_path), images[:5], labels[:5])


class Trap:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_foreign_pickle_never_runs(tmp_path, monkeypatch):
    trap = tmp_path / "ran"
    data = pickle.dumps(Trap(trap))
    pickle.loads(data)
    assert trap.exists()
    trap.unlink()

    # The pickle lies in the place of torchvision's files, with its real checksums ...
    folder = tmp_path / "real" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for filename in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (folder / filename).write_bytes(data)
    assert "damaged" in refusal("cifar10", tmp_path / "real")
    # ... or instead of one file of an intact set ...
    folder = write_cifar(monkeypatch, tmp_path / "mini", "cifar10", *mini("cifar10"))
    (folder / "meta").write_bytes(data)
    assert "damaged" in refusal("cifar10", tmp_path / "mini")
    # ... or as Parquet, as an image, and where an old torchvision kept its tensors.
    for root, name in (("as-parquet", "test-0.parquet"), ("as-image", "test/3/a.png")):
        path = tmp_path / root / name
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        assert "not a readable" in refusal("mnist", tmp_path / root)
    processed = tmp_path / "old" / "MNIST" / "processed"
    processed.mkdir(parents=True)
    for filename in ("training.pt", "test.pt"):
        (processed / filename).write_bytes(data)
    assert "no test images" in refusal("mnist", tmp_path / "old")
    assert "delete" in refusal("mnist", tmp_path / "old", download=True)
    assert not trap.exists()


def test_torchvision_svhn(tmp_path, monkeypatch):
    images, labels = mini("svhn")
    path = tmp_path / "test_32x32.mat"
    # On disk the digit 0 is class 10 and images come as [h, w, c, n].
    stored = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
    scipy.io.savemat(path, {"X": images.transpose(1, 2, 3, 0), "y": stored})
    assert "damaged" in refusal("svhn", tmp_path)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(tv.SVHN.split_list, "test", ["", path.name, md5])
    assert_same(load_dataset("svhn", tmp_path), images, labels)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    assert "pip install scipy." in refusal("svhn", tmp_path)


def test_download_only_when_asked(tmp_path, monkeypatch, capsys):
    images, labels = mini("mnist")
    asked = []

    def download(self):
        print("Downloading", self.root)
        asked.append(self.root)
        for prefix in ("train", "t10k"):
            write_idx(Path(self.raw_folder), prefix, images, labels)

    monkeypatch.setattr(tv.MNIST, "download", download)
    root = tmp_path / "new"
    assert "ask for a download" in refusal("mnist", root)
    assert not root.exists()
    root.mkdir()
    assert "ask for a download" in refusal("mnist", root)
    assert asked == []
    assert_same(load_dataset("mnist", root, download=True), images, labels)
    assert_same(load_dataset("mnist", root, download=True), images, labels)
    assert len(asked) == 1
    assert capsys.readouterr().out == ""

    def offline(self):
        raise OSError("no route to host")

    monkeypatch.setattr(tv.CIFAR10, "download", offline)
    assert "no route to host" in refusal("cifar10", tmp_path / "c", download=True)


def test_sub_folder_named_after_the_set(tmp_path):
    images, labels = mini("mnist")
    write_parquet(tmp_path / "MNIST" / "mnist" / "test-0.parquet", images, labels)
    write_parquet(tmp_path / "fashion_mnist" / "test" / "0000.parquet", images[:8], labels[:8])
    assert_same(load_dataset("mnist", tmp_path), images, labels)
    assert_same(load_dataset("fashion-mnist", tmp_path), images[:8], labels[:8])


# --- any image folder ----------------------------------------------------------------------


def test_any_folder_with_splits(tmp_path):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (12, 9, 7, 3), dtype=np.uint8)
    labels = np.repeat([0, 1, 2], 4)
    names = ("ant", "bee", "train")
    write_folders(tmp_path / "train", images, labels, names)
    # There is no test image of "bee", which must not change the numbers of the training classes.
    write_folders(tmp_path / "val", images[[0, 8, 9]], labels[[0, 8, 9]], names)
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "empty").mkdir()
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    data = load_training("folder", tmp_path)
    assert_same(data, images, labels)
    assert data.class_names == names
    assert data.shape == (3, 9, 7)
    test = load_dataset("folder", tmp_path)
    assert_same(test, images[[0, 8, 9]], labels[[0, 8, 9]])
    assert test.class_names == names
    write_folders(tmp_path / "val", images[:1], [0], ["wasp"])
    assert "wasp is not a class of 'folder'" in refusal("folder", tmp_path)


def test_a_class_may_be_called_train(tmp_path):
    images = np.arange(2 * 4, dtype=np.uint8).reshape(2, 2, 2, 1)
    write_folders(tmp_path, images, [0, 1], ["car", "train"])
    data = load_dataset("folder", tmp_path)
    assert data.class_names == ("car", "train")
    assert_same(data, images, np.array([0, 1]))


def test_grey_stays_one_channel(tmp_path):
    grey = np.arange(32, dtype=np.uint8).reshape(2, 4, 4, 1)
    write_folders(tmp_path / "grey", grey, [0, 1], ["a", "b"])
    assert load_dataset("folder", tmp_path / "grey").shape == (1, 4, 4)
    # One colour image makes the set RGB; a grey one then has three equal channels.
    (tmp_path / "grey" / "b" / "c.png").write_bytes(png(np.repeat(grey[1] + 1, 3, axis=2)))
    mixed = load_dataset("folder", tmp_path / "grey")
    assert mixed.shape == (3, 4, 4)
    assert (mixed.images == mixed.images[..., :1]).all()
    # A grey data set saved as RGB is still grey; a coloured one is refused.
    images, labels = mini("mnist", 4)
    rgb = np.repeat(images, 3, axis=3)
    write_parquet(tmp_path / "rgb" / "test-0.parquet", rgb, labels)
    assert_same(load_dataset("mnist", tmp_path / "rgb"), images, labels)
    rgb[2, 0, 0, 1] ^= 1
    write_parquet(tmp_path / "rgb" / "test-0.parquet", rgb, labels)
    assert "row 2" in refusal("mnist", tmp_path / "rgb")


def test_folder_of_parquet_with_and_without_names(tmp_path):
    images, labels = mini("mnist", 5)
    labels = np.array([0, 1, 2, 0, 2])
    write_parquet(tmp_path / "a" / "test-0.parquet", images, labels, names=["x", "y", "z", "w"])
    assert load_dataset("folder", tmp_path / "a").class_names == ("x", "y", "z", "w")
    write_parquet(tmp_path / "b" / "test-0.parquet", images, labels)
    assert load_dataset("folder", tmp_path / "b").class_names == ("0", "1", "2")
    write_parquet(tmp_path / "b" / "test-0.parquet", images, labels + 10**12)
    assert "outside" in refusal("folder", tmp_path / "b")


def test_mixed_sizes_are_refused(tmp_path):
    write_folders(tmp_path, np.zeros((1, 4, 5, 3), np.uint8), [0], ["a"])
    write_folders(tmp_path, np.zeros((1, 4, 6, 3), np.uint8), [0], ["b"])
    message = refusal("folder", tmp_path)
    assert "5x4" in message and "6x4" in message and "resize" in message


# --- bad input -----------------------------------------------------------------------------


def test_unknown_names():
    assert "Did you mean 'cifar10'" in refusal("cifar-10", None)
    assert "Known: cifar10, cifar100, " in refusal("imagenet", None)
    assert "validation" in refusal("mnist", None, split="validation")
    assert "not bundled" in refusal("cifar10", None)
    assert "not bundled" in refusal("fashion-mnist", None, split="train")


def test_missing_and_empty_roots(tmp_path):
    assert "no data root" in refusal("mnist", tmp_path / "nowhere")
    file = tmp_path / "file"
    file.write_text("")
    assert "is a file" in refusal("mnist", file)
    (tmp_path / "empty").mkdir()
    assert "no test images" in refusal("mnist", tmp_path / "empty")
    assert "no test images" in refusal("folder", tmp_path / "empty")
    write_folders(tmp_path / "only" / "train", *mini("mnist", 3), DATASETS["mnist"].class_names)
    assert "no test images" in refusal("mnist", tmp_path / "only")


def test_unreadable_root(tmp_path, monkeypatch):
    def iterdir(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert "Permission denied" in refusal("mnist", tmp_path)


@pytest.mark.parametrize("samples", [0, -3, 41])
def test_number_of_samples(tmp_path, samples):
    write_parquet(tmp_path / "test-0.parquet", *mini("mnist"))
    message = refusal("mnist", tmp_path, samples=samples)
    assert str(samples) in message
    assert samples < 1 or "has 40" in message
    with pytest.raises(InputError, match=message[:15]):
        load_dataset("mnist", tmp_path).first(samples)
    assert len(load_dataset("mnist", tmp_path, samples=40)) == 40


def test_damaged_parquet(tmp_path):
    path = tmp_path / "test-00000-of-00001.parquet"
    write_parquet(path, *mini("mnist"))
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:4], b"PAR1" + bytes(100) + b"PAR1"):
        path.write_bytes(damaged)
        assert "not a readable Parquet file" in refusal("mnist", tmp_path)
    # Data overwritten between an intact header and footer.
    path.write_bytes(whole[:200] + bytes(len(whole) // 2) + whole[200 + len(whole) // 2 :])
    assert "not a readable" in refusal("mnist", tmp_path)


def test_missing_shard_and_several_sets(tmp_path):
    images, labels = mini("mnist")
    write_parquet(tmp_path / "a" / "test-00001-of-00003.parquet", images, labels)
    assert "test-00000-of-00003.parquet is missing" in refusal("mnist", tmp_path)
    write_parquet(tmp_path / "b" / "test-00000-of-00001.parquet", images, labels)
    assert "2 folders" in refusal("mnist", tmp_path)


def test_wrong_columns(tmp_path):
    images, labels = mini("mnist", 4)
    path = tmp_path / "test-0.parquet"
    write_parquet(path, images, labels, image="picture")
    assert "columns picture, label" in refusal("mnist", tmp_path)
    write_parquet(path, images, labels, label="digit")
    assert "columns image, digit" in refusal("mnist", tmp_path)
    write_parquet(path, images, [[label] for label in labels])
    assert "whole numbers or names of classes are needed" in refusal("mnist", tmp_path)
    pq.write_table(pa.table({"image": [[1, 2]] * 4, "label": labels}), path)
    assert "encoded images" in refusal("mnist", tmp_path)
    pq.write_table(pa.table({"image": [{"path": "/etc/passwd"}] * 4, "label": labels}), path)
    assert "encoded images" in refusal("mnist", tmp_path)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": None, "path": "/etc/passwd"}] * 4, kind)
    pq.write_table(pa.table({"image": rows, "label": labels}), path)
    assert "no image bytes" in refusal("mnist", tmp_path)
    write_parquet(path, images, [None, 1, 2, 3])
    assert "no label" in refusal("mnist", tmp_path)
    write_parquet(path, images[:0], pa.array([], pa.int64()))
    assert "no rows" in refusal("mnist", tmp_path)


@pytest.mark.parametrize("label", [-1, 10, 2**40])
def test_labels_outside_the_classes(tmp_path, label):
    images, labels = mini("mnist", 4)
    labels[2] = label
    write_parquet(tmp_path / "test-0.parquet", images, labels)
    message = refusal("mnist", tmp_path)
    assert f"label {label} of row 2" in message and "outside 0..9" in message


def test_another_data_set_in_the_root(tmp_path):
    images, labels = mini("mnist")
    names = DATASETS["mnist"].class_names
    write_parquet(tmp_path / "p" / "test-0.parquet", images, labels, names=names)
    # Shape and range of labels are the same: only the stored names differ.
    assert "names the classes 0, 1, 2" in refusal("fashion-mnist", tmp_path / "p")
    assert "28x28" in refusal("svhn", tmp_path / "p")
    write_folders(tmp_path / "f", images, labels, DATASETS["fashion-mnist"].class_names)
    assert "is not a class of 'mnist'" in refusal("mnist", tmp_path / "f")


def test_damaged_and_foreign_images(tmp_path):
    folder = tmp_path / "test" / "0"
    folder.mkdir(parents=True)
    whole = png(mini("mnist", 1)[0][0])
    bad = folder / "bad.png"
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n"
    for content in (whole[:300], b"", b"GIF89a", postscript, b"\x80" * 100):
        bad.write_bytes(content)
        assert f"{bad} is not a readable image" in refusal("mnist", tmp_path)
    Image.fromarray(np.full((28, 28), 40_000, np.uint16)).save(bad)
    assert "8 bits" in refusal("mnist", tmp_path)


def test_check_images():
    good = torch.rand(2, 1, 4, 4)
    assert check_images(good) is good
    assert check_images(good.double().requires_grad_()).requires_grad
    assert check_images((good > 0.5).to(torch.float16)).dtype == torch.float16
    nan, above, below = good.clone(), good.clone(), good.clone()
    nan[1, 0, 3, 3] = torch.nan
    above[0, 0, 0, 0] = 1.001
    below[0, 0, 0, 0] = -torch.inf
    for bad, word in (
        (nan, "NaN"),
        (above, "not in"),
        (below, "-inf"),
        (good * 255, "divide 8-bit pixels by 255"),
        ((good * 255).byte(), "uint8"),
        (good > 0.5, "bool"),
        (good[0], "n, channel, height, width"),
        (good[:0], "n >= 1"),
    ):
        with pytest.raises(InputError, match=word):
            check_images(bad)


# --- metadata, sample and whole sets -------------------------------------------------------


def test_metadata_agrees_with_torchvision():
    for name, known in DATASETS.items():
        assert len(known.mean) == len(known.std) == known.shape[0], name
        assert len(set(known.class_names)) == known.classes, name
        assert hasattr(tv, known.torchvision)
    assert list(DATASETS["fashion-mnist"].class_names) == tv.FashionMNIST.classes
    # torchvision writes the digits as "0 - zero".
    assert [text[0] for text in tv.MNIST.classes] == list(DATASETS["mnist"].class_names)
    cifar100 = list(DATASETS["cifar100"].class_names)
    assert len(cifar100) == 100 and cifar100 == sorted(cifar100)


def test_channel_statistics():
    images, _ = mini("cifar10")
    mean, std = channel_statistics(images)
    scaled = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 1, 2)), rtol=1e-12)


def test_bundled_sample():
    data = load_dataset("fashion-mnist", None)
    assert len(data) == 2000
    assert data.images.shape == (2000, 28, 28, 1)
    assert np.bincount(data.labels).tolist() == [200] * 10
    # The sample is itself in the fixed order, and so are its prefixes.
    assert fixed_order(data.images, data.labels).tolist() == list(range(2000))
    assert data.fingerprint == "742e0aba2094382c"
    assert load_dataset("fashion-mnist", None, samples=500).labels[:10].tolist() == [*range(10)]
    assert "the bundled sample has 2000" in refusal("fashion-mnist", None, samples=2001)
    assert load_dataset("fashion-mnist", SAMPLE).fingerprint == data.fingerprint
    licence = (SAMPLE / "LICENSE").read_text()
    assert "Copyright (c) 2017 Zalando SE" in licence and "MIT License" in licence
    size = sum(path.stat().st_size for path in SAMPLE.glob("*.parquet"))
    assert size < 2**20


def test_sample_is_written_from_any_root(tmp_path, capsys):
    images, labels = mini("fashion-mnist", 50)
    write_folders(tmp_path / "root", images, labels, DATASETS["fashion-mnist"].class_names)
    out = tmp_path / "out"
    out.mkdir()
    write_sample(tmp_path / "root", out, size=30)
    first = load_dataset("fashion-mnist", tmp_path / "root", samples=30)
    assert load_dataset("fashion-mnist", out).fingerprint == first.fingerprint
    assert main([]) == 2
    assert main([str(tmp_path / "root"), str(out)]) == 2
    assert "has 50" in capsys.readouterr().err


@shared
def test_bundled_sample_is_the_head_of_the_whole_test_set(tmp_path):
    root = SHARED / "fashion_mnist"
    whole = load_dataset("fashion-mnist", root)
    assert np.bincount(whole.labels).tolist() == [1000] * 10
    bundled = load_dataset("fashion-mnist", None)
    np.testing.assert_array_equal(whole.images[:2000], bundled.images)
    np.testing.assert_array_equal(whole.labels[:2000], bundled.labels)
    np.testing.assert_array_equal(whole.ids[:2000], bundled.ids)
    assert whole.first(2000).fingerprint == bundled.fingerprint

    # The command writes the same images again.
    assert main([str(root), str(tmp_path)]) == 0
    assert load_dataset("fashion-mnist", tmp_path).fingerprint == bundled.fingerprint


@shared
@pytest.mark.slow
def test_fashion_mnist_training_images_and_normalisation():
    data = load_training("fashion-mnist", SHARED / "fashion_mnist")
    assert np.bincount(data.labels).tolist() == [6000] * 10
    mean, std = channel_statistics(data.images)
    known = DATASETS["fashion-mnist"]
    assert mean == pytest.approx(known.mean, abs=5e-5)
    assert std == pytest.approx(known.std, abs=5e-5)
    # Every prefix of whole rounds is balanced, and so is any tail that is held out.
    assert (data.labels.reshape(-1, 10) == np.arange(10)).all()


@shared
def test_cifar10_beside_other_sets():
    data = load_dataset("cifar10", SHARED, samples=1000)
    assert data.shape == (3, 32, 32)
    assert np.bincount(data.labels).tolist() == [100] * 10
    mean, _ = channel_statistics(data.images)
    assert mean == pytest.approx(DATASETS["cifar10"].mean, abs=0.02)
