import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustsnn.adversary.threat import ThreatModel, parse_epsilon
from robustsnn.common.kinds import NORMS
from robustsnn.common.randomness import Rng
from robustsnn.errors import InputError

by_norm = pytest.mark.parametrize("norm", NORMS)


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("0.031", 0.031), ("0", 0.0), (" 1 / 4 ", 0.25), ("1e-3", 0.001)],
)
def test_epsilon_is_what_was_written(text, value):
    assert parse_epsilon(text) == value


def test_epsilon_keeps_its_spelling():
    threat = ThreatModel("Linf", "12/255")
    assert threat.epsilon == "12/255"
    assert threat.radius == 12 / 255


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("8/0", "divides by zero"),
        ("-8/255", "negative"),
        ("nan", "not finite"),
        ("inf", "not finite"),
        ("1/inf/2", "not a number"),
        ("8/", "not a number"),
        ("eight", "not a number"),
        ("", "not a number"),
    ],
)
def test_bad_epsilon_is_refused_in_one_line(text, says):
    with pytest.raises(InputError, match=says) as caught:
        ThreatModel("Linf", text)
    assert "\n" not in str(caught.value)
    assert "8/255" in str(caught.value)


def test_epsilon_in_the_wrong_unit_is_refused():
    with pytest.raises(InputError, match="write 8/255"):
        ThreatModel("Linf", "8")
    assert ThreatModel("L2", "8").radius == 8


def test_unknown_norm_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="'Linf'"):
        ThreatModel("linf", "8/255")


@by_norm
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_projection_is_admitted_and_idempotent(norm, data):
    seed = data.draw(st.integers(0, 10_000))
    radius = data.draw(st.sampled_from(["0", "1/255", "8/255", "0.3"]))
    size = data.draw(st.sampled_from([1e-9, 0.01, 1.0, 100.0]))
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand((3, 2, 5, 4), generator=generator)
    wild = images + size * torch.randn(images.shape, generator=generator)
    threat = ThreatModel(norm, radius)
    once = threat.project(wild, images)
    assert bool(threat.admits(once, images).all())
    torch.testing.assert_close(threat.project(once, images), once, rtol=0, atol=2e-7)
    # What is admitted exactly is not moved by more than rounding.
    assert float((threat.project(images, images) - images).abs().max()) == 0


def test_linf_projection_by_hand():
    images = torch.tensor([[0.5, 0.05, 0.95]])
    found = ThreatModel("Linf", "0.1").project(torch.tensor([[0.9, -0.3, 0.94]]), images)
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.0, 0.94]]))


def test_l2_projection_by_hand():
    images = torch.full((1, 2), 0.5)
    found = ThreatModel("L2", "0.1").project(images + torch.tensor([[0.3, 0.4]]), images)
    torch.testing.assert_close(found, images + torch.tensor([[0.06, 0.08]]))


@by_norm
def test_distance_is_that_of_linear_algebra(norm):
    a, b = torch.rand(2, 4, 1, 3, 3, dtype=torch.float64)
    order = math.inf if norm == "Linf" else 2
    expected = torch.linalg.vector_norm((a - b).flatten(1), ord=order, dim=1)
    torch.testing.assert_close(ThreatModel(norm, "1").distance(a, b), expected)


@by_norm
def test_admits_refuses_what_is_outside_or_not_a_number(norm):
    images = torch.full((6, 1, 2, 2), 0.5)
    images[3:] = 0.0
    proposals = images.clone()
    proposals[1, 0, 0, 0] += 0.1 + 1e-5
    proposals[2, 0, 0, 0] = torch.nan
    proposals[3, 0, 0, 0] = -1e-5
    proposals[4, 0, 0, 0] = torch.inf
    proposals[5, 0, 0, 0] = 0.1
    admitted = ThreatModel(norm, "0.1").admits(proposals, images)
    assert admitted.tolist() == [True, False, False, False, False, True]


def test_float32_rounding_at_the_border_is_admitted():
    images = torch.rand(1000, 1, 8, 8)
    threat = ThreatModel("Linf", "8/255")
    proposals = (images + threat.radius).clamp(0, 1)
    assert float((proposals - images).max()) > threat.radius
    assert bool(threat.admits(proposals, images).all())


@by_norm
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-44])
def test_ascent_beats_every_other_step_of_its_size(norm, scale):
    threat = ThreatModel(norm, "1")
    gradient = torch.randn(3, 2, 4, 4) * scale
    step = threat.ascent(gradient)
    torch.testing.assert_close(threat.distance(step, 0 * step), torch.ones(3).double())
    dual = gradient.double().flatten(1).norm(p=1 if norm == "Linf" else 2, dim=1)
    gained = (gradient.double() * step.double()).flatten(1).sum(1)
    torch.testing.assert_close(gained, dual, rtol=1e-5, atol=0)


@by_norm
def test_no_gradient_no_step(norm):
    assert not ThreatModel(norm, "1").ascent(torch.zeros(2, 1, 3, 3)).any()


@by_norm
def test_scaled_noise_has_the_size_of_the_radius(norm):
    threat = ThreatModel(norm, "8/255")
    noise = threat.scaled(torch.randn(5, 3, 8, 8, dtype=torch.float64))
    expected = torch.full((5,), 8 / 255, dtype=torch.float64)
    torch.testing.assert_close(threat.distance(noise, 0 * noise), expected)


def test_random_points_are_uniform_in_the_linf_ball():
    images = torch.full((400, 1, 4, 4), 0.5, dtype=torch.float64)
    delta = ThreatModel("Linf", "0.2").random_point(images, Rng(0, range(400))) - images
    # U(-0.2, 0.2) has standard deviation 0.2 / sqrt(3); 6400 draws.
    assert abs(float(delta.mean())) < 4 * 0.1155 / 80
    assert abs(float(delta.std()) - 0.1155) < 0.003
    assert 0.199 < float(delta.abs().max()) <= 0.2


def test_random_points_are_uniform_in_the_l2_ball():
    images = torch.full((4000, 1, 1, 3), 0.5, dtype=torch.float64)
    threat = ThreatModel("L2", "0.4")
    distance = threat.distance(threat.random_point(images, Rng(0, range(4000))), images)
    # In three dimensions a uniform point is within r with probability (r / R)^3.
    for share in (0.5, 0.8, 0.95):
        measured = float((distance <= 0.4 * share).double().mean())
        assert abs(measured - share**3) < 0.03


def test_random_points_stay_in_range():
    images = torch.rand(20, 1, 4, 4).round()
    for norm in NORMS:
        threat = ThreatModel(norm, "0.3")
        assert bool(threat.admits(threat.random_point(images, Rng(0, range(20))), images).all())


def test_a_point_projected_onto_a_large_ball_is_admitted():
    generator = torch.Generator().manual_seed(1)
    images = torch.full((64, 3, 128, 128), 0.5)
    threat = ThreatModel("L2", "30")
    far = images + 0.4 * torch.randn(images.shape, generator=generator)
    assert bool(threat.admits(threat.project(far, images), images).all())
