"""Tests of a certificate: its noise, and an empirical lower bound beside its epsilon.

Pure functions of what was drawn; `audit.mechanism` draws.

**Guarantee** of all audits here: they can refute a certificate, never support it. A lower bound
above the certified epsilon means a bug, except with probability `significance`; one below it
proves nothing. It is never "the epsilon".
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy
from jaxtyping import Float

from unlearn_jax.certify.bounds import gaussian_epsilon
from unlearn_jax.registry import UserError

_KS_ENTRIES = 100_000  # more would reject what float32 rounds


def noise_self_test(
    noise: Mapping[str, Float[np.ndarray, "steps _"]], noise_std: float, *, significance: float
) -> dict[str, Any]:
    """Test whether an implementation's noise is what it should be: N(0, sigma^2), all independent.

    {"value": standard deviation over sigma, "ci_low", "ci_high", "n" entries, "p_values": {"scale",
    "mean", "shape", "steps", "leaves"}, "passed"}; Bonferroni over the five. n entries pin the
    standard deviation to a relative 1 / sqrt(2 n).

    **Guarantee**: a right implementation fails with probability `significance` at most (up to the
    normal approximation of two of the tests). What passes may still be wrong in what is not tested.

    Args:
      noise: per leaf, output minus the same without noise, in so many steps of one run, raveled.
      noise_std: sigma, above 0.
      significance: of all tests together.

    Raises:
      UserError: fewer than 2 steps, no entries, leaves with other numbers of steps.
    """
    rows = [np.asarray(values, np.float64) / noise_std for values in noise.values()]
    if not rows or len({len(r) for r in rows}) != 1 or len(rows[0]) < 2 or not rows[0].size:
        raise UserError(
            "noise_self_test: expected the same 2 or more steps of every leaf, got shapes "
            f"{ {name: np.shape(values) for name, values in noise.items()} }."
        )
    flat = np.concatenate(rows, axis=1)
    steps, n = len(flat), flat.size
    square = float(np.square(flat).sum())
    pairs = [(i, j) for i in range(steps) for j in range(i)]
    by_step = [flat[i] @ flat[j] / math.sqrt(flat.shape[1]) for i, j in pairs]
    by_leaf = []
    for k, first in enumerate(rows):
        for second in rows[:k]:
            common = min(first.shape[1], second.shape[1])
            inner = (first[:, :common] * second[:, :common]).sum()
            by_leaf.append(inner / math.sqrt(steps * common))
    chosen = flat.ravel()[:: max(1, n // _KS_ENTRIES)]
    p_values = {
        "scale": min(1.0, 2 * min(scipy.stats.chi2.cdf(square, n), scipy.stats.chi2.sf(square, n))),
        "mean": _two_sided([flat.sum() / math.sqrt(n)]),
        "shape": float(scipy.stats.kstest(chosen, "norm").pvalue),
        "steps": _two_sided(by_step),
        "leaves": _two_sided(by_leaf),
    }
    tail = significance / 2
    return {
        "value": math.sqrt(square / n),
        "ci_low": math.sqrt(square / scipy.stats.chi2.isf(tail, n)),
        "ci_high": math.sqrt(square / scipy.stats.chi2.ppf(tail, n)),
        "n": n,
        "p_values": {name: float(p) for name, p in p_values.items()},
        "passed": passes(p_values, significance),
    }


def passes(p_values: Mapping[str, float], significance: float) -> bool:
    """Tell whether none of the tests rejects, Bonferroni over all."""
    return bool(min(p_values.values()) >= significance / len(p_values))


def mechanism_self_test(
    mechanism: Callable[[int, float], Mapping[str, Any]],
    reference: Mapping[str, Any],
    *,
    noise_std: float,
    reach: float,
    significance: float,
    steps: int = 6,
) -> dict[str, Any]:
    """Test whether one step of a mechanism is what its bound is about; this tests code, no model.

    {"noise": of `noise_self_test`, "distance": of the noiseless output from the reference,
    "reach", "passed"}. Give it a start far outside of the ball and a long gradient: then projection
    and clipping are tested as well.

    **Guarantee**: see `noise_self_test`; the distance is exact.

    Args:
      mechanism: (step, noise_std) -> flat dict of arrays, from the same start at every step.
      reference: the centre, with the same keys.
      noise_std: sigma of the certificate; 0 must give the output without noise.
      reach: largest distance from the centre before the noise: radius + step size * clip norm.
      significance: of the test of the noise.
      steps: how many, with a key each.
    """
    still = _flat(mechanism(0, 0.0))
    draws = [_flat(mechanism(t, noise_std)) for t in range(steps)]
    noise = {k: np.stack([d[k] - still[k] for d in draws]) for k in still}
    found = noise_self_test(noise, noise_std, significance=significance)
    centre = _flat(reference)
    distance = math.sqrt(sum(float(np.square(still[k] - centre[k]).sum()) for k in still))
    passed = found["passed"] and distance <= reach
    return {"noise": found, "distance": distance, "reach": reach, "passed": passed}


def two_worlds(
    first: Float[np.ndarray, "n"],
    second: Float[np.ndarray, "m"],
    *,
    delta: float,
    significance: float,
    seed: int = 0,
) -> dict[str, Any]:
    """Lower bounds of epsilon from one statistic of repeated runs from two starts.

    {"epsilon", "epsilon_gdp", "mu" of `lower_bounds`, "counts" that they follow from, "threshold"
    (of either), "n", "significance", "delta"}. The thresholds are chosen on a random half of the
    runs, the bounds computed on the other half.

    **Guarantee**: each bound alone exceeds the true value with probability `significance` at most.
    Assumes independent runs of the mechanism from two *fixed* starts (of which a certificate holds
    conditionally), with fresh noise each. `epsilon_gdp` only refutes certificates by mu-GDP.

    Args:
      first: a scalar per run from the original's start, e.g. the projection on the line between
        both starts, or an error on a canary.
      second: the same from the retrained model's start.
      delta: of the certificate.
      significance: of each bound.
      seed: of the halves.

    Raises:
      UserError: fewer than 4 runs of a world, or NaN.
    """
    if min(len(first), len(second)) < 4 or np.isnan(first).any() or np.isnan(second).any():
        raise UserError(
            "two_worlds: expected at least 4 runs of each world, none NaN, got "
            f"{len(first)} and {len(second)}."
        )
    rng = np.random.default_rng(seed)
    first, second = (rng.permutation(values) for values in (first, second))
    choose = [values[: len(values) // 2] for values in (first, second)]
    test = [values[len(values) // 2 :] for values in (first, second)]
    if np.median(choose[0]) < np.median(choose[1]):
        choose, test = ([-values for values in half] for half in (choose, test))
    every = np.unique(np.concatenate(choose))
    every = np.unique(np.quantile((every[1:] + every[:-1]) / 2, np.linspace(0, 1, 401)))

    # Two tests: the first world's fires above the threshold, the second world's below it.
    counts, thresholds = {}, []
    for kind in ("epsilon", "mu"):
        options = []
        for swapped in (False, True):
            values = _bounds(*_hits(choose, every, swapped), delta, significance)[kind]
            best = int(np.argmax(values))
            options.append((float(values[best]), float(every[best]), swapped))
        _, threshold, swapped = max(options)
        hits = _hits(test, np.array([threshold]), swapped)
        counts[kind] = [int(np.squeeze(number)) for number in hits]
        thresholds.append(threshold)
    return {
        **lower_bounds(counts, delta=delta, significance=significance),
        "counts": counts,
        "threshold": thresholds,
        "n": [len(first), len(second)],
        "significance": significance,
        "delta": delta,
    }


def lower_bounds(
    counts: Mapping[str, Sequence[int]], *, delta: float, significance: float
) -> dict[str, float]:
    """Bound epsilon from below, for any (epsilon, delta) certificate and for one by mu-GDP.

    Return {"epsilon": for any certificate, "epsilon_gdp": for one by mu-GDP, "mu"}.

    Both rates' Clopper-Pearson bounds at half the significance: epsilon as
    `statistics.epsilon_lower_bound` has it; mu = Phi^-1(TPR_low) - Phi^-1(FPR_high).

    Args:
      counts: {"epsilon", "mu"}: of the test chosen for either, [runs of one world that it fires on,
        of how many, runs of the other that it fires on, of how many].
      delta: of the certificate.
      significance: of each bound.
    """
    epsilon, mu = (
        float(_bounds(*map(np.asarray, counts[kind]), delta, significance)[kind])
        for kind in ("epsilon", "mu")
    )
    by_gdp = gaussian_epsilon(mu, delta) if delta else math.inf * bool(mu)
    return {"epsilon": epsilon, "epsilon_gdp": by_gdp, "mu": mu}


def compare(
    certificate: Mapping[str, Any], found: Mapping[str, Any], assumptions: Sequence[str] = ()
) -> dict[str, Any]:
    """Compare a lower bound with a certificate's upper bound.

    Return {"lower", "upper", "n", "significance", "delta", "refuted", "assumptions", "text"}.

    The lower bound is `found["epsilon_gdp"]` of `two_worlds` if the certificate is by Gaussian DP,
    else `found["epsilon"]`; the upper one the certificate's epsilon.

    Raises:
      UserError: the audit was made at another delta.
    """
    if found["delta"] != certificate["delta"]:
        raise UserError(
            f"compare: expected an audit at the certificate's delta = {certificate['delta']}, got "
            f"{found['delta']}."
        )
    lower = found["epsilon_gdp" if certificate["accountant"] == "gdp" else "epsilon"]
    upper = certificate["epsilon"]
    refuted = bool(lower > upper)
    verdict = (
        "The certificate is refuted: there is a bug."
        if refuted
        else "Nothing is refuted, and nothing is proved."
    )
    return {
        "lower": lower,
        "upper": upper,
        "n": found["n"],
        "significance": found["significance"],
        "delta": found["delta"],
        "refuted": refuted,
        "assumptions": {"upper": list(certificate["assumptions"]), "lower": list(assumptions)},
        "text": f"epsilon >= {lower:.3g} (N = {found['n'][0]} and {found['n'][1]} runs, "
        f"significance {found['significance']:g}), epsilon <= {upper:.3g} (certificate), both at "
        f"delta = {found['delta']:g}. {verdict}",
    }


def _hits(
    worlds: Sequence[np.ndarray], thresholds: np.ndarray, swapped: bool
) -> tuple[np.ndarray, int, np.ndarray, int]:
    """Count (true positives, positives, false positives, negatives) of one of the two tests."""
    above = [values[:, None] > thresholds for values in worlds]
    fires = [~x for x in above[::-1]] if swapped else above
    (tp, fp), (p, n) = [x.sum(0) for x in fires], [len(x) for x in fires]
    return tp, p, fp, n


def _bounds(tp: Any, p: Any, fp: Any, n: Any, delta: float, significance: float) -> dict[str, Any]:
    """Lower bounds {"epsilon", "mu"} of the counts of tests."""
    tail = significance / 2
    low = np.where(tp > 0, scipy.stats.beta.ppf(tail, np.maximum(tp, 1), p - tp + 1), 0.0)
    high = np.where(fp < n, scipy.stats.beta.isf(tail, fp + 1, np.maximum(n - fp, 1)), 1.0)
    evidence = low - delta > high
    epsilon = np.log(np.where(evidence, low - delta, high) / high)
    mu = np.maximum(scipy.stats.norm.ppf(low) - scipy.stats.norm.ppf(high), 0.0)
    return {"epsilon": epsilon, "mu": mu}


def _flat(leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.ravel(np.asarray(leaf, np.float64)) for name, leaf in leaves.items()}


def _two_sided(z_values: Sequence[float]) -> float:
    """Combine normal statistics to one p-value, by Bonferroni; 1 if there is none."""
    if not len(z_values):
        return 1.0
    return min(1.0, len(z_values) * 2 * float(scipy.stats.norm.sf(np.abs(z_values).max())))
