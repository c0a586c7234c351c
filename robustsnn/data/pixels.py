"""Images of any common file format as 8-bit pixels, and what a reader hands over."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robustsnn.errors import InputError

if TYPE_CHECKING:
    from robustsnn.data.catalogue import DataSet

# Pillow would also open formats that start other programs (EPS) or do not hold a still image.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset(
    ".png .jpg .jpeg .jpe .jfif .bmp .gif .ppm .pgm .pbm .pnm .tif .tiff .webp".split()
)
# Where nothing says how many classes there are, a larger label is taken for a mistake.
MOST_CLASSES = 100_000
# An image is refused by its size before it is decoded: a few bytes can stand for any number.
MOST_PIXELS = 4096 * 4096


@dataclass(frozen=True, eq=False)
class Source:
    """What was read, in the order of the files.

    `images` are uint8 `[n, height, width, channel]` and `labels` are int64 `[n]`; `notes` say what
    was found and not counted.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def decode(file: Path | io.BytesIO, where: str) -> NDArray[np.uint8]:
    """One image as uint8 `[height, width, 1 or 3]`.

    Args:
        file: The file or its content.
        where: What messages call it.

    Raises:
        InputError: It is damaged, has more than 8 bits a channel, transparent pixels or several
            frames: none of these can be read as 8-bit pixels without a choice.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS) as image:
                return of_pil(image, where)
    except InputError:
        raise
    except Exception as error:  # decoders raise nearly any error on a damaged file
        raise InputError(
            f"{where} is not a readable image (damaged or foreign): replace or remove it."
        ) from error


def of_pil(image: Image.Image, where: str) -> NDArray[np.uint8]:
    """The pixels of a PIL image as uint8 `[height, width, 1 or 3]`.

    Args:
        image: The image.
        where: What messages call it.

    Raises:
        InputError: It has more than 8 bits a channel, several frames or transparent pixels.

    Examples:
        >>> of_pil(Image.new("L", (2, 1), 7), "it").tolist()
        [[[7], [7]]]
    """
    if image.width * image.height > MOST_PIXELS:
        raise InputError(
            f"{where} has {image.width} x {image.height} pixels, more than {MOST_PIXELS:,}: resize "
            "it to what the network takes."
        )
    if _is_deep(image):
        raise InputError(f"{where} has more than 8 bits a channel: save it as 8-bit.")
    if getattr(image, "n_frames", 1) > 1:
        raise InputError(f"{where} has several frames: save the one that is meant.")
    if _is_transparent(image):
        raise InputError(
            f"{where} has transparent pixels, whose colour depends on what is behind them: put it "
            "on a background and save it without alpha."
        )
    grey = image.mode in ("1", "L", "LA", "La")
    pixels = np.array(image.convert("L" if grey else "RGB"))
    return pixels[..., None] if grey else pixels


def _is_deep(image: Image.Image) -> bool:
    """Whether a file has more than 8 bits a channel, which Pillow cuts without a word in colour."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return True
    tiles: Any = getattr(image, "tile", ())
    for tile in tiles:
        args = tile[3] if isinstance(tile[3], tuple | list) else (tile[3],)
        if image.format == "PPM":
            # Its second argument is the largest value.
            return any(isinstance(value, int) and value > 255 for value in args[1:])
        # Raw modes such as RGB;16B; those of BMP have 16 bits for all channels together.
        modes = [str(value) for value in args if isinstance(value, str)]
        if image.format != "BMP" and any(";16" in mode or ";32" in mode for mode in modes):
            return True
    return False


def _is_transparent(image: Image.Image) -> bool:
    """Whether any pixel is not opaque."""
    bands = image.getbands()
    if not {"A", "a"} & set(bands) and "transparency" not in image.info:
        return False
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return bool((alpha < 255).any())


def stack(
    images: Sequence[NDArray[np.uint8]], places: Sequence[str], known: DataSet | None
) -> NDArray[np.uint8]:
    """Images of one size as uint8 `[n, height, width, channel]`.

    Args:
        images: The images, each `[height, width, 1 or 3]`.
        places: Where each one comes from.
        known: The data set they should be of, or None for any.

    Raises:
        InputError: They differ in size, or are in colour where the data set is grey.
    """
    title = known.title if known else places[0]
    channels = known.shape[0] if known else max(image.shape[2] for image in images)
    height, width = known.shape[1:] if known else images[0].shape[:2]
    stacked = np.empty((len(images), height, width, channels), dtype=np.uint8)
    for index, (image, place) in enumerate(zip(images, places, strict=True)):
        if image.shape[:2] != (height, width):
            remedy = "name another data set or data root" if known else "resize them to one size"
            raise InputError(
                f"images differ in size: {title} is {width}x{height}, {place} is "
                f"{image.shape[1]}x{image.shape[0]}; {remedy}."
            )
        if image.shape[2] > channels and bool((image != image[..., :1]).any()):
            raise InputError(
                f"{place} is in colour, {title} is grey: name another data set or data root."
            )
        # One grey channel fills three; of three equal channels, the first is the grey one.
        stacked[index] = image[..., :channels]
    return stacked


def check_label(label: int, classes: int, where: str) -> None:
    """Refuse a label outside the classes.

    Args:
        label: The label.
        classes: The number of classes.
        where: What messages call the image.

    Raises:
        InputError: The label is below 0 or not below the number of classes.
    """
    if not 0 <= label < classes:
        raise InputError(
            f"the label {label} of {where} is outside 0..{classes - 1}: name the data set these "
            "labels belong to, or correct them."
        )


def encode_png(images: Iterable[NDArray[np.uint8]]) -> Iterable[bytes]:
    """Each image `[height, width, 1 or 3]` as the bytes of a PNG."""
    for image in images:
        buffer = io.BytesIO()
        pixels = image[..., 0] if image.shape[2] == 1 else image
        Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
        yield buffer.getvalue()
