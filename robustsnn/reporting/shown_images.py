"""The images of a run that fell in the worst case and those that stood, as parts of a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustsnn.common import wording
from robustsnn.reporting.outcomes import Outcome, class_name

#: The most images of either kind on a page; a run that keeps every image has thousands.
MOST = 24


@dataclass(frozen=True)
class Shown:
    """An image as a page shows it.

    Args:
        image_id: The id of the image.
        label: The name of its class.
        clean: The clean image as the address of a PNG inside the page.
        seen: The adversarial image in the same form; empty for an image that stood.
        attack: The attack that made it, as it is printed.
        prediction: The name of the class that it is taken for.
    """

    image_id: int
    label: str
    clean: str
    seen: str = ""
    attack: str = ""
    prediction: str = ""


@dataclass(frozen=True)
class ShownImages:
    """The images of a run that fell and those that stood, as far as it kept them.

    Args:
        model: The label of the model.
        size: The norm and size, as they are printed.
        fell: The images that fell.
        stood: The images that stood.
        all_fell: The number of images of the run that fell.
        all_stood: The number of images of the run that stood.
        kept: The number of images whose pixels the run kept.
    """

    model: str
    size: str
    fell: list[Shown]
    stood: list[Shown]
    all_fell: int
    all_stood: int
    kept: int


def shown_images(outcome: Outcome) -> ShownImages:
    """The images of an outcome that a page shows."""
    examples = outcome.run.examples
    clean = examples.get("clean", np.empty((0,)))
    ids = examples.get("image_id", np.arange(len(clean)))
    places = {int(image_id): place for place, image_id in enumerate(ids)}
    return ShownImages(
        model=outcome.run.label,
        size=wording.threat(*outcome.size),
        fell=_some(outcome, outcome.fell, places, adversarial=True),
        stood=_some(outcome, outcome.stood, places, adversarial=False),
        all_fell=len(outcome.fell),
        all_stood=len(outcome.stood),
        kept=len(places),
    )


def _some(
    outcome: Outcome, frame: pd.DataFrame, places: dict[int, int], *, adversarial: bool
) -> list[Shown]:
    examples = outcome.run.examples
    found = []
    rows: list[dict[Any, Any]] = frame[frame["image_id"].isin(places)].head(MOST).to_dict("records")
    for row in rows:
        image_id, attack = int(row["image_id"]), str(row["attack"])
        label = class_name(outcome.run, int(row["label"]))
        clean = data_uri(examples["clean"][places[image_id]])
        if not adversarial:
            found.append(Shown(image_id, label, clean))
            continue
        images = examples.get(f"adversarial/{attack}@{outcome.size.epsilon}")
        seen = data_uri(images[places[image_id]]) if images is not None else ""
        said = class_name(outcome.run, int(row["prediction"]))
        found.append(Shown(image_id, label, clean, seen, wording.attack(attack), said))
    return found


def data_uri(image: NDArray[Any]) -> str:
    """An image as a PNG in the address of a picture.

    Args:
        image: The pixels in [0, 1], `[channel, height, width]`, of one channel or at least three.

    Examples:
        >>> data_uri(np.zeros((1, 2, 2)))[:22]
        'data:image/png;base64,'
    """
    from PIL import Image

    pixels = np.round(np.clip(np.nan_to_num(image), 0, 1) * 255).astype(np.uint8)
    drawn = pixels[0] if len(pixels) < 3 else np.moveaxis(pixels[:3], 0, -1)
    buffer = io.BytesIO()
    Image.fromarray(drawn).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
