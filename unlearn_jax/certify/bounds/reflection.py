"""Accountant B3 for noisy clipped fine-tuning: unbalanced reflection coupling. Unreviewed. [O]

Our own derivation, in docs/certificate.md, which nobody outside has checked; use it only where that
is said. It needs about 0.58 of B1's noise at T = 100, epsilon = 1, and with weight decay delta
falls exponentially in T, where Gaussian DP saturates.

**Guarantee**
* Neighbours, certifiers and assumptions: those of `finetune`, and: plain SGD (the state is the
  parameters alone), the same maps in both runs, isotropic noise of one size.
* Not covered: stateful optimizers, blocks, schedules. The value is numerical, not interval
  arithmetic: quadrature in the distance r, interpolation in v / r that is linear in e^v, on two
  grids of which the larger value is returned; mass beyond the grid counts as distinguishable.
"""

import math
from numbers import Real

import numpy as np
import scipy

from unlearn_jax.certify.bounds.arguments import count, nonnegative, positive, probability
from unlearn_jax.certify.bounds.gaussian import gaussian_delta, log_gaussian_delta
from unlearn_jax.registry import UserError

UNREVIEWED = "accountant 'reflection': its proof is ours and has had no outside review"
GRIDS = ((1.25, 200), (1.0, 256))  # panel width in standard deviations, points in v / r
_ORDER = 8  # Gauss-Legendre nodes per panel
_REACH = 9.0  # standard deviations that a row looks ahead; the rest counts as mass 1
_FURTHEST = 300.0  # standard deviations; memory grows with its square
_NEAR = (0.0, 0.02, 0.08, 0.25, 0.55)  # panel edges at 0, where kernels have a boundary layer


def reflection_delta(
    init_distance: Real,
    contraction: Real,
    shift: Real,
    noise_std: Real,
    steps: Real,
    epsilon: Real,
    cap: Real = math.inf,
) -> float:
    """Return the delta at epsilon if |phi(x) - phi(y)| <= min(rho |x - y| + s, cap) in T steps. [O]

    Gamma_T(d0, eps) / sigma-scaled, with Gamma_0 = 1 and Gamma_{t+1}(r, v) = int_0^inf f(u)
    Gamma_t(2u, 2uv/r') du, r' = min(rho r + s, cap), f(u) = phi(u + v/r' - r'/2) - e^v phi(u + v/r'
    + r'/2).

    Args:
      init_distance: d0 of the starts, at least 0.
      contraction: rho = 1 - gamma lambda, above 0.
      shift: s = 2 gamma C1, at least 0.
      noise_std: sigma on the parameters, per step.
      steps: T.
      epsilon: nats, at least 0.
      cap: 2 C2 if every step also projects to radius C2 before the noise; inf if not. Then
        `model_clipping_delta` holds too, and is often smaller.

    Raises:
      UserError: an argument is out of range.
    """
    nonnegative(init_distance=init_distance, shift=shift, epsilon=epsilon)
    positive(contraction=contraction, noise_std=noise_std)
    if cap != math.inf:
        positive(cap=cap)
    count(steps=steps)
    scaled = [float(value) / noise_std for value in (init_distance, shift, cap)]
    start = min(contraction * scaled[0] + scaled[1], scaled[2])
    if start == 0:
        return 0.0
    if steps == 1:
        return gaussian_delta(start, epsilon)
    arguments = (start, float(contraction), *scaled[1:], int(steps), float(epsilon))
    return min(1.0, max(_evaluate(*arguments, *grid) for grid in GRIDS))


def reflection_epsilon(
    init_distance: Real,
    contraction: Real,
    shift: Real,
    noise_std: Real,
    steps: Real,
    delta: Real,
    *,
    below: Real,
) -> float:
    """Find an epsilon at which `reflection_delta` is at most delta, to 1e-3 of `below`. [O]

    Bisection, about ten evaluations.

    Args:
      init_distance: see `reflection_delta`, as for all up to delta.
      contraction: rho.
      shift: s.
      noise_std: sigma.
      steps: T.
      delta: within (0, 1).
      below: an epsilon that is known to hold, such as that of `finetune`; returned if no smaller
        one is found.
    """
    probability(delta=delta)
    nonnegative(below=below)
    lower, upper = 0.0, float(below)
    while upper - lower > 1e-3 * below:
        middle = (lower + upper) / 2
        found = reflection_delta(init_distance, contraction, shift, noise_std, steps, middle)
        lower, upper = (lower, middle) if found <= delta else (middle, upper)
    return upper


def reflection_sigma(
    init_distance: Real,
    contraction: Real,
    shift: Real,
    steps: Real,
    cap: Real = math.inf,
    *,
    epsilon: Real,
    delta: Real,
) -> float:
    """Find a noise per step at which `reflection_delta` is at most delta, to 1e-4 relative. [O]

    Args:
      init_distance: see `reflection_delta`, as for all others; the shift or it above 0.
      contraction: rho.
      shift: s.
      steps: T.
      cap: 2 C2 or inf.
      epsilon: nats.
      delta: within (0, 1).
    """
    probability(delta=delta)
    positive(**{"init_distance + shift": init_distance + shift})

    def excess(log_sigma):
        found = reflection_delta(
            init_distance, contraction, shift, math.exp(log_sigma), steps, epsilon, cap
        )
        return math.log(max(found, 1e-300)) - math.log(delta)

    lower = math.log((init_distance + shift) / math.sqrt(steps))
    upper = lower + 0.5
    while excess(upper) > 0:
        lower, upper = upper, upper + 0.5
    while excess(lower) <= 0:
        lower -= 0.5
    root = scipy.optimize.brentq(excess, lower, upper, xtol=1e-4)
    return math.exp(root if excess(root) <= 0 else root + 1e-4)


def _evaluate(
    start: Real,
    contraction: Real,
    shift: Real,
    cap: Real,
    steps: int,
    epsilon: Real,
    panel: Real,
    ratios: int,
) -> float:
    """Compute Gamma_T on one grid, distances in standard deviations; `start` is the first r'."""
    nodes, weights = _nodes(_furthest(start, contraction, shift, cap, steps) / 2, panel)
    ratio = epsilon / start  # v / r of the first step
    first = _kernel(nodes, start, np.array([ratio]))
    distance = 2 * nodes
    mapped = np.minimum(contraction * distance + shift, cap)
    positive_part = mapped > 0
    mapped = np.where(positive_part, mapped, 1.0)

    grid = np.array([ratio])
    if epsilon and steps > 2 and not (contraction == 1 and shift == 0 and cap == math.inf):
        # With contraction the ratio can grow; beyond the grid it is rounded down, the safe side.
        largest = ratio * min(5.0, max(1.0, contraction ** -min(steps - 2, 100)))
        grid = largest * np.linspace(0, 1, ratios) ** 2
        grid = np.unique(np.append(grid, ratio))
    # Gamma_1, exactly: v = (v / r) r.
    table = np.exp(log_gaussian_delta(mapped[:, None], grid[None, :] * distance[:, None]))
    table = np.where(positive_part[:, None], table, 0.0)
    if steps > 2:
        rows = [
            _row(nodes, weights, grid, r, r_mapped)
            for r, r_mapped in zip(distance, mapped, strict=True)
        ]
        for _ in range(steps - 2):
            table = np.stack([_apply(row, table) for row in rows])
            table = np.where(positive_part[:, None], np.minimum(table, 1.0), 0.0)
    last = table[:, np.searchsorted(grid, ratio)]
    beyond = scipy.special.ndtr(-(_top(nodes, panel) + ratio - start / 2))
    return float(weights * first[:, 0] @ last + beyond)


def _row(nodes, weights, grid, distance, mapped):
    """Prepare a step at one distance: window, kernel [window, ratio], interpolation, tails."""
    ratios = np.minimum(grid * distance / mapped, grid[-1])  # rounding v down is the safe side
    low, high = mapped / 2 - ratios[-1] - _REACH, mapped / 2 + _REACH
    window = slice(*np.searchsorted(nodes, (low, high)))
    inside = nodes[window]
    kernel = weights[window, None] * _kernel(inside, mapped, ratios)
    # Beyond the window: at most the Gaussian's mass, and half a panel that the edge may cut off.
    ends = np.array([inside[0], inside[-1]])[:, None] + ratios - mapped / 2
    tails = scipy.special.ndtr(-ends[1]) + (scipy.special.ndtr(ends[0]) if window.start else 0.0)
    right = np.clip(np.searchsorted(grid, ratios), 1 if len(grid) > 1 else 0, len(grid) - 1)
    left = np.maximum(right - 1, 0)
    part = np.zeros_like(kernel)
    if len(grid) > 1:
        # Linear in e^v, in which hockey-stick divergences are convex: from above.
        span, gone = (2 * inside[:, None] * (x - grid[left]) for x in (grid[right], ratios))
        part = np.exp(gone - span) * np.expm1(-gone) / np.expm1(-span)
    return window, kernel * (1 - part), kernel * part, left, right, tails


def _apply(row, table):
    window, kernel_left, kernel_right, left, right, tails = row
    values = table[window]
    found = np.einsum("kj,kj->j", kernel_left, values[:, left])
    return found + np.einsum("kj,kj->j", kernel_right, values[:, right]) + tails


def _kernel(u: np.ndarray, mapped: Real, ratios: np.ndarray) -> np.ndarray:
    """Compute f(u) for v = ratio * mapped, without cancellation.

    It is phi(u + v/r' - r'/2) (1 - e^{-u r'}).
    """
    x = u[:, None] + ratios - mapped / 2
    density = np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)
    return density * -np.expm1(-u * mapped)[:, None]


def _nodes(reach: Real, panel: Real) -> tuple[np.ndarray, np.ndarray]:
    """Make Gauss-Legendre nodes and weights on [0, reach], in panels that are narrow near 0."""
    edges = np.append(_NEAR, np.arange(1, math.ceil(reach / panel) + 1) * panel)
    x, w = np.polynomial.legendre.leggauss(_ORDER)
    half = np.diff(edges)[:, None] / 2
    middle = (edges[:-1] + edges[1:])[:, None] / 2
    return (middle + half * x).ravel(), (half * w).ravel()


def _top(nodes: np.ndarray, panel: Real) -> float:
    return math.floor(nodes[-1] / panel) * panel


def _furthest(start: Real, contraction: Real, shift: Real, cap: Real, steps: int) -> float:
    """Return a distance that is not exceeded, up to a probability of 1e-15.

    Raises:
      UserError: it is more than `_FURTHEST`.
    """
    distance, furthest, variance = start, start, 1.0
    for _ in range(steps - 1):
        distance = min(contraction * distance + shift, cap)
        variance = contraction**2 * variance + 1
        furthest = max(furthest, distance)
    reach = furthest + 16 * math.sqrt(variance)
    reach = min(reach, cap + 20)
    if reach > _FURTHEST:
        raise UserError(
            f"reflection_delta: expected distances below {_FURTHEST:g} noise_std, got {reach:.0f} "
            f"in {steps} steps. Raise noise_std, lower steps, or use the accountant 'gdp'."
        )
    return reach
