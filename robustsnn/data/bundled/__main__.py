"""Write the bundled sample: `python -m robustsnn.data.bundled ROOT [FOLDER]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from robustsnn.data.catalogue import DATASETS
from robustsnn.data.datasets import SAMPLE, load_dataset
from robustsnn.data.pixels import encode_png
from robustsnn.errors import InputError

SIZE = 2_000
FILE = "test-00000-of-00001.parquet"


def write_sample(root: Path, folder: Path = SAMPLE, size: int = SIZE) -> Path:
    """Write the first images of the Fashion-MNIST test set in Hugging Face's layout.

    Args:
        root: The data root with the whole test set, in any layout that can be read.
        folder: The folder of the file.
        size: The number of images.

    Returns:
        The file.

    Raises:
        InputError: The root cannot be read or holds fewer images.
    """
    data = load_dataset("fashion-mnist", root, samples=size)
    names = list(DATASETS["fashion-mnist"].class_names)
    features = {
        "image": {"_type": "Image"},
        "label": {"names": names, "_type": "ClassLabel"},
    }
    rows = [{"bytes": png, "path": None} for png in encode_png(data.images)]
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    table = pa.table({"image": rows, "label": data.labels}, schema=schema)
    path = folder / FILE
    # PNG is compressed already; zstd only shortens the headers that repeat.
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    return path


def main(arguments: list[str]) -> int:
    """Run the command, and return its exit code."""
    if not 1 <= len(arguments) <= 2:
        print("usage: python -m robustsnn.data.bundled ROOT [FOLDER]", file=sys.stderr)
        return 2
    try:
        root, folder = (*map(Path, arguments), SAMPLE)[:2]
        print(write_sample(root, folder))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
