"""Bounds that no command uses: what those that are used are compared with."""

import math
from collections.abc import Sequence
from numbers import Real

import numpy as np
from scipy import optimize

from unlearn_jax.certify.bounds import (
    analytic_gaussian_sigma,
    decoupling_sensitivity,
    noisy_finetune_mu,
)
from unlearn_jax.certify.bounds.arguments import count, nonnegative, one_of, positive, probability
from unlearn_jax.certify.bounds.noisy_finetune import _chain
from unlearn_jax.config.certified import CERTIFIERS

ASSUMED = {  # what the bounds tagged conditional assume, by regime
    "strongly_convex": "original and retrained are exact minimisers of strongly convex losses",
    "smooth_convex": "full-batch gradient descent, one start, convex L-smooth losses, step <= 2/L",
    "smooth_nonconvex": "full-batch gradient descent, one start, L-smooth losses",
}


def output_perturbation_sigma(
    init_radius: Real,
    ascent_steps: Real,
    ascent_step_size: Real,
    ascent_clip_norm: Real,
    reprojection_radius: Real | None = None,
    certifier: str = "retrain",
    *,
    epsilon: Real,
    delta: Real,
) -> float:
    """The smallest noise per coordinate after decoupling for (epsilon, delta)-unlearning. [P]

    `decoupling_sensitivity` / mu; attained by antipodal starts and a collinear ascent.

    Args:
      init_radius: see `decoupling_sensitivity`, as for all up to certifier.
      ascent_steps: T.
      ascent_step_size: eta.
      ascent_clip_norm: C1.
      reprojection_radius: C_dec.
      certifier: "retrain" or "reference".
      epsilon: nats, at least 0.
      delta: within (0, 1).
    """
    sensitivity = decoupling_sensitivity(
        init_radius,
        ascent_steps,
        ascent_step_size,
        ascent_clip_norm,
        reprojection_radius,
        certifier,
    )
    return analytic_gaussian_sigma(sensitivity, epsilon, delta)


def noisy_ascent_mu(
    init_radius: Real,
    ascent_steps: Real,
    ascent_step_size: Real,
    ascent_clip_norm: Real,
    noise_std: Real,
    certifier: str = "retrain",
) -> float:
    """The mu of ascent that adds noise to the parameters at every step, last iterate only. [P]

    (d0 + T eta C1) / (sigma sqrt(T)), d0 = 2 C0 ("retrain") or C0 ("reference"); the certifier runs
    the same chain without gradients. With init_radius = 0 this is the guarantee of the *updates*
    only: it hides how the ascent used the forget set, not what the model had learned from it. That
    is not an unlearning guarantee and must not be printed as one.

    Args:
      init_radius: C0, at least 0.
      ascent_steps: T, at least 1.
      ascent_step_size: eta.
      ascent_clip_norm: C1.
      noise_std: sigma on the parameters, per step.
      certifier: "retrain" or "reference".

    Raises:
      ValueError: an argument is out of range.
    """
    nonnegative(
        init_radius=init_radius,
        ascent_step_size=ascent_step_size,
        ascent_clip_norm=ascent_clip_norm,
    )
    count(ascent_steps=ascent_steps)
    positive(noise_std=noise_std)
    one_of(CERTIFIERS, certifier=certifier)
    distance = 2 * init_radius if certifier == "retrain" else init_radius
    distance += ascent_steps * ascent_step_size * ascent_clip_norm
    return distance / (noise_std * math.sqrt(ascent_steps))


def stability_distance(
    regime: str,
    gradient_bound: Real,
    n: Real,
    m: Real,
    *,
    strong_convexity: Real | None = None,
    smoothness: Real | None = None,
    steps: Real | None = None,
    step_size: Real | None = None,
) -> float:
    """An assumed bound of the distance between original and retrained model. Conditional. [P]

    **Guarantee**: none by itself; it holds under `ASSUMED[regime]`, which no check here verifies
    and no deep network meets. Every number made from it is conditional.

    * "strongly_convex": m G / (mu n).
    * "smooth_convex": 2 eta T G m / n, for eta <= 2 / L.
    * "smooth_nonconvex": (2 m G / (n L)) ((1 + eta L)^T - 1).

    Args:
      regime: one of the three.
      gradient_bound: G, of the L2 norm of every example's gradient.
      n: training examples.
      m: of these, forgotten.
      strong_convexity: mu.
      smoothness: L; in the convex regime only checked, and left to the caller if None.
      steps: T.
      step_size: eta.

    Raises:
      ValueError: an argument is missing or out of range.
    """
    one_of(ASSUMED, regime=regime)
    positive(gradient_bound=gradient_bound)
    count(n=n, m=m)
    if m >= n:
        raise ValueError(f"m: expected fewer than n = {n!r}, got {m!r}.")
    wanted = {
        "strongly_convex": {"strong_convexity": strong_convexity},
        "smooth_convex": {"steps": steps, "step_size": step_size},
        "smooth_nonconvex": {"smoothness": smoothness, "steps": steps, "step_size": step_size},
    }[regime]
    missing = [name for name, value in wanted.items() if value is None]
    if missing:
        raise ValueError(f"{', '.join(missing)}: expected for regime {regime!r}, got None.")
    positive(**wanted)
    if regime == "strongly_convex":
        return m * gradient_bound / (strong_convexity * n)
    count(steps=steps)
    if regime == "smooth_convex":
        if smoothness is not None and step_size * smoothness > 2:
            raise ValueError(
                f"step_size: expected at most 2 / smoothness = {2 / smoothness}, got {step_size!r}."
            )
        return 2 * step_size * steps * gradient_bound * m / n
    growth = math.expm1(steps * math.log1p(step_size * smoothness))
    return 2 * m * gradient_bound / (n * smoothness) * growth


def ascent_path_length(
    steps: Real,
    step_size: Real,
    *,
    gradient_bound: Real | None = None,
    first_gradient_norm: Real | None = None,
    smoothness: Real | None = None,
) -> float:
    """How far ascent can move: eta T G, or |g_0| ((1 + eta L)^T - 1) / L if L-smooth. [P]

    Args:
      steps: T, may be 0.
      step_size: eta.
      gradient_bound: G, by clipping or by assumption (then conditional).
      first_gradient_norm: |g_0|, if there is no G.
      smoothness: L, with first_gradient_norm; an assumption.

    Raises:
      ValueError: neither bound is given, or an argument is out of range.
    """
    count(0, steps=steps)
    nonnegative(step_size=step_size)
    if gradient_bound is not None:
        nonnegative(gradient_bound=gradient_bound)
        return steps * step_size * gradient_bound
    if first_gradient_norm is None or smoothness is None:
        raise ValueError(
            "ascent_path_length: expected gradient_bound, or first_gradient_norm and smoothness, "
            f"got first_gradient_norm={first_gradient_norm}, smoothness={smoothness}."
        )
    nonnegative(first_gradient_norm=first_gradient_norm)
    positive(smoothness=smoothness)
    return first_gradient_norm * math.expm1(steps * math.log1p(step_size * smoothness)) / smoothness


def conditional_mu(distance: Real, path_length: Real, noise_std: Real) -> float:
    """The mu of output perturbation without projection, if |original - retrained| <= distance. [P]

    (kappa + P) / sigma. **Guarantee**: conditional on that distance, for the coupling it was
    derived for; at best of one request. It grows with the ascent.

    Args:
      distance: kappa, from `stability_distance` or another assumption.
      path_length: P, of `ascent_path_length`.
      noise_std: sigma.
    """
    nonnegative(distance=distance, path_length=path_length)
    positive(noise_std=noise_std)
    return (distance + path_length) / noise_std


def newton_like_distance(
    grad_norm: Real, n: Real, m: Real, strong_convexity: Real, smoothness: Real, length: Real
) -> float:
    """Distance to the retrained model after one ascent step of this length. Conditional. [P]

    |g_f| max over h in {mu, L} of |length - m / ((n - m) h)|. **Guarantee**: none by itself; it
    assumes that original and retrained are stationary, and that the Hessian of the retain loss
    between them is within [mu, L]. Smallest at length = (m/(n-m)) (1/mu + 1/L) / 2.

    Args:
      grad_norm: |g_f|, of the mean forget loss at the original.
      n: training examples.
      m: of these, forgotten.
      strong_convexity: mu.
      smoothness: L, at least mu.
      length: the step size alpha of theta + alpha g_f.
    """
    nonnegative(grad_norm=grad_norm, length=length)
    positive(strong_convexity=strong_convexity, smoothness=smoothness)
    count(n=n, m=m)
    if m >= n or smoothness < strong_convexity:
        raise ValueError(
            "newton_like_distance: expected m < n and strong_convexity <= smoothness, got "
            f"m={m}, n={n}, strong_convexity={strong_convexity}, smoothness={smoothness}."
        )
    ideal = [m / ((n - m) * h) for h in (strong_convexity, smoothness)]
    return grad_norm * max(abs(length - alpha) for alpha in ideal)


def iteration_mu(
    init_distance: Real,
    contraction: Sequence[Real],
    shift: Sequence[Real],
    noise_std: Sequence[Real],
    identical_maps: bool = True,
) -> float:
    """The mu of the last noisy iterate if maps bring two states to rho_t |x - y| + s_t. [P]

    D_T / sqrt(V_T) with D_{t+1} = rho_t D_t + s_t from init_distance, V_{t+1} = rho_t^2 V_t +
    sigma_t^2 from 0, where the shifts that attain it are feasible; if both runs use the same maps,
    the smallest over the horizons t <= T that are, since later steps are post-processing.

    Args:
      init_distance: d0 of the starts, at least 0.
      contraction: rho_t > 0.
      shift: s_t >= 0.
      noise_std: sigma_t >= 0 on the parameters.
      identical_maps: False if the maps depend on more than the state (momentum, other blocks).

    Raises:
      ValueError: schedules of unequal length, an argument out of range, no feasible horizon.
    """
    nonnegative(init_distance=init_distance)
    steps = len(contraction)
    if not steps or len(shift) != steps or len(noise_std) != steps:
        raise ValueError(
            "iteration_mu: expected contraction, shift and noise_std of one length of at least 1, "
            f"got {steps}, {len(shift)} and {len(noise_std)}."
        )
    for rho, s, sigma in zip(contraction, shift, noise_std, strict=True):
        positive(contraction=rho)
        nonnegative(shift=s, noise_std=sigma)
    # No shift is due before its noise iff D_t P_t / V_t, where P_t = rho_0 … rho_{t-1}, is nowhere
    # smaller than at the horizon.
    distance, variance, log_product = float(init_distance), 0.0, 0.0
    smallest, found = math.inf, math.inf
    for t in range(steps):
        distance = contraction[t] * distance + shift[t]
        variance = contraction[t] ** 2 * variance + noise_std[t] ** 2
        log_product += math.log(contraction[t])
        if variance == 0:
            continue
        if distance == 0:
            return 0.0
        ratio = math.log(distance) + log_product - math.log(variance)
        feasible, smallest = ratio <= smallest + 1e-9, min(ratio, smallest)
        if feasible and (identical_maps or t == steps - 1):
            found = min(found, distance / math.sqrt(variance))
    if found == math.inf:
        raise ValueError(
            "noise_std: no feasible horizon: without noise nothing is hidden, and noise that comes "
            f"before the shifts it should hide cannot be used; got {list(noise_std)[:8]}."
        )
    return found


def noisy_finetune_sigma_published(
    init_radius: Real, steps: Real, step_size: Real, clip_norm: Real, epsilon: Real, delta: Real
) -> float:
    """Noise per step by the constant of Koloskova et al. 2025, no weight decay; to compare. [R][P]

    sigma^2 = 9 log(1/delta) (C0 + C1 gamma T)^2 / (eps^2 T), as third parties quote it; valid for
    epsilon <= log(1/delta) / 4, which was derived again. 1.36 times `noisy_finetune_sigma` at
    (1, 1e-5).

    Args:
      init_radius: C0.
      steps: T.
      step_size: gamma.
      clip_norm: C1.
      epsilon: nats.
      delta: within (0, 1).

    Raises:
      ValueError: epsilon above log(1/delta) / 4, or an argument is out of range.
    """
    positive(init_radius=init_radius, epsilon=epsilon)
    probability(delta=delta)
    _chain(2 * init_radius, steps, step_size, clip_norm, 0.0)
    tail = -math.log(delta)
    if epsilon > tail / 4:
        raise ValueError(
            f"epsilon: expected at most log(1/delta)/4 = {tail / 4:.4g}, where the published "
            f"constant is valid, got {epsilon!r}. Use noisy_finetune_sigma."
        )
    distance = init_radius + clip_norm * step_size * steps
    return 3 * math.sqrt(tail / steps) * distance / epsilon


def noisy_finetune_sigma_zcdp(
    init_radius: Real,
    steps: Real,
    step_size: Real,
    clip_norm: Real,
    weight_decay: Real = 0.0,
    *,
    rho: Real,
) -> float:
    """Noise per step for rho-zCDP at exactly T steps, to compare with Renyi accountants. [P]

    mu^2 / 2 = rho: privacy amplification by iteration (Feldman et al. 2018) in closed form.

    Args:
      init_radius: C0; the starts are 2 C0 apart.
      steps: T.
      step_size: gamma.
      clip_norm: C1.
      weight_decay: lambda.
      rho: the Renyi divergence of every order alpha is at most alpha rho. Not an epsilon: see
        `rdp_epsilon_basic`.
    """
    positive(init_radius=init_radius, rho=rho)
    mu = noisy_finetune_mu(2 * init_radius, steps, step_size, clip_norm, 1.0, weight_decay, True)
    return mu / math.sqrt(2 * rho)


def classical_gaussian_sigma(sensitivity: Real, epsilon: Real, delta: Real) -> float:
    """Sensitivity sqrt(2 ln(1.25/delta)) / epsilon, for comparison with papers only. [C]

    Dwork & Roth 2014, Theorem A.1; proven for epsilon < 1 (1 itself is accepted, where it holds
    numerically). 30 % more noise than needed at (1, 1e-5).

    Raises:
      ValueError: epsilon above 1, or an argument out of range.
    """
    positive(sensitivity=sensitivity, epsilon=epsilon)
    probability(delta=delta)
    if epsilon > 1:
        raise ValueError(
            f"epsilon: expected at most 1, where the classical formula is proven, got {epsilon!r}. "
            "Use analytic_gaussian_sigma."
        )
    return sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / epsilon


def rdp_epsilon_basic(rho: Real, delta: Real) -> float:
    """The epsilon of a rho-zCDP bound by Mironov 2017, Proposition 3; for comparison only. [C]

    The smallest alpha rho + log(1/delta) / (alpha - 1): rho + 2 sqrt(rho log(1/delta)).
    A mu-GDP mechanism has rho = mu^2 / 2; `gaussian_epsilon` is then exact and smaller.

    Args:
      rho: the Renyi divergence of every order alpha is at most alpha rho; above 0.
      delta: within (0, 1).
    """
    positive(rho=rho)
    probability(delta=delta)
    return rho + 2 * math.sqrt(-rho * math.log(delta))


def rdp_epsilon_improved(rho: Real, delta: Real) -> float:
    """The epsilon of a rho-zCDP bound by Canonne, Kamath & Steinke 2020, Proposition 12. [C]

    The smallest alpha rho + log(1 - 1/alpha) - log(delta alpha) / (alpha - 1) over real alpha > 1,
    0 where that is negative. For comparison only.

    Args:
      rho: see `rdp_epsilon_basic`.
      delta: within (0, 1).
    """
    positive(rho=rho)
    probability(delta=delta)

    def epsilon(log_order):  # of alpha - 1
        below = math.exp(log_order)
        alpha = 1 + below
        return alpha * rho + math.log(below / alpha) - (math.log(delta) + math.log1p(below)) / below

    centre = 0.5 * math.log(-math.log(delta) / rho)  # the best order of the basic conversion
    starts = centre + np.linspace(-12, 6, 73)
    best = float(starts[int(np.argmin([epsilon(u) for u in starts]))])
    found = optimize.minimize_scalar(
        epsilon, bounds=(best - 0.5, best + 0.5), method="bounded", options={"xatol": 1e-10}
    )
    return max(0.0, float(found.fun))
