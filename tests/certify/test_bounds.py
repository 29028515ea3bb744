import importlib.util
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, stats

from tests.certify import reference
from tests.helpers.binaries import ROOT
from unlearn_jax.audit import statistics
from unlearn_jax.certify import bounds
from unlearn_jax.certify.bounds import reflection

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())["vectors"]


@pytest.mark.parametrize("vector", VECTORS, ids=[v["id"] for v in VECTORS])
def test_values_of_high_precision_arithmetic(vector):
    homes = (bounds, reference, statistics)
    (function, *_) = (
        getattr(h, vector["function"]) for h in homes if hasattr(h, vector["function"])
    )
    found = function(**vector["inputs"])
    expected, tolerance = float(vector["value"]), vector.get("rtol", 1e-6)
    if float(expected).is_integer() and tolerance == 1e-6:
        assert found == pytest.approx(expected, rel=1e-12, abs=0)
    assert found == pytest.approx(expected, rel=tolerance, abs=0)


# ---- exact worst cases, by quadrature ----------------------------------------------------------


def hockey_stick(p, q, epsilon, points):
    """sup_S P(S) - e^eps Q(S) of two densities on the line."""
    value, _ = integrate.quad(
        lambda x: max(p(x) - math.exp(epsilon) * q(x), 0.0),
        *(min(points) - 40, max(points) + 40), points=points, limit=500, epsabs=1e-14,
    )  # fmt: skip
    return value


@pytest.mark.parametrize(("mu", "epsilon"), [(0.3, 0.0), (0.3, 0.5), (1.0, 1.0), (3.0, 2.0)])
def test_delta_of_two_gaussians_is_their_hockey_stick_divergence(mu, epsilon):
    crossing = epsilon / mu + mu / 2
    exact = hockey_stick(stats.norm(mu).pdf, stats.norm(0).pdf, epsilon, [crossing])
    assert bounds.gaussian_delta(mu, epsilon) == pytest.approx(exact, rel=1e-7)


def test_small_and_large_values_keep_their_precision():
    assert bounds.gaussian_delta(1e-12, 0.0) == pytest.approx(1e-12 / math.sqrt(2 * math.pi))
    assert bounds.gaussian_delta(1e-200, 1.0) == 0 and bounds.gaussian_delta(0.0, 0.0) == 0
    assert bounds.gaussian_delta(1e9, 3.0) == 1
    # phi(x) ((1/x^2) mu) to first order, for mu << 1 << eps / mu
    x = 1e-3 / 1e-4 - 1e-4 / 2
    first = stats.norm.pdf(x) * 1e-4 * (1 - x * stats.norm.sf(x) / stats.norm.pdf(x))
    assert bounds.gaussian_delta(1e-4, 1e-3) == pytest.approx(first, rel=2e-3)
    for mu, delta in itertools.product((1e-6, 0.02, 1.0, 30.0), (1e-300, 1e-40, 1e-5, 0.3)):
        epsilon = bounds.gaussian_epsilon(mu, delta)
        if epsilon:
            assert bounds.gaussian_mu(epsilon, delta) == pytest.approx(mu, rel=1e-9)


def test_decoupling_is_attained_by_antipodal_starts_and_a_collinear_gradient():
    """1-D: starts at +C0 and -C0, ascent that moves outwards by eta C1 in every step."""
    arguments = {"init_radius": 0.5, "ascent_steps": 7, "ascent_step_size": 0.02}
    arguments |= {"ascent_clip_norm": 1.5}
    unlearned, certifier = 0.5 + 7 * 0.02 * 1.5, -0.5
    sigma = reference.output_perturbation_sigma(**arguments, epsilon=1.0, delta=1e-2)
    p, q = stats.norm(unlearned, sigma).pdf, stats.norm(certifier, sigma).pdf
    crossing = sigma**2 / (unlearned - certifier) + (unlearned + certifier) / 2
    assert hockey_stick(p, q, 1.0, [crossing]) == pytest.approx(1e-2, rel=1e-6)


def test_ascent_is_free_if_the_model_is_projected_after_it():
    unclipped = (0.5, 10**6, 10.0, math.inf)
    assert bounds.decoupling_sensitivity(*unclipped, 0.5) == 1.0
    assert bounds.decoupling_sensitivity(*unclipped, 0.5, "reference") == 0.5
    with pytest.raises(ValueError, match="bounded by nothing"):
        bounds.decoupling_sensitivity(*unclipped)


def adversary(epsilon, rho, shift, sigma, steps, distance, clip=None):
    """The divergence that a greedy 1-D adversary reaches, by quadrature on a grid.

    Its map drifts by shift / 2 (with clip: jumps to +-clip) towards the side on which the two
    densities already differ.
    """
    x = np.linspace(-22, 22, 2201) * max(sigma, 0.4) + distance / 7  # no node on a threshold
    weight, factor = x[1] - x[0], math.exp(epsilon)

    def push(density, sign):
        target = clip * sign if clip else rho * x + sign * shift / 2
        return stats.norm.pdf(x[:, None], target[None, :], sigma) @ density * weight

    starts = (clip, -clip) if clip else [s * (rho * distance + shift) / 2 for s in (1, -1)]
    p, q = (stats.norm.pdf(x, start, sigma) for start in starts)
    for _ in range(steps - 1):
        sign = np.where(p > factor * q, 1.0, -1.0)
        p, q = push(p, sign), push(q, sign)
    return float(np.maximum(p - factor * q, 0).sum() * weight)


@pytest.mark.long
@pytest.mark.parametrize(
    ("rho", "steps", "epsilon"), [(1.0, 1, 1.0), (1.0, 2, 1.0), (1.0, 6, 0.5), (0.9, 6, 1.0)]
)
def test_fine_tuning_is_bounded_above_the_exact_worst_case_in_one_dimension(rho, steps, epsilon):
    step_size, clip, decay = 0.1, 1.0, (1 - rho) / 0.1
    mu = bounds.noisy_finetune_mu(2.0, steps, step_size, clip, 1.4, decay)
    gdp = bounds.gaussian_delta(mu, epsilon)
    mirror = bounds.reflection_delta(2.0, rho, 0.2, 1.4, steps, epsilon)
    exact = adversary(epsilon, rho, 0.2, 1.4, steps, 2.0)
    assert exact <= mirror * 1.001 and mirror <= gdp * (1 + 1e-9)
    if steps == 1:
        assert mirror == pytest.approx(gdp) and exact == pytest.approx(gdp, rel=1e-4)
    else:
        assert mirror <= 1.15 * exact and gdp > 1.1 * exact


@pytest.mark.parametrize(("steps", "epsilon"), [(1, 1.0), (4, 1.0), (5, 0.0)])
def test_model_clipping_is_attained_by_a_threshold_adversary(steps, epsilon):
    exact = adversary(epsilon, 1.0, 0.0, 0.9, steps, 0.0, clip=0.7)
    assert bounds.model_clipping_delta(0.7, 0.9, steps, epsilon) == pytest.approx(exact, rel=2e-3)
    if epsilon == 0:
        total_variation = 2 * stats.norm.cdf(0.7 / 0.9) - 1
        assert exact == pytest.approx(total_variation**steps, rel=2e-3)


def test_noisy_ascent_is_attained_by_a_constant_drift():
    mu = reference.noisy_ascent_mu(0.4, 9, 0.1, 2.0, 0.7)
    p, q = stats.norm(0.4 + 9 * 0.2, 0.7 * 3).pdf, stats.norm(-0.4, 0.7 * 3).pdf
    crossing = (0.7 * 3) ** 2 / (0.8 + 1.8) + 0.9
    exact = hockey_stick(p, q, 1.0, [crossing])
    assert bounds.gaussian_delta(mu, 1.0) == pytest.approx(exact, rel=1e-6)


def test_a_schedule_is_bounded_above_what_a_constant_drift_reaches():
    """All drifts outwards: Gaussians with D_T, V_T of the schedule itself, so B1 is attained."""
    rho, shift, noise = [0.9, 1.0, 0.8], [0.1, 0.3, 0.2], [1.0, 0.5, 0.7]
    distance, variance = 1.0, 0.0
    for r, s, n in zip(rho, shift, noise, strict=True):
        distance, variance = r * distance + s, r**2 * variance + n**2
    found = reference.iteration_mu(1.0, rho, shift, noise, identical_maps=False)
    assert found == pytest.approx(distance / variance**0.5)
    assert reference.iteration_mu(1.0, rho, shift, noise) <= found


def test_noise_that_comes_before_the_shift_cannot_hide_it():
    with pytest.raises(ValueError, match="no feasible horizon"):
        reference.iteration_mu(0.1, [1.0, 1.0], [0.0, 5.0], [1.0, 1e-3], identical_maps=False)
    found = reference.iteration_mu(0.1, [1.0, 1.0], [0.0, 5.0], [1.0, 1e-3])
    assert found == pytest.approx(0.1)  # of the first step; the second is post-processing
    with pytest.raises(ValueError, match="no feasible horizon"):
        reference.iteration_mu(0.1, [1.0], [0.0], [0.0])


# ---- relations ---------------------------------------------------------------------------------


def decreasing(values):
    assert all(a > b for a, b in itertools.pairwise(values)), values


@pytest.mark.long
def test_monotone_in_every_direction():
    decreasing([bounds.gaussian_delta(0.7, e) for e in (0.0, 0.3, 1.0, 4.0)])
    decreasing([bounds.gaussian_epsilon(0.7, d) for d in (1e-12, 1e-5, 1e-2)])
    decreasing([bounds.analytic_gaussian_sigma(1.0, e, 1e-5) for e in (0.0, 0.1, 1.0, 30.0)])
    decreasing([bounds.analytic_gaussian_sigma(1.0, 1.0, d) for d in (1e-12, 1e-5, 0.5)])
    decreasing([bounds.model_clipping_delta(1.0, 0.8, t, 1.0) for t in (1, 2, 5, 20)])
    decreasing([bounds.model_clipping_delta(1.0, s, 5, 1.0) for s in (0.4, 0.8, 1.6)])
    decreasing([bounds.model_clipping_delta(1.0, 0.8, 5, e) for e in (0.0, 0.5, 2.0)])
    decreasing([bounds.reflection_delta(2.0, 1.0, 0.2, 1.5, t, 1.0) for t in (1, 2, 3, 5)])
    decreasing([bounds.reflection_delta(2.0, 1.0, 0.2, s, 3, 1.0) for s in (0.8, 1.5, 3.0)])
    decreasing([bounds.reflection_delta(2.0, 0.95, 0.2, 1.5, 4, e) for e in (0.0, 1.0, 3.0)])
    mus = [bounds.noisy_finetune_mu(2.0, t, 0.1, 1.0, 1.0) for t in (1, 3, 10, 30, 300)]
    decreasing(mus[:3])
    assert mus[2] == mus[3] == mus[4]  # more steps never hurt
    assert bounds.noisy_finetune_mu(2.0, 300, 0.1, 1.0, 1.0, 0.0, True) > mus[4]


def test_the_best_horizon_is_found_without_trying_all():
    for distance, clip, decay in [(2.0, 1.0, 0.0), (0.3, 2.0, 1.0), (3.0, 0.5, 4.0), (0.0, 1, 2.0)]:
        each = [bounds.noisy_finetune_mu(distance, t, 0.05, clip, 1.0, decay, True)
                for t in range(1, 61)]  # fmt: skip
        found = bounds.noisy_finetune_mu(distance, 60, 0.05, clip, 1.0, decay)
        assert found == pytest.approx(min(each), rel=1e-12)
        chain = [[1 - 0.05 * decay] * 60, [0.1 * clip] * 60, [1.0] * 60]
        assert reference.iteration_mu(distance, *chain) == pytest.approx(found, rel=1e-9)
        assert reference.iteration_mu(distance, *chain, False) == pytest.approx(each[-1], rel=1e-9)


def test_one_step_is_output_perturbation():
    assert bounds.noisy_finetune_mu(2.0, 1, 0.1, 1.0, 3.0, 1.0) == pytest.approx(2.0 / 3)
    assert bounds.model_clipping_delta(1.0, 3.0, 1, 0.5) == bounds.gaussian_delta(2 / 3, 0.5)
    assert bounds.reflection_delta(2.0, 0.9, 0.2, 3.0, 1, 0.5) == pytest.approx(
        bounds.gaussian_delta(2.0 / 3, 0.5), rel=1e-12
    )


def test_reflection_without_drift_is_the_gaussian_and_a_cap_helps():
    """Rotating all noise towards the distance leaves N(0, T sigma^2): exact, also in four steps."""
    for epsilon in (0.0, 1.0):
        exact = bounds.gaussian_delta(2.0 / (1.1 * 2), epsilon)
        found = bounds.reflection_delta(2.0, 1.0, 0.0, 1.1, 4, epsilon)
        assert found == pytest.approx(exact, rel=1e-6)
    free = bounds.reflection_delta(2.0, 1.0, 0.5, 1.1, 4, 1.0)
    capped = bounds.reflection_delta(2.0, 1.0, 0.5, 1.1, 4, 1.0, cap=2.0)
    assert free > capped > 0
    jumps = bounds.reflection_delta(2.0, 1.0, 2.0, 1.1, 4, 1.0, cap=2.0)  # any map into the ball
    assert jumps > bounds.model_clipping_delta(1.0, 1.1, 4, 1.0)  # which is attained


def test_reflection_ends_above_a_finer_grid():
    arguments = (2.2, 1.0, 0.2, math.inf, 6, 1.0)
    finer = reflection._evaluate(*arguments, 0.8, 400)
    found = bounds.reflection_delta(2.0, 1.0, 0.2, 1.0, 6, 1.0)
    assert finer <= found <= 1.002 * finer


@pytest.mark.long
def test_noise_for_a_target_meets_it():
    sigma = bounds.noisy_finetune_sigma(2.0, 20, 0.1, 1.0, 0.5, epsilon=2.0, delta=1e-6)
    mu = bounds.noisy_finetune_mu(2.0, 20, 0.1, 1.0, sigma, 0.5)
    assert bounds.gaussian_delta(mu, 2.0) == pytest.approx(1e-6)
    for order in ({}, {"order": "noise_then_project", "step_size": 0.1, "grad_clip_norm": 2.0,
                       "init_radius": 3.0}):  # fmt: skip
        sigma = bounds.model_clipping_sigma(1.0, 6, 0.5, 1e-4, **order)
        found = bounds.model_clipping_delta(1.0, sigma, 6, 0.5, **order)
        assert found == pytest.approx(1e-4, rel=1e-8)
        epsilon = bounds.model_clipping_epsilon(1.0, sigma, 6, 1e-4, **order)
        assert epsilon == pytest.approx(0.5, rel=1e-6)
    sigma = bounds.reflection_sigma(2.0, 1.0, 0.5, 4, epsilon=1.0, delta=1e-3)
    assert 0.998e-3 <= bounds.reflection_delta(2.0, 1.0, 0.5, sigma, 4, 1.0) <= 1e-3
    assert sigma < bounds.noisy_finetune_sigma(2.0, 4, 0.25, 1.0, epsilon=1.0, delta=1e-3)


def test_model_clipping_below_the_smallest_float_stays_above_zero():
    assert 0 < bounds.model_clipping_delta(1.0, 5.0, 1000, 1.0) < 1e-250
    assert bounds.model_clipping_epsilon(1.0, 5.0, 1000, 1e-9) < 1e-6
    assert bounds.model_clipping_delta(1.0, 0.1, 3, 800.0) < 1  # e^eps overflows


def test_conversions_are_ordered_and_the_published_constant_costs_what_is_said():
    for rho in (0.0193, 0.1, 1.0, 10.0):
        exact = bounds.gaussian_epsilon(math.sqrt(2 * rho), 1e-5)
        improved, basic = (f(rho, 1e-5) for f in (reference.rdp_epsilon_improved,
                                                  reference.rdp_epsilon_basic))  # fmt: skip
        assert exact < improved < basic
    published = reference.noisy_finetune_sigma_published(1.0, 100, 0.01, 1.0, 1.0, 1e-5)
    ours = bounds.noisy_finetune_sigma(2.0, 100, 0.01, 1.0, epsilon=1.0, delta=1e-5)
    assert published / ours == pytest.approx(1.364, abs=5e-4)
    classical = reference.classical_gaussian_sigma(1.0, 1.0, 1e-5)
    assert bounds.gaussian_epsilon(1 / classical, 1e-5) == pytest.approx(0.751, abs=5e-4)


def test_conditional_bounds_hold_where_their_assumptions_do():
    """Quadratic losses in closed form: l_i = h (theta - c_i)^2 / 2."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(-1, 1, 40)
    forget = 4
    original, retrained = centres.mean(), centres[forget:].mean()
    gap = abs(original - retrained)
    h, radius = 0.5, 2.0  # |grad| <= h * 2 on [-1, 1]
    kappa = reference.stability_distance(
        "strongly_convex", h * radius, 40, forget, strong_convexity=h
    )
    assert gap <= kappa
    theta = [0.0, 0.0]
    for _ in range(25):
        theta = [t - 0.3 * h * (t - c) for t, c in zip(theta, (original, retrained), strict=True)]
    reached = abs(theta[0] - theta[1])
    more = {"smoothness": h, "steps": 25, "step_size": 0.3}
    convex = reference.stability_distance("smooth_convex", h * radius, 40, forget, **more)
    general = reference.stability_distance("smooth_nonconvex", h * radius, 40, forget, **more)
    assert reached <= convex <= general
    slope = abs(h * (original - centres[:forget].mean()))
    ideal = forget / (40 - forget) / h
    left = reference.newton_like_distance(slope, 40, forget, h, h, ideal)
    assert left == pytest.approx(0, abs=1e-15)  # one Hessian: the step is the exact removal
    moved = original + ideal * h * (original - centres[:forget].mean())
    assert moved == pytest.approx(retrained)
    assert reference.conditional_mu(
        kappa, reference.ascent_path_length(3, 0.1, gradient_bound=2.0), 2.0
    )
    grown = reference.ascent_path_length(3, 0.1, first_gradient_norm=2.0, smoothness=h)
    assert grown == pytest.approx(0.1 * 2 * sum((1 + 0.1 * h) ** k for k in range(3)))
    assert set(reference.ASSUMED) == {"strongly_convex", "smooth_convex", "smooth_nonconvex"}


# ---- other packages ----------------------------------------------------------------------------


def test_agrees_with_dp_accounting():
    accounting = pytest.importorskip("dp_accounting")
    from dp_accounting import pld, rdp

    for sigma, delta in ((0.3, 1e-5), (1.0, 1e-6), (3.73, 1e-5), (20.0, 1e-3)):
        ours = bounds.gaussian_epsilon(1 / sigma, delta)
        assert ours == pytest.approx(accounting.get_epsilon_gaussian(sigma, delta), rel=1e-5)
        if ours:
            theirs = accounting.get_sigma_gaussian(ours, delta)
            assert bounds.analytic_gaussian_sigma(1.0, ours, delta) == pytest.approx(
                theirs, rel=1e-5
            )
    event = accounting.SelfComposedDpEvent(accounting.GaussianDpEvent(4.0), 4)
    accountant = pld.PLDAccountant(value_discretization_interval=1e-3).compose(event)
    mu = math.sqrt(4) / 4.0  # of the four together
    assert bounds.gaussian_epsilon(mu, 1e-5) == pytest.approx(
        accountant.get_epsilon(1e-5), rel=1e-3
    )
    orders = np.linspace(1.5, 200, 4000).tolist()
    renyi = rdp.RdpAccountant(orders).compose(accounting.GaussianDpEvent(1 / math.sqrt(2)))
    assert reference.rdp_epsilon_improved(1.0, 1e-5) == pytest.approx(
        renyi.get_epsilon(1e-5), rel=1e-3
    )


def test_importing_the_bounds_does_not_import_jax():
    code = (
        "import sys, unlearn_jax.certify.bounds as b; b.gaussian_mu(1.0, 1e-5);"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('jax', 'jaxlib', 'flax')))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
    assert importlib.util.find_spec("jax") is not None


# ---- impossible arguments ----------------------------------------------------------------------

ASCENT = (0.5, 10, 0.01, 1.0)
TUNE = (0.2, 10, 0.01, 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bounds.gaussian_delta(-1.0, 1.0), r"mu: .* got -1.0"),
        (lambda: bounds.gaussian_delta(1.0, -0.1), r"epsilon: .* got -0.1"),
        (lambda: bounds.gaussian_delta(1.0, math.inf), r"epsilon: .* got inf"),
        (lambda: bounds.gaussian_delta(math.nan, 1.0), r"mu: .* got nan"),
        (lambda: bounds.gaussian_epsilon(1.0, 0.0), r"delta: .*\(0, 1\), got 0.0"),
        (lambda: bounds.gaussian_mu(1.0, 1.0), r"delta: .* got 1.0"),
        (lambda: bounds.analytic_gaussian_sigma(0.0, 1.0, 1e-5), r"sensitivity: .* got 0.0"),
        (lambda: reference.classical_gaussian_sigma(1.0, 1.1, 1e-5), r"at most 1, .* got 1.1"),
        (lambda: reference.rdp_epsilon_basic(0.0, 1e-5), "rho"),
        (lambda: bounds.decoupling_sensitivity(0.0, 10, 0.1, 1.0), r"init_radius: .* got 0.0"),
        (lambda: bounds.decoupling_sensitivity(*ASCENT, -1.0), r"reprojection_radius: .* got -1.0"),
        (lambda: bounds.decoupling_sensitivity(*ASCENT, None, "x"), r"certifier: .* got 'x'"),
        (lambda: bounds.decoupling_sensitivity(0.5, 2.5, 0.1, 1.0), r"ascent_steps: .* got 2.5"),
        (lambda: reference.noisy_ascent_mu(*ASCENT, 0.0), r"noise_std: .* got 0.0"),
        (lambda: reference.noisy_ascent_mu(0.5, 0, 0.1, 1.0, 1.0), r"ascent_steps: .* got 0"),
        (lambda: bounds.noisy_finetune_mu(*TUNE, -1.0), r"noise_std: .* got -1.0"),
        (lambda: bounds.noisy_finetune_mu(0.2, 0, 0.1, 1.0, 1.0), r"steps: .* got 0"),
        (lambda: bounds.noisy_finetune_mu(0.2, 1.5, 0.1, 1.0, 1.0), r"steps: .* got 1.5"),
        (lambda: bounds.noisy_finetune_mu(*TUNE, 1.0, 100.0), r"\[0, 1\), got 0.01 \* 100.0"),
        (lambda: bounds.noisy_finetune_mu(*TUNE, 1.0, -1.0), r"weight_decay: .* got -1.0"),
        (
            lambda: reference.noisy_finetune_sigma_published(0.1, 10, 0.01, 1.0, 3.0, 1e-5),
            r"log\(1/delta\)/4 = 2.878, .* got 3.0",
        ),
        (lambda: reference.iteration_mu(1.0, [1.0], [0.1, 0.1], [1.0]), r"length .* 1, 2 and 1"),
        (lambda: reference.iteration_mu(1.0, [], [], []), "at least 1"),
        (lambda: bounds.model_clipping_delta(1.0, 1.0, 5, 1.0, "x"), r"order: .* got 'x'"),
        (lambda: bounds.model_clipping_delta(0.0, 1.0, 5, 1.0), "model_clip_norm"),
        (lambda: bounds.model_clipping_sigma(1.0, 5, 9.0, 0.1, init_noise_std=9.0), "alone"),
        (lambda: bounds.reflection_delta(1.0, 0.0, 0.1, 1.0, 2, 1.0), "contraction"),
        (lambda: bounds.reflection_delta(1.0, 1.0, 0.1, 1.0, 2, 1.0, cap=0.0), "cap"),
        (lambda: bounds.reflection_delta(1.0, 1.0, 0.1, 1.0, 10**4, 1.0), r"accountant 'gdp'"),
        (lambda: reference.stability_distance("x", 1.0, 10, 1), "regime"),
        (lambda: reference.stability_distance("strongly_convex", 1.0, 10, 1), "strong_convexity"),
        (
            lambda: reference.stability_distance(
                "smooth_convex", 1.0, 10, 1, smoothness=5.0, steps=9, step_size=1.0
            ),
            "2 / smoothness",
        ),
        (lambda: statistics.epsilon_lower_bound(9, 8, 0, 8, 0.05, 0.0), "got 9 of 8"),
        (lambda: statistics.epsilon_lower_bound(8, 8, 0, 8, 0.05, 1.0), "delta"),
        (lambda: statistics.one_run_p_value(10, 11, 5, 1.0, 0.0), "got 11 of 10"),
        (lambda: statistics.one_run_p_value(10, 9, 5, -1.0, 0.0), "finite epsilon"),
    ],
)  # fmt: skip
def test_impossible_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
