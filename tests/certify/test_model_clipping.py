"""Model clipping in cases that can be written down: one step, from any start."""

import math

import pytest

from unlearn_jax.certify.bounds.model_clipping import (
    model_clipping_delta,
    model_clipping_epsilon,
    model_clipping_sigma,
)
from unlearn_jax.registry import UserError


def total_variation(mu):
    """Of normals whose means are mu deviations apart: delta at epsilon 0."""
    return math.erf(mu / math.sqrt(8))


@pytest.mark.parametrize(
    ("options", "radius"),
    [
        ({}, 1.5),
        ({"order": "noise_then_project", "step_size": 0.1, "grad_clip_norm": 3.0}, 1.8),
        (
            {"order": "noise_then_project", "step_size": 0.1, "grad_clip_norm": 3.0,
             "init_radius": 0.4}, 0.7,
        ),
    ],
)  # fmt: skip
def test_one_step_is_one_gaussian_mechanism(options, radius):
    found = model_clipping_delta(1.5, 2.0, 1, 0.0, **options)
    assert found == pytest.approx(total_variation(2 * radius / 2.0), rel=1e-12)


def test_epsilon_is_zero_only_where_delta_allows_it():
    at_zero = model_clipping_delta(1.0, 2.0, 3, 0.0)
    assert model_clipping_epsilon(1.0, 2.0, 3, at_zero * 1.0001) == 0.0
    found = model_clipping_epsilon(1.0, 2.0, 3, at_zero / 10)
    assert found > 0.1
    assert model_clipping_delta(1.0, 2.0, 3, found) == pytest.approx(at_zero / 10, rel=1e-9)


def test_sigma_is_the_least_noise_from_any_start():
    options = {"order": "noise_then_project", "step_size": 0.5, "grad_clip_norm": 2.0}
    for steps, more in ((2, {}), (2, {"init_radius": 0.1}), (1, {"init_radius": 4.0})):
        sigma = model_clipping_sigma(1.0, steps, 1.0, 1e-3, **options, **more)
        found = model_clipping_delta(1.0, sigma, steps, 1.0, **options, **more)
        assert found == pytest.approx(1e-3, rel=1e-9)


@pytest.mark.parametrize("noise_std", [0.0, -1.0, math.nan])
def test_noise_that_is_none_is_refused(noise_std):
    with pytest.raises(UserError, match="noise_std"):
        model_clipping_delta(1.0, noise_std, 1, 1.0)


def test_noise_that_certifies_nothing_is_said_at_once():
    """Its epsilon would be of hundreds of digits, after as many evaluations of every step."""
    with pytest.raises(UserError, match="noise_std: expected so much that epsilon is below"):
        model_clipping_epsilon(1.0, 1e-9, 10**6, 1e-5)


def test_steps_that_change_nothing_are_not_taken():
    few, many = (model_clipping_delta(1.0, 1e-3, steps, 1.0) for steps in (5, 10**9))
    assert few == many == 1.0
