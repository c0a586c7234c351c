import pytest
import torch

from robustsnn.common.randomness import Rng, derive, positions

LIKE = torch.empty(0, dtype=torch.float64)


def test_draws_belong_to_the_image():
    whole = Rng(7, [10, 20, 30]).normal((2, 3), LIKE)
    torch.testing.assert_close(Rng(7, [30, 10]).normal((2, 3), LIKE), whole[[2, 0]], rtol=0, atol=0)
    torch.testing.assert_close(Rng(7, [20]).normal((2, 3), LIKE), whole[1:2], rtol=0, atol=0)


def test_precision_changes_nothing_but_rounding():
    double = Rng(7, [1, 2]).uniform((5,), -1, 1, LIKE)
    single = Rng(7, [1, 2]).uniform((5,), -1, 1, LIKE.float())
    assert single.dtype == torch.float32
    assert torch.equal(double.float(), single)


@pytest.mark.parametrize(
    "other", [Rng(8, [1]), Rng(7, [2]), Rng(7, [1], "x"), Rng(7, [1]).stream("x").stream("y")]
)
def test_seed_image_and_stream_each_matter(other):
    mine = Rng(7, [1]).normal((50,), LIKE)
    theirs = other.normal((50,), LIKE)
    correlation = torch.corrcoef(torch.cat([mine, theirs]))[0, 1]
    assert abs(float(correlation)) < 0.5


def test_streams_start_fresh():
    rng = Rng(7, [1, 2])
    first = rng.stream("a").normal((4,), LIKE)
    rng.normal((100,), LIKE)
    assert torch.equal(rng.stream("a").normal((4,), LIKE), first)


def test_a_selection_shares_its_generators():
    rng, reference = Rng(7, [1, 2, 3]), Rng(7, [1, 2, 3])
    expected = [reference.normal((2,), LIKE) for _ in range(2)]
    first = rng.select(torch.tensor([False, True, True])).normal((2,), LIKE)
    second = rng.normal((2,), LIKE)
    assert torch.equal(first, expected[0][1:])
    # Image 1 draws for the first time here, and the others for the second time.
    assert torch.equal(second[0], expected[0][0])
    assert torch.equal(second[1:], expected[1][1:])


def test_distributions():
    rng = Rng(0, range(2000))
    normal = rng.normal((10,), LIKE)
    uniform = rng.uniform((10,), 2, 5, LIKE)
    integers = rng.integers(6)
    assert abs(float(normal.mean())) < 0.03
    assert abs(float(normal.std()) - 1) < 0.03
    assert 2 <= float(uniform.min()) < float(uniform.max()) < 5
    assert abs(float(uniform.mean()) - 3.5) < 0.03
    assert integers.dtype == torch.int64
    assert torch.bincount(integers, minlength=6).min() > 250


def test_empty_batches_and_scalars():
    assert Rng(0, []).normal((3, 2), LIKE).shape == (0, 3, 2)
    assert Rng(0, [5, 6]).uniform((), 0, 1, LIKE).shape == (2,)
    assert len(Rng(0, torch.tensor([4, 5]))) == 2


def test_no_global_generator_is_touched():
    before = torch.get_rng_state()
    Rng(0, range(3)).normal((4,), LIKE)
    assert torch.equal(torch.get_rng_state(), before)


def test_derived_integers():
    assert derive(1, 23) != derive(12, 3)
    assert 0 <= derive("a", bits=31) < 2**31
    assert derive("a", 1) == derive("a", 1)


def test_positions():
    assert positions(torch.tensor([True, False, True]), 3).tolist() == [0, 2]
    assert positions([2, 0], 3).tolist() == [2, 0]
    with pytest.raises(ValueError, match="mask"):
        positions(torch.tensor([True]), 3)
