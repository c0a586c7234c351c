from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad

from robustsnn.errors import InputError
from robustsnn.snn.surrogate import SURROGATES, Triangle, describe, make_surrogate

CLOSED_FORMS = {
    "triangle": lambda z, w, a: a * max(0.0, 1 - abs(z) / w),
    "rectangle": lambda z, w, a: a if abs(z) < w else 0.0,
    "sigmoid": lambda z, w, a: a / math.cosh(z / (2 * w)) ** 2,
    "arctan": lambda z, w, a: a / (1 + (z / w) ** 2),
    "fast-sigmoid": lambda z, w, a: a / (1 + abs(z) / w) ** 2,
    "gaussian": lambda z, w, a: a * math.exp(-((z / w) ** 2) / 2),
    "straight-through": lambda z, w, a: a,
}
POINTS = [-3.0, -1.01, -0.7, -0.31, -0.1, 0.0, 0.05, 0.4, 0.93, 1.7]


def test_every_surrogate_has_a_closed_form_here():
    assert set(CLOSED_FORMS) == set(SURROGATES)


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize(("width", "amplitude"), [(0.3, 0.5), (1.0, 0.3), (2.0, 1.0)])
def test_derivative_and_primitive(name, width, amplitude):
    surrogate = make_surrogate(name, width, amplitude)
    z = torch.tensor(POINTS, dtype=torch.float64)
    form = CLOSED_FORMS[name]
    expected = [form(p, width, amplitude) for p in POINTS]
    assert surrogate.derivative(z).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-15)
    integral = [
        quad(form, 0, p, args=(width, amplitude), points=[math.copysign(min(width, abs(p)), p)])[0]
        if p
        else 0.0
        for p in POINTS
    ]
    assert surrogate.primitive(z).tolist() == pytest.approx(integral, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", SURROGATES)
def test_far_tails_are_finite_and_input_is_untouched(name):
    z = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4])
    kept = z.clone()
    assert torch.isfinite(make_surrogate(name).derivative(z)).all()
    assert torch.equal(z, kept)


def test_published_triangle_is_the_default():
    assert describe(Triangle()) == "triangle(width=1,amplitude=0.3)"


def test_bad_names_and_values():
    with pytest.raises(InputError, match=r"'triangel'.*'triangle'"):
        make_surrogate("triangel")
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="width"):
            make_surrogate("triangle", width=bad)
