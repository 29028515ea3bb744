"""Exact tests, conformal p-values and intervals that the audits are made of."""

import math
from numbers import Real
from typing import Any

import numpy as np
import scipy
from jaxtyping import Float

from unlearn_jax.registry import UserError

Interval = tuple[float, float]


def estimate(value: float, interval: Interval, n: int) -> dict[str, Any]:
    """Make {"value", "ci_low", "ci_high", "n"}: how every audit states a number."""
    return {"value": float(value), "ci_low": interval[0], "ci_high": interval[1], "n": n}


def clopper_pearson_lower(successes: int, trials: int, significance: float) -> float:
    """Bound a binomial rate from below, exactly; the bound is too high with P <= significance.

    Clopper & Pearson 1934: the significance quantile of Beta(successes, trials - successes + 1).

    Raises:
      UserError: successes not within 0..trials, no trials, or significance outside (0, 1).
    """
    _check_binomial(successes, trials)
    _check_fraction("significance", significance)
    if successes == 0:
        return 0.0
    return float(scipy.stats.beta.ppf(significance, successes, trials - successes + 1))


def clopper_pearson_upper(successes: int, trials: int, significance: float) -> float:
    """Bound a binomial rate from above, exactly; see `clopper_pearson_lower`."""
    return 1.0 - clopper_pearson_lower(trials - successes, trials, significance)


def clopper_pearson_interval(successes: int, trials: int, confidence: float) -> Interval:
    """Return (low, high), both bounds at half of 1 - confidence."""
    _check_fraction("confidence", confidence)
    tail = (1 - confidence) / 2
    return (
        clopper_pearson_lower(successes, trials, tail),
        clopper_pearson_upper(successes, trials, tail),
    )


def epsilon_lower_bound(
    true_positives: int,
    positives: int,
    false_positives: int,
    negatives: int,
    significance: Real,
    delta: Real,
) -> float:
    """Bound epsilon from below by the hits of one fixed test, in nats; 0 without evidence.

    log((TPR_low - delta) / FPR_high), the Clopper-Pearson bounds of both rates at half of the
    significance each. The threshold must not have been chosen on these counts.

    **Guarantee**: if the mechanism is (epsilon, delta)-indistinguishable, the value exceeds epsilon
    with probability at most `significance`. Assumes independent runs. It never shows that epsilon
    is small, and is not "the epsilon".

    Args:
      true_positives: of the runs of the first world, those the test fires on.
      positives: runs of the first world.
      false_positives: of the runs of the second world, those it fires on.
      negatives: runs of the second world.
      significance: of both bounds together, within (0, 1).
      delta: within [0, 1).

    Raises:
      UserError: an argument is out of range.
    """
    _check_fraction("significance", significance)
    if not 0 <= delta < 1:
        raise UserError(f"delta: expected a number within [0, 1), got {delta}.")
    low = clopper_pearson_lower(true_positives, positives, significance / 2)
    high = clopper_pearson_upper(false_positives, negatives, significance / 2)
    return math.log((low - delta) / high) if low - delta > high else 0.0


def one_run_p_value(canaries: int, guesses: int, correct: int, epsilon: Real, delta: Real) -> float:
    """Compute P(so many right guesses or more) under (epsilon, delta): one run, many canaries.

    Steinke, Nasr & Jagielski 2023, Theorem 5.2: P(W >= v) + 2 m delta max_i (P(W >= v - i) -
    P(W >= v)) / i, W ~ Binomial(r, e^eps / (1 + e^eps)); at most 1.

    **Guarantee**: valid for pipelines that are (epsilon, delta)-private with respect to every
    single canary, which a fair coin includes or not; guesses may be abstained from. Of a
    certificate against retraining it has hardly any power.

    Args:
      canaries: m, all of them.
      guesses: r <= m that were made.
      correct: v <= r of them.
      epsilon: claimed, nats.
      delta: claimed, within [0, 1).

    Raises:
      UserError: an argument is out of range.
    """
    _check_binomial(guesses, canaries)
    _check_binomial(correct, guesses)
    if not (0 <= epsilon < math.inf and 0 <= delta < 1):
        raise UserError(
            f"expected a finite epsilon >= 0 and delta within [0, 1), got {epsilon} and {delta}."
        )
    law = scipy.stats.binom(guesses, 1 / (1 + math.exp(-epsilon)))
    tail = float(law.sf(correct - 1))
    if correct == 0:
        return min(1.0, tail)
    below = np.arange(1, correct + 1)
    # P(v - i <= W < v), summed so that tiny values are kept
    extra = np.cumsum(law.pmf(correct - below)) / below
    return min(1.0, tail + 2 * canaries * delta * float(extra.max()))


def conformal_p_values(
    test: Float[np.ndarray, "m"], calibration: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "m"]:
    """Compute (1 + number of calibration scores >= the test score) / (n + 1), per test score.

    Small = larger than the calibration scores. P(p <= t) <= t for a score exchangeable with them.
    Adjust many of them with `scipy.stats.false_discovery_control`.
    """
    _check_scores(test=test, calibration=calibration)
    below = np.searchsorted(np.sort(calibration), test, side="left")
    return (1 + len(calibration) - below) / (len(calibration) + 1)


def auroc(members: Float[np.ndarray, "m"], nonmembers: Float[np.ndarray, "n"]) -> float:
    """Compute P(member score > non-member score), ties count half; 0.5 = no difference.

    The Mann-Whitney statistic itself, not the area under the ROC curve's convex hull, which is
    biased upwards and never below 0.5.
    """
    return float(_placements(members, nonmembers)[0].mean())


def delong(
    members: Float[np.ndarray, "m"], nonmembers: Float[np.ndarray, "n"]
) -> tuple[float, float]:
    """Compute (AUROC, its standard error) by DeLong, DeLong & Clarke-Pearson (1988).

    Raises:
      UserError: NaN, or fewer than two scores on a side.
    """
    if min(len(members), len(nonmembers)) < 2:
        raise UserError(
            "delong: expected at least 2 scores on either side, got "
            f"{len(members)} members and {len(nonmembers)} non-members."
        )
    of_members, of_nonmembers = _placements(members, nonmembers)
    variance = of_members.var(ddof=1) / len(members) + of_nonmembers.var(ddof=1) / len(nonmembers)
    return float(of_members.mean()), math.sqrt(variance)


def auroc_interval(
    members: Float[np.ndarray, "m"], nonmembers: Float[np.ndarray, "n"], confidence: float
) -> Interval:
    """Compute (low, high) of the AUROC: DeLong's normal interval, clipped to [0, 1].

    If the scores separate completely DeLong's variance is 0; the interval is then the
    Clopper-Pearson interval of min(m, n) disjoint pairs that all agree.
    """
    _check_fraction("confidence", confidence)
    area, error = delong(members, nonmembers)
    if area in (0.0, 1.0):
        pairs = min(len(members), len(nonmembers))
        return clopper_pearson_interval(int(area) * pairs, pairs, confidence)
    half = float(scipy.stats.norm.isf((1 - confidence) / 2)) * error
    return max(0.0, area - half), min(1.0, area + half)


def auroc_difference(
    first: tuple[Float[np.ndarray, "_"], Float[np.ndarray, "_"]],
    second: tuple[Float[np.ndarray, "_"], Float[np.ndarray, "_"]],
    confidence: float,
) -> dict[str, Any]:
    """Subtract the second scores' AUROC from the first's, of the same examples in the same order.

    {"value", "ci_low", "ci_high", "n" members}. The paired interval of DeLong, DeLong &
    Clarke-Pearson (1988): what both scores find hard cancels. Where the differences of the
    placements are constant (both separate completely) the interval is a point.

    Args:
      first: scores of (members, non-members).
      second: other scores of them.
      confidence: of the interval.

    Raises:
      UserError: NaN, fewer than two scores on a side, or unequal numbers of them.
    """
    _check_fraction("confidence", confidence)
    sizes = [[len(scores) for scores in pair] for pair in (first, second)]
    if sizes[0] != sizes[1] or min(sizes[0]) < 2:
        raise UserError(
            "auroc_difference: expected both scores of the same members and non-members, at least "
            f"2 of each, got {sizes[0]} and {sizes[1]}."
        )
    parts = [a - b for a, b in zip(_placements(*first), _placements(*second), strict=True)]
    value = float(parts[0].mean())
    error = math.sqrt(sum(part.var(ddof=1) / len(part) for part in parts))
    half = float(scipy.stats.norm.isf((1 - confidence) / 2)) * error
    return estimate(value, (value - half, value + half), sizes[0][0])


def tpr_at_fpr(
    members: Float[np.ndarray, "m"], nonmembers: Float[np.ndarray, "n"], fpr: float
) -> float:
    """Compute the share of members strictly above the `fpr_threshold` of the non-members."""
    _check_scores(members=members)
    return float((members > fpr_threshold(nonmembers, fpr)).mean())


def fpr_threshold(nonmembers: Float[np.ndarray, "n"], fpr: float) -> float:
    """Find the smallest score such that the share of non-members strictly above it is <= fpr.

    Ties never raise the false positive rate above fpr. With n * fpr < 1 it is the maximum.
    """
    _check_fraction("fpr", fpr)
    _check_scores(nonmembers=nonmembers)
    return float(np.sort(nonmembers)[len(nonmembers) - 1 - _floor(fpr * len(nonmembers))])


def _placements(
    members: Float[np.ndarray, "m"], nonmembers: Float[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "n"]]:
    """Compute the share of non-members below each member, and of members above each non-member."""
    _check_scores(members=members, nonmembers=nonmembers)
    # Ties share their mean rank.
    ranks = scipy.stats.rankdata(np.concatenate([members, nonmembers]))
    below = (ranks[: len(members)] - scipy.stats.rankdata(members)) / len(nonmembers)
    above = 1 - (ranks[len(members) :] - scipy.stats.rankdata(nonmembers)) / len(members)
    return below, above


def _floor(value: float) -> int:
    """Take the integer part, forgiving float error such as 0.29 * 100 = 28.999999999999996."""
    return math.floor(value + 1e-9)


def _check_fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise UserError(f"{name}: expected a number within (0, 1), got {value}.")


def _check_binomial(successes: int, trials: int) -> None:
    if trials < 1 or not 0 <= successes <= trials:
        raise UserError(
            "expected at least one trial and a count of successes within 0..trials, got "
            f"{successes} of {trials}."
        )


def _check_scores(**samples: np.ndarray) -> None:
    for name, scores in samples.items():
        bad = np.isnan(scores).sum()
        if len(scores) == 0 or bad:
            raise UserError(
                f"{name}: expected one or more scores, none NaN; got {len(scores)}, {bad} NaN. "
                "Drop the examples that could not be measured."
            )
