"""Two Gaussians at a distance: exact conversions between mu, epsilon, delta and noise.

N(0, s^2 I) and N(a, s^2 I) are exactly mu-GDP with mu = |a| / s (Dong, Roth & Su 2019), and
(epsilon, delta)-indistinguishable exactly for delta >= Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 -
eps/mu) (Balle & Wang 2018, Theorem 8). Everything is float64 and evaluated in the log domain: the
plain difference is noise below 1e-16.

**Guarantee** of what is here: statements on two probability laws, in both directions. Which laws
are compared, and so what is certified, is said by the mechanisms (`output_perturbation`,
`noisy_finetune`, `model_clipping`). Sampling in floating point is not covered (Mironov 2012).
"""

import math
from numbers import Real

import numpy as np
import scipy

from unlearn_jax.certify.bounds.arguments import nonnegative, positive, probability

Values = Real | np.ndarray
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


def gaussian_delta(mu: Real, epsilon: Real) -> float:
    """Return the smallest delta at this epsilon of a mu-GDP mechanism, in [0, 1]. [C]

    Args:
      mu: distance of the means over the standard deviation, at least 0.
      epsilon: nats, at least 0; at 0 delta is the total variation, 2 Phi(mu/2) - 1.

    Raises:
      UserError: an argument is negative or not finite.
    """
    nonnegative(mu=mu, epsilon=epsilon)
    return math.exp(log_gaussian_delta(mu, epsilon)) if mu else 0.0


def log_gaussian_delta(mu: Values, epsilon: Values) -> Values:
    """Return the log of `gaussian_delta` of arrays, mu > 0; also where delta underflows.

    With x = eps/mu - mu/2, y = eps/mu + mu/2 and the Mills ratio R(t) = Phi(-t) / phi(t), the
    identity e^eps phi(y) = phi(x) makes delta = phi(x) (R(x) - R(y)), without e^eps and without
    cancellation of tails; for small mu the difference is the integral of -R' = 1 - t R(t) > 0.
    """
    mu, epsilon = np.broadcast_arrays(np.asarray(mu, np.float64), np.asarray(epsilon, np.float64))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore", under="ignore"):
        x, y = epsilon / mu - mu / 2, epsilon / mu + mu / 2
        log_density = -0.5 * x**2 - 0.5 * math.log(2 * math.pi)
        nodes = x[..., None] + mu[..., None] * (0.5 + 0.5 * _NODES)
        integral = mu * (_mills_decrease(nodes) @ (0.5 * _WEIGHTS))
        tails = np.where(mu < 0.5, integral, _mills(np.maximum(x, -1.0)) - _mills(y))
        bulk = scipy.special.ndtr(-x) - np.exp(log_density) * _mills(y)
        found = np.where((x < -1) & (mu >= 0.5), np.log(bulk), log_density + np.log(tails))
    return np.minimum(np.where(np.isnan(found), -np.inf, found), 0.0)


def gaussian_epsilon(mu: Real, delta: Real) -> float:
    """Return the smallest epsilon at this delta of a mu-GDP mechanism, nats. [C]

    Args:
      mu: at least 0.
      delta: within (0, 1).

    Raises:
      UserError: an argument is out of range.
    """
    nonnegative(mu=mu)
    probability(delta=delta)
    if mu == 0 or log_gaussian_delta(mu, 0.0) <= math.log(delta):
        return 0.0

    def excess(epsilon):
        return float(log_gaussian_delta(mu, epsilon)) - math.log(delta)

    # delta <= Phi(-t) <= exp(-t^2/2) with t = eps/mu - mu/2.
    upper = mu * (mu / 2 + math.sqrt(-2 * math.log(delta)))
    return scipy.optimize.brentq(_finite(excess), 0.0, upper, xtol=1e-15 * upper, rtol=1e-14)


def gaussian_mu(epsilon: Real, delta: Real) -> float:
    """Return the largest mu that is (epsilon, delta)-indistinguishable: invert `gaussian_delta`.

    Args:
      epsilon: nats, at least 0.
      delta: within (0, 1).

    Raises:
      UserError: an argument is out of range.
    """
    nonnegative(epsilon=epsilon)
    probability(delta=delta)
    at_zero = 2 * math.sqrt(2) * float(scipy.special.erfinv(delta))
    if epsilon == 0:
        return at_zero
    tail = math.sqrt(-2 * math.log(delta))
    lower = max(at_zero, 2 * epsilon / (math.sqrt(tail**2 + 2 * epsilon) + tail))
    upper = 2 * lower
    while log_gaussian_delta(upper, epsilon) < math.log(delta):
        lower, upper = upper, 2 * upper

    def excess(mu):
        return float(log_gaussian_delta(mu, epsilon)) - math.log(delta)

    if excess(lower) >= 0:  # the bracket's end is the root, up to rounding
        return lower
    return scipy.optimize.brentq(_finite(excess), lower, upper, xtol=1e-15 * lower, rtol=1e-14)


def analytic_gaussian_sigma(sensitivity: Real, epsilon: Real, delta: Real) -> float:
    """Return the least noise of (epsilon, delta)-indistinguishable output perturbation. [C]

    Balle & Wang 2018: exact, for every epsilon >= 0.

    Args:
      sensitivity: largest L2 distance of the two noiseless outputs, above 0.
      epsilon: nats.
      delta: within (0, 1).

    Returns:
      Standard deviation per coordinate, in units of the sensitivity.
    """
    positive(sensitivity=sensitivity)
    return sensitivity / gaussian_mu(epsilon, delta)


def _mills(t: Values) -> Values:
    return math.sqrt(math.pi / 2) * scipy.special.erfcx(t / math.sqrt(2))


def _mills_decrease(t: Values) -> Values:
    """Return -R'(t) = 1 - t R(t); by its asymptotic series where that cancels."""
    small, inverse = np.minimum(t, 30.0), 1 / np.maximum(t, 30.0) ** 2
    series = np.zeros_like(t)
    for k in range(13, 0, -2):  # 1/t^2 (1 - 3/t^2 (1 - 5/t^2 (…)))
        series = k * inverse * (1 - series)
    return np.where(t > 30, series, 1 - small * _mills(small))


def _finite(function):
    """Wrap the function: -inf becomes the lowest float, which root finders take."""
    return lambda x: max(function(x), -1e300)
