"""Gap, floor, excess and power of a witness: how far a model is from one that never saw the images.

The gap is |method - retrained| / |original - retrained|, of means over seeds: 0 is retrained, 1 is
the original, and too much forgetting counts like too little. Numpy and scipy only.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import scipy
from jaxtyping import Float

from unlearn_jax.audit.statistics import estimate
from unlearn_jax.audit.witness import Scores, Statistic, Weights

LEAST = 30  # images of each side; with fewer a mean says little, see `images`
FLOOR = 0.2  # at most, of a witness with power
MARGIN = 0.1  # gaps up to this are what retrained models may differ by, whatever the images
EXCESS = 0.25  # that power is stated for
GATE = 0.6  # AUROC of original against retrained, below which nothing was memorised
LEVEL = 0.05  # of all witnesses together


class Models(NamedTuple):
    """A witness's scores of the models of one seed; `further`: more retrained ones."""

    original: Scores
    unlearned: Scores
    retrained: Scores
    further: Sequence[Scores]


@lru_cache(maxsize=8)  # the same ones for all witnesses and models
def weights(n: int, resamples: int, seed: int, stream: int) -> Weights:
    """Draw how often each of n images counts in each resample; the first row is the sample."""
    rng = np.random.default_rng([seed, stream, n])
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.concatenate([np.ones((1, n)), drawn])


def values(
    statistic: Statistic, scores: Scores, resamples: int, seed: int
) -> Float[np.ndarray, "b"]:
    """Compute a statistic of one model, then of the resamples: the same images for all models."""
    of_unseen = weights(len(scores.unseen), resamples, seed, 1)
    of_forget = of_unseen if scores.paired else weights(len(scores.forget), resamples, seed, 0)
    return statistic(scores.forget, scores.unseen, of_forget, of_unseen)


def compare(
    statistic: Statistic, seeds: Sequence[Models], *, confidence: float, resamples: int, seed: int
) -> dict[str, Any]:
    """Compare original, unlearned and retrained by one statistic.

    {"models": {model: estimate}, "gap", "excess": estimate, "floor", "apart", "noise", "images",
    "has_power", "reason": why it has no power, "draws": gaps of the resamples}, for `test`.

    * Intervals are percentiles of a bootstrap over seeds (if there are several) and images.
    * floor: mean |retrained - another retrained| over sqrt(seeds), in units of the gap; NaN if
      there is no other.
    * has_power: the interval of original - retrained excludes 0, floor <= .2, and there are 30
      images of each side.
    * apart: mean (retrained - another retrained)^2 over seeds, in units of the gap squared: what
      the squared gap of a model that never saw the images is on average.
    * noise: the part of it that is due to the images: the variance of the bootstrap.
    * images: the bootstrap's standard error of the gap.

    Args:
      statistic: of `witness`.
      seeds: the models of each seed.
      confidence: of the intervals.
      resamples: of the bootstrap.
      seed: of the bootstrap.
    """
    of = {
        name: np.stack([values(statistic, getattr(s, name), resamples, seed) for s in seeds])
        for name in Models._fields[:3]
    }
    apart = np.stack(
        [
            of["retrained"][i] - values(statistic, other, resamples, seed)
            for i, s in enumerate(seeds)
            for other in s.further
        ]
        or [np.full(resamples + 1, math.nan)]
    )
    drawn = np.random.default_rng([seed, 2]).integers(len(seeds), size=(resamples + 1, len(seeds)))
    drawn[0] = np.arange(len(seeds))
    place = np.arange(resamples + 1)[:, None]
    mean = {name: v[drawn, place].mean(1) for name, v in of.items()}
    away = mean["original"] - mean["retrained"]
    n = min(len(seeds[0].retrained.forget), len(seeds[0].retrained.unseen))
    with np.errstate(divide="ignore", invalid="ignore"):
        gaps = (mean["unlearned"] - mean["retrained"]) / away
    apart = apart / math.sqrt(len(seeds)) / (abs(away[0]) or math.nan)
    floor = float(np.abs(apart[:, 0]).mean())
    low, high = percentiles(away, confidence)
    reason = ""
    if n < LEAST:
        reason = f"{n} images; {LEAST} of each side are needed"
    elif math.isnan(floor):
        reason = "no second retrained model: audit.shadows, or another --retrained"
    elif not (low > 0 or high < 0):
        reason = "original and retrained model do not differ in it"
    elif not floor <= FLOOR:
        reason = f"retrained models differ by {floor:.2f} of the way to the original"
    finite = gaps[1:][np.isfinite(gaps[1:])]
    return {
        "models": {name: estimate(v[0], percentiles(v, confidence), n) for name, v in mean.items()},
        **{
            key: estimate(value, interval, n)
            for key, (value, interval) in _excess(gaps, floor, confidence).items()
        },
        "floor": floor,
        "apart": float(np.square(apart[:, 0]).mean()),
        "noise": float(apart[:, 1:].var(axis=1, ddof=1).mean()) if resamples > 1 else math.nan,
        "images": float(finite.std(ddof=1)) if len(finite) > 1 else math.nan,
        "has_power": not reason,
        "reason": reason,
        "draws": gaps,
    }


def percentiles(drawn: Float[np.ndarray, "b"], confidence: float) -> tuple[float, float]:
    """Return the percentile interval of a bootstrap, whose first value is the sample's own."""
    tail = (1 - confidence) / 2
    found = drawn[1:][np.isfinite(drawn[1:])]
    if not len(found):
        return math.nan, math.nan
    low, high = np.quantile(found, (tail, 1 - tail))
    return float(low), float(high)


def _excess(gaps, floor, confidence) -> dict[str, tuple[float, tuple[float, float]]]:
    """Return the gap and the excess over the floor, with intervals of the signed gap, folded."""
    low, high = percentiles(-gaps if gaps[0] < 0 else gaps, confidence)
    value, ends = abs(float(gaps[0])), (max(low, 0.0), max(abs(low), abs(high)))
    floor = 0.0 if math.isnan(floor) else floor
    over = tuple(max(0.0, x - floor) for x in (value, *ends))
    return {"gap": (value, ends), "excess": (over[0], over[1:])}


def between_models(apart: Float[np.ndarray, "k"], noise: Float[np.ndarray, "k"]) -> float:
    """Estimate by how much retrained models differ beyond what images do: a variance, for `test`.

    Paule & Mandel 1982: the T >= 0 at which the mean of apart / (noise + T) is 1, or 0. Witnesses
    with much noise say nothing, and one pair of models says something in each of the others.

    Args:
      apart: squared differences of retrained models, of each witness, see `compare`.
      noise: variances of the differences that are due to the images.
    """

    def beyond(variance):
        return float(np.mean(apart / np.maximum(noise + variance, 1e-12))) - 1

    if not len(apart) or beyond(0.0) <= 0:
        return 0.0
    return float(scipy.optimize.brentq(beyond, 0.0, apart.max()))


def test(found: Mapping[str, Any], between: float) -> dict[str, float]:
    """Test that a gap is at most .1: {"error": its standard error, "p_value"}.

    One-sided, normal; error^2 = max(images^2 + between, the witness's own difference of retrained
    models squared). A pair of models is alike in one witness by luck, but seldom in most of them;
    and a witness may differ more than most do. p is 1 where something is unknown.

    Args:
      found: of `compare`.
      between: of all witnesses, see `between_models`.
    """
    gap, images, apart = found["gap"]["value"], found["images"], found["apart"]
    if not all(map(math.isfinite, (gap, images, apart))):
        return {"error": math.nan, "p_value": 1.0}
    error = math.sqrt(max(images**2 + between, apart))
    p = float(scipy.stats.norm.sf((gap - MARGIN) / error)) if error else float(gap <= MARGIN)
    return {"error": error, "p_value": p}


def power(floor: float, error: float, tests: int) -> float:
    """Compute the probability that the test finds an excess of .25: a gap of floor + .25.

    P(Z > z - (floor + .25 - .1) / error), z the quantile of .05 / tests, that is the hardest step
    of Holm. 0 where floor or error are unknown.

    Args:
      floor: of the witness.
      error: of `test`.
      tests: witnesses that have power, variants counted.
    """
    if not (math.isfinite(floor) and math.isfinite(error)):
        return 0.0
    beyond = floor + EXCESS - MARGIN
    if not error:
        return 1.0
    normal = scipy.stats.norm
    return float(normal.sf(normal.isf(LEVEL / tests) - beyond / error))


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
    """Adjust p-values so that those <= .05 are wrong, any of them, with probability <= .05.

    Holm 1979: the k-th smallest of m times m - k + 1, made to increase, at most 1.
    """
    adjusted, most, m = {}, 0.0, len(p_values)
    for k, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        most = min(1.0, max(most, (m - k) * p_values[name]))
        adjusted[name] = most
    return adjusted
