"""Mechanism A: any training, ascent on the forget set, projection, then noise.

Noise comes from projection + noise; ascent certifies nothing, and is free if the model is projected
after it. Tags: [P] proved in docs/certificate.md, [C] classical. None of it is a theorem of the
paper by Varshney & Torra, whose text we do not have.

**Guarantee** (`decoupling_sensitivity`, `output_perturbation_sigma`, `noisy_ascent_mu`)
* Neighbours: any training data D with any forget set in D, of any size, against D without it; any
  training algorithm, random or not.
* Compared with: certifier "retrain", the same projection and noise applied to a model trained
  without the forget set; "reference", applied to a fixed public model, which is a weaker claim
  (the distance to retraining is then 2 mu).
* Assumes: radii, clip norm, steps and noise were chosen without the forget set; the centre of the
  balls never saw it; only the noised parameters are released, and the noise key never is.
* Not covered: optimizer state, averages of weights, batch statistics, earlier checkpoints,
  floating-point sampling, and what the bounds tagged conditional assume.
"""

import math
from numbers import Real

from unlearn_jax.certify.bounds.arguments import count, nonnegative, one_of, positive
from unlearn_jax.certify.bounds.gaussian import analytic_gaussian_sigma
from unlearn_jax.config.certified import CERTIFIERS

ASSUMED = {  # what the bounds tagged conditional assume, by regime
    "strongly_convex": "original and retrained are exact minimisers of strongly convex losses",
    "smooth_convex": "full-batch gradient descent, one start, convex L-smooth losses, step <= 2/L",
    "smooth_nonconvex": "full-batch gradient descent, one start, L-smooth losses",
}


def decoupling_sensitivity(
    init_radius: Real,
    ascent_steps: Real,
    ascent_step_size: Real,
    ascent_clip_norm: Real,
    reprojection_radius: Real | None = None,
    certifier: str = "retrain",
) -> float:
    """The largest distance between the decoupled model and the certifier's, before noise. [P]

    Without re-projection 2 C0 + eta T C1 ("retrain") or C0 + eta T C1 ("reference"); with it the
    smaller of that and C0 + C_dec ("retrain") or C_dec ("reference"): with C_dec = C0 any ascent,
    also without clipping or with a stop rule, costs nothing.

    Args:
      init_radius: C0 of the ball around the reference that the start is projected to, above 0.
      ascent_steps: T, may be 0.
      ascent_step_size: eta, the learning rate.
      ascent_clip_norm: C1, L2 norm that each ascent gradient is clipped to; inf: not clipped.
      reprojection_radius: C_dec, of a projection after the ascent; None: there is none.
      certifier: "retrain" or "reference", see the module.

    Raises:
      ValueError: an argument is out of range, or nothing bounds the ascent.
    """
    positive(init_radius=init_radius)
    count(0, ascent_steps=ascent_steps)
    nonnegative(ascent_step_size=ascent_step_size)
    if ascent_clip_norm != math.inf:
        nonnegative(ascent_clip_norm=ascent_clip_norm)
    one_of(CERTIFIERS, certifier=certifier)
    length = ascent_steps * ascent_step_size
    start = 2 * init_radius if certifier == "retrain" else init_radius
    bound = start + (length * ascent_clip_norm if length else 0.0)
    if reprojection_radius is not None:
        positive(reprojection_radius=reprojection_radius)
        projected = init_radius if certifier == "retrain" else 0.0
        bound = min(bound, projected + reprojection_radius)
    if bound == math.inf:
        raise ValueError(
            "ascent_clip_norm: expected a finite clip norm, or a reprojection_radius; ascent that "
            "is neither clipped nor projected is bounded by nothing."
        )
    return float(bound)


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
