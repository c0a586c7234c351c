"""Tensors that are stored as values and gaps come back bit for bit, or are refused."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustsnn.models.sparse_file import GAPS, VALUES, packed, unpacked

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SPECIAL = (-0.0, math.nan, -math.nan, math.inf, -math.inf, 1e-45, -1e-45)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def assert_same(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pack and unpack; what was packed."""
    small = packed(tensors)
    back = unpacked(small, shapes(tensors))
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and back[name].shape == tensor.shape
        assert bits(back[name]) == bits(tensor), name
    return small


def read_by_hand(values: Tensor, gaps: Tensor, size: int) -> list[float]:
    """The format as the documentation has it, one byte after the other."""
    found, place, entry = [0.0] * size, 0, 0
    for gap in gaps.tolist():
        place += gap
        if gap != 255:
            found[place] = values[entry].item()
            place, entry = place + 1, entry + 1
    return found


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 9), min_size=0, max_size=4))
    density = draw(st.sampled_from([0.0, 0.001, 0.05, 0.5, 0.95, 1.0]))
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    tensor = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    tensor *= torch.rand(shape, generator=generator) < density
    # A product leaves -0.0 where a negative number was.
    tensor = tensor if draw(st.booleans()) else tensor + 0.0
    for place in draw(st.lists(st.integers(0, max(0, tensor.numel() - 1)), max_size=3)):
        if tensor.numel():
            tensor.view(-1)[place] = draw(st.sampled_from(SPECIAL))
    return tensor


@given(st.dictionaries(st.sampled_from(["a", "b.weight", "c"]), tensors()))
@settings(deadline=None, max_examples=200)
def test_every_tensor_comes_back_bit_for_bit(found):
    small = assert_same(found)
    bytes_of = lambda held: sum(t.numel() * t.element_size() for t in held.values())  # noqa: E731
    assert bytes_of(small) <= bytes_of(found)


@given(
    st.lists(st.integers(0, 1300), max_size=6),
    st.integers(0, 600),
    st.sampled_from(DTYPES),
)
@settings(deadline=None, max_examples=200)
def test_gaps_of_any_length(gaps, tail, dtype):
    flat = [number for gap in gaps for number in [*([0.0] * gap), 1.5]] + [0.0] * tail
    tensor = torch.tensor(flat, dtype=dtype)
    small = assert_same({"w": tensor})
    if "w" not in small:
        read = read_by_hand(small["w" + VALUES], small["w" + GAPS], len(tensor))
        assert read == flat


@pytest.mark.parametrize(
    ("gap", "written"),
    [
        (0, [0]),
        (254, [254]),
        (255, [255, 0]),
        (256, [255, 1]),
        (509, [255, 254]),
        (510, [255, 255, 0]),
        (511, [255, 255, 1]),
        (765, [255, 255, 255, 0]),
    ],
)
def test_long_gaps_by_hand(gap, written):
    tensor = torch.zeros(gap + 300)
    tensor[gap] = -2.0
    small = assert_same({"w": tensor})
    assert small["w" + GAPS].tolist() == written
    assert small["w" + VALUES].tolist() == [-2.0]


def test_negative_zero_and_values_without_a_number_are_values():
    tensor = torch.zeros(1000)
    tensor[[3, 300, 999]] = torch.tensor([-0.0, math.nan, -math.inf])
    small = assert_same({"w": tensor})
    assert small["w" + GAPS].tolist() == [3, 255, 41, 255, 255, 188]
    assert bits(small["w" + VALUES]) == bits(tensor[[3, 300, 999]])


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), (), (1,), (5,), (2, 3)])
def test_small_and_empty_tensors(shape):
    for value in (0.0, -0.0, 1.0):
        assert_same({"w": torch.full(shape, value)})


def test_only_zeros_take_no_bytes_at_all():
    small = assert_same({"w": torch.zeros(7, 11)})
    assert [t.numel() for t in small.values()] == [0, 0]


def test_whole_numbers_and_views_are_kept():
    big = torch.zeros(40, 50)
    big[3, 7] = 1
    strange = {
        "whole": torch.zeros(100, dtype=torch.int64),
        "turned": big.T,
        "every other": big[:, ::2],
        "wanted": big.clone().requires_grad_(),
    }
    small = packed(strange)
    back = unpacked(small, shapes(strange))
    assert "whole" in small
    assert all(torch.equal(back[name], tensor) for name, tensor in strange.items())


def test_names_that_end_like_parts():
    sparse, dense = torch.zeros(100), torch.ones(3)
    for names in (
        {"w.values": sparse},
        {"w.gaps": sparse},
        {"w.values": dense},
        {"w.gaps": dense, "w.values": dense},
        {"w": sparse, "w.values": dense},
        {"w": sparse, "w.gaps": sparse, "w.values": sparse},
        {"w.values.values": sparse, "w.values": dense, "w": dense},
    ):
        assert_same(names)


def test_parts_without_their_other_half_are_handed_on():
    small = packed({"w": torch.zeros(9)})
    for part in (VALUES, GAPS):
        some = {"w" + part: small["w" + part]}
        assert unpacked(some, {"w": torch.Size([9])}).keys() == some.keys()
    # Both the tensor and its parts: whoever reads it sees names that are too many.
    both = {**small, "w": torch.ones(9)}
    assert unpacked(both, {"w": torch.Size([9])}).keys() == both.keys()


def parts(values: list[float], gaps: list[int]) -> dict[str, Tensor]:
    return {
        "w.values": torch.tensor(values),
        "w.gaps": torch.tensor(gaps, dtype=torch.uint8),
    }


@pytest.mark.parametrize(
    "broken",
    [
        parts([1.0], [3, 2]),
        parts([1.0, 2.0], [3]),
        parts([], [3]),
        parts([1.0], []),
        parts([1.0], [10]),
        parts([1.0], [255, 0]),
        parts([1.0, 2.0], [5, 4]),
        parts([1.0], [3, 255]),
        parts([], [255]),
        {**parts([1.0], [3]), "w.gaps": torch.tensor([3])},
        {**parts([1.0], [3]), "w.gaps": torch.tensor([[3]], dtype=torch.uint8)},
        {**parts([1.0], [3]), "w.gaps": torch.tensor(3, dtype=torch.uint8)},
        {**parts([1.0], [3]), "w.values": torch.tensor([[1.0]])},
        {**parts([1.0], [3]), "w.values": torch.tensor([1])},
    ],
)
def test_parts_that_do_not_fit_are_refused(broken):
    with pytest.raises(ValueError, match=r"^w: its "):
        unpacked(broken, {"w": torch.Size([2, 5])})


@given(st.binary(max_size=40), st.integers(0, 20), st.integers(0, 3000))
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_read_right_or_refused(gaps, count, size):
    given_ = {
        "w.values": torch.arange(1.0, count + 1),
        "w.gaps": torch.from_numpy(np.frombuffer(gaps, dtype=np.uint8).copy()),
    }
    try:
        found = unpacked(given_, {"w": torch.Size([size])})["w"]
    except ValueError as error:
        assert str(error).startswith("w: ")
        return
    assert found.tolist() == read_by_hand(given_["w.values"], given_["w.gaps"], size)


@pytest.mark.parametrize("shape", [(2**40,), (2**20, 2**20, 2**20), (2**29,)])
def test_huge_shapes_are_refused_before_memory_is_taken(shape):
    for broken in (parts([1.0], [3]), parts([], []), parts([1.0], [3, 3])):
        tracemalloc.start()
        with pytest.raises(ValueError, match="larger than a sparse tensor may be"):
            unpacked(broken, {"w": torch.Size(shape)})
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()
