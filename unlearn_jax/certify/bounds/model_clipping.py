"""Mechanism B2: model clipping, a projection in every step, accounted by contraction.

Any update phi_t, of any size, then projection to radius C2 and noise. Noise from a bounded set
makes the hockey-stick divergence contract (Balle et al. 2019, "Privacy amplification by mixing and
diffusion mechanisms"); the recursion is exactly tight. [P], see docs/certificate.md.

**Guarantee**
* Neighbours: any training data D with any forget set in D against D without it, any training.
* Compared with: the same chain from a model trained without the forget set; radii do not enter
  by the start (except with init_radius), so both certifiers have this bound.
* Assumes: plain SGD, that is the state is the parameters alone (a momentum buffer could carry the
  start through); updates use no forget row, no original, nothing fitted on them; only the last
  iterate is released; radius, noise and steps were chosen without D_f.
* Not covered: what `decoupling` lists. There is no mu: this is (epsilon, delta), not GDP.
"""

import math
from numbers import Real

import numpy as np
import scipy

from unlearn_jax.certify.bounds.arguments import count, nonnegative, one_of, positive, probability
from unlearn_jax.certify.bounds.gaussian import analytic_gaussian_sigma, log_gaussian_delta
from unlearn_jax.registry import UserError

ORDERS = ("project_then_noise", "noise_then_project")
_MEANINGLESS = 1e6  # an epsilon that nobody would publish
_LOG_FLOOR = -600.0  # below it the recursion is doubly exponential; delta only falls further


def model_clipping_delta(
    model_clip_norm: Real,
    noise_std: Real,
    steps: Real,
    epsilon: Real,
    order: str = "project_then_noise",
    step_size: Real = 0.0,
    grad_clip_norm: Real = 0.0,
    init_radius: Real | None = None,
    init_noise_std: Real | None = None,
) -> float:
    """Return the delta after T steps of model clipping at this epsilon. [P]

    delta <- delta * theta_v(2 R / sigma), v = log(1 + (e^eps - 1) / delta), where theta_v(mu) is
    `gaussian_delta`; from delta = 1, or theta_eps(2 C0 / sigma_0) after initial noise.

    Args:
      model_clip_norm: C2 of the ball around the reference.
      noise_std: sigma on the parameters, per step.
      steps: T.
      epsilon: nats; 0 gives the total variation.
      order: "project_then_noise": R = C2, for any update. "noise_then_project": the update, a
        gradient clipped to C1, is noised and then projected: R = C2 + gamma C1, in the first step
        C0 + gamma C1.
      step_size: gamma, for "noise_then_project".
      grad_clip_norm: C1, for "noise_then_project".
      init_radius: C0 of the projection of the start; None: C2.
      init_noise_std: sigma_0, added once after that projection (and, with "noise_then_project",
        projected to C0 again); None: none.

    Raises:
      UserError: an argument is out of range.
    """
    nonnegative(epsilon=epsilon)
    return math.exp(
        _log_delta(
            model_clip_norm, noise_std, steps, epsilon, order=order, step_size=step_size,
            grad_clip_norm=grad_clip_norm, init_radius=init_radius, init_noise_std=init_noise_std,
        )
    )  # fmt: skip


def model_clipping_epsilon(
    model_clip_norm: Real,
    noise_std: Real,
    steps: Real,
    delta: Real,
    order: str = "project_then_noise",
    step_size: Real = 0.0,
    grad_clip_norm: Real = 0.0,
    init_radius: Real | None = None,
    init_noise_std: Real | None = None,
) -> float:
    """Return the least epsilon at which `model_clipping_delta` is at most delta; same arguments."""
    probability(delta=delta)

    def excess(epsilon):
        log_delta = _log_delta(
            model_clip_norm, noise_std, steps, epsilon, order=order, step_size=step_size,
            grad_clip_norm=grad_clip_norm, init_radius=init_radius, init_noise_std=init_noise_std,
        )  # fmt: skip
        return log_delta - math.log(delta)

    if excess(0.0) <= 0:
        return 0.0
    upper = 1.0
    while excess(upper) > 0:
        upper *= 2
        if upper > _MEANINGLESS:
            raise UserError(
                f"noise_std: expected so much that epsilon is below {_MEANINGLESS:g} at delta = "
                f"{delta!r}, got {noise_std!r}: nothing would be certified."
            )
    return scipy.optimize.brentq(excess, 0.0, upper, xtol=1e-14 * upper, rtol=1e-13)


def model_clipping_sigma(
    model_clip_norm: Real,
    steps: Real,
    epsilon: Real,
    delta: Real,
    order: str = "project_then_noise",
    step_size: Real = 0.0,
    grad_clip_norm: Real = 0.0,
    init_radius: Real | None = None,
    init_noise_std: Real | None = None,
) -> float:
    """Return the least noise per step at which `model_clipping_delta` is at most delta. [P]

    Args:
      model_clip_norm: see `model_clipping_delta`, as for all others.
      steps: T.
      epsilon: nats.
      delta: within (0, 1).
      order: see there.
      step_size: gamma.
      grad_clip_norm: C1.
      init_radius: C0.
      init_noise_std: sigma_0.

    Raises:
      UserError: an argument is out of range, or the initial noise alone is enough.
    """
    nonnegative(epsilon=epsilon)
    probability(delta=delta)

    def excess(log_sigma):
        log_delta = _log_delta(
            model_clip_norm, math.exp(log_sigma), steps, epsilon, order=order, step_size=step_size,
            grad_clip_norm=grad_clip_norm, init_radius=init_radius, init_noise_std=init_noise_std,
        )  # fmt: skip
        return log_delta - math.log(delta)

    radii = _radii(model_clip_norm, order, step_size, grad_clip_norm, init_radius)
    upper = math.log(analytic_gaussian_sigma(2 * max(radii), epsilon, delta)) + 1e-6
    lower = upper - 1.0
    while excess(lower) <= 0:
        lower -= 1.0
        if lower < upper - 50:
            raise UserError(
                f"init_noise_std: the initial noise {init_noise_std!r} alone gives epsilon = "
                f"{epsilon!r} at delta = {delta!r}; no noise per step is needed."
            )
    return math.exp(scipy.optimize.brentq(excess, lower, upper, xtol=1e-13))


def _radii(
    model_clip_norm: Real,
    order: str,
    step_size: Real,
    grad_clip_norm: Real,
    init_radius: Real | None,
) -> tuple[float, float]:
    """Return the radii within which the means lie before noise: first step, other steps."""
    positive(model_clip_norm=model_clip_norm)
    one_of(ORDERS, order=order)
    nonnegative(step_size=step_size, grad_clip_norm=grad_clip_norm)
    if init_radius is not None:
        positive(init_radius=init_radius)
    if order == "project_then_noise":
        return model_clip_norm, model_clip_norm
    moved = step_size * grad_clip_norm
    return (
        model_clip_norm if init_radius is None else init_radius
    ) + moved, model_clip_norm + moved


def _log_delta(
    model_clip_norm: Real,
    noise_std: Real,
    steps: Real,
    epsilon: Real,
    *,
    order: str,
    step_size: Real,
    grad_clip_norm: Real,
    init_radius: Real | None,
    init_noise_std: Real | None,
) -> float:
    positive(noise_std=noise_std)
    count(steps=steps)
    radii = _radii(model_clip_norm, order, step_size, grad_clip_norm, init_radius)
    log_delta = 0.0
    if init_noise_std is not None:
        positive(init_noise_std=init_noise_std)
        start = model_clip_norm if init_radius is None else init_radius
        log_delta = float(log_gaussian_delta(2 * start / init_noise_std, epsilon))
    # log(e^eps - 1), also where e^eps overflows
    growth = epsilon + math.log(-math.expm1(-epsilon)) if epsilon else -math.inf
    for t in range(int(steps)):
        if log_delta < _LOG_FLOOR:
            break
        v = float(np.logaddexp(0.0, growth - log_delta))
        change = float(log_gaussian_delta(2 * radii[min(t, 1)] / noise_std, v))
        if t and not change:  # nor will a later step change it
            break
        log_delta += change
    return max(log_delta, -700.0)  # never 0: delta is an upper bound
