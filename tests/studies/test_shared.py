"""What the studies share: survivors, images that are not there, and the options of the commands."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from robustsnn.errors import InputError
from robustsnn.models.subject import subject_of
from robustsnn.records.summary import survivors
from studies.__main__ import chosen, number
from studies.shared import first_images, survivors_in, written_ids


def test_a_survivor_neither_ties_nor_has_logits_that_are_not_numbers():
    records = pd.DataFrame(
        {
            "image_id": [9, 9, 2, 2, 5, 4, 4],
            "label": 1,
            "prediction": [1, 1, 1, 1, 0, 1, -1],
            "margin": [-1.0, 0.0, -1.0, -0.1, 0.3, -1.0, float("nan")],
        }
    )
    assert survivors(records) == {2}


def test_a_margin_that_is_not_a_number_is_an_error_whatever_the_prediction():
    records = pd.DataFrame(
        {"image_id": [3, 1], "label": 1, "prediction": 1, "margin": [float("nan"), -1.0]}
    )
    assert survivors(records) == {1}


def test_survivors_are_read_as_they_were_written():
    assert survivors_in({"standing": written_ids([2, 30])}) == {2, 30}
    assert survivors_in({"standing": written_ids([])}) == set()
    # A single id is read from a file as a number.
    assert survivors_in({"standing": 55}) == {55}


def test_missing_data_stop_a_run_but_not_the_writing_of_tables(tmp_path: Path):
    subject = subject_of("cifar10/vgg5-ann")
    said: list[str] = []
    assert first_images(subject, 4, tmp_path, said.append, finished_only=True) is None
    assert len(said) == 1 and said[0].startswith("cifar10/vgg5-ann: ")
    with pytest.raises(InputError):
        first_images(subject, 4, tmp_path, said.append, finished_only=False)


def test_options_list_known_names_and_whole_numbers():
    assert chosen("--only", None, ["a", "b"]) == ("a", "b")
    assert chosen("--only", "b", ["a", "b"]) == ("b",)
    with pytest.raises(InputError, match="--only c: choose from a, b"):
        chosen("--only", "b,c", ["a", "b"])
    assert number("--passes", "300") == 300
    for wrong in ("0", "-3", "1.5", ""):
        with pytest.raises(InputError, match="--passes"):
            number("--passes", wrong)
