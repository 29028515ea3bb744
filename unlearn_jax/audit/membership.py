"""Membership inference: scores of single examples, and how well they tell forget from holdout.

Every `error` is a mean squared error on the generated part, one positive number per example. All
scores are higher = more likely a member. Out-models never saw the examples that they are given for.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from unlearn_jax.audit import statistics
from unlearn_jax.registry import UserError

LEAST = 30  # images of each side; fewer carry no interval
POOL_BELOW = 16  # out-models; with fewer, the spread of a single example is too noisy


def loss_score(error: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Score by -log error: what is reproduced well is guessed to be a member (Yeom et al. 2018)."""
    _check_errors(error=error)
    return -np.log(error)


def difficulty_calibrated(
    error: Float[np.ndarray, "n"], out_error: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "n"]:
    """Score by -log(error / out_error), out_error from one other model (Watson et al. 2022).

    It removes how hard an image is, which otherwise dominates.
    """
    _check_errors(error=error, out_error=out_error)
    return np.log(out_error) - np.log(error)


def lira_offline(
    error: Float[np.ndarray, "n"], out_errors: Float[np.ndarray, "j n"]
) -> Float[np.ndarray, "n"]:
    """Score by phi = -log error as a z-score among the out-models' phi: (phi - mean) / sd.

    Offline LiRA (Carlini et al. 2022, section VI-B). The sd is per example with 16 or more
    out-models, pooled over the examples (root mean variance) with fewer. One out-model has no
    spread: its sd counts as 1, which is `difficulty_calibrated`.

    Raises:
      UserError: an error is not positive and finite; the out-models agree exactly on an example
        (16 or more of them) or on all examples.
    """
    _check_errors(error=error, out_errors=out_errors)
    phi, phi_out = -np.log(error), -np.log(out_errors)
    if len(phi_out) == 1:
        return phi - phi_out[0]
    variance = phi_out.var(axis=0, ddof=1)
    if len(phi_out) < POOL_BELOW:
        variance = variance.mean(keepdims=True)
    if not variance.all():
        raise UserError(
            f"lira_offline: expected {len(phi_out)} different out-models, but they have exactly "
            "equal errors. Give models of different seeds."
        )
    return (phi - phi_out.mean(axis=0)) / np.sqrt(variance)


def rmia_offline(
    error: Float[np.ndarray, "n"],
    out_errors: Float[np.ndarray, "j n"],
    population_error: Float[np.ndarray, "m"],
    population_out_errors: Float[np.ndarray, "j m"],
    *,
    entries: int,
    gamma: float = 1.0,
    temperature: float | None = None,
) -> Float[np.ndarray, "n"]:
    """Score by the share of the population that an example beats in likelihood ratio, in [0, 1].

    Offline RMIA (Zarifzadeh et al. 2024): the share of population images z with r(x) - r(z) >
    log gamma, where r = log p - log mean_j p_j compares the model with its out-models. p is the
    Gaussian pseudo-likelihood log p(x) = -temperature * entries * error(x) / (2 s^2), s^2 = mean
    population error, the residual variance per entry. (RMIA's affine offline correction is for
    probabilities within [0, 1]; densities have none, so it is left out.)

    Args:
      error: of the model under attack, on the examples in question.
      out_errors: of the J out-models on them; 2 to 4 models are enough.
      population_error: of the model under attack, on images that neither it nor the out-models saw
        and that are not among the examples in question.
      population_out_errors: of the out-models on them.
      entries: numbers in the generated part: pixels times channels.
      gamma: ratio that has to be exceeded.
      temperature: of the pseudo-likelihood; by default `rmia_temperature` of the population.

    Raises:
      UserError: an error is not positive and finite; gamma, entries or temperature not positive.
    """
    if temperature is None:
        temperature = rmia_temperature(population_error, population_out_errors, entries=entries)
    _check_errors(error=error, out_errors=out_errors, population_error=population_error)
    for name, value in {"gamma": gamma, "entries": entries, "temperature": temperature}.items():
        if not value > 0:
            raise UserError(f"rmia_offline: expected {name} > 0, got {value}.")
    scale = temperature * entries / (2 * population_error.mean())

    def log_ratio(error, out_errors):
        error, out_errors = error.astype(np.float64), out_errors.astype(np.float64)
        out = logsumexp(-scale * out_errors, axis=0) - math.log(len(out_errors))
        return -scale * error - out

    population = np.sort(log_ratio(population_error, population_out_errors))
    beaten = np.searchsorted(
        population, log_ratio(error, out_errors) - math.log(gamma), side="left"
    )
    return beaten / len(population)


def rmia_temperature(
    population_error: Float[np.ndarray, "m"],
    population_out_errors: Float[np.ndarray, "j m"],
    *,
    entries: int,
) -> float:
    """Find the temperature at which the log ratio of two population images has unit deviation.

    Neighbouring pixels are dependent, so `entries` counts far too much evidence: untempered, every
    likelihood ratio is 0 or infinite, gamma means nothing and the mean over out-models is just its
    largest term. Here gamma is in units of what pairs of unseen images differ by chance. No forget
    image has a say. For the rule the out-models' log-likelihoods are averaged (the limit of low
    temperature), which makes it a closed form; s^2 and entries cancel in the tempered likelihood.

    Raises:
      UserError: an error is not positive and finite; the model and the out-models differ by the
        same on all population images, or there is only one image.
    """
    _check_errors(population_error=population_error, population_out_errors=population_out_errors)
    spread = (population_error - population_out_errors.mean(axis=0)).std()
    if not spread > 0:
        raise UserError(
            "rmia_temperature: expected population images on which the model and its out-models "
            f"differ, got {len(population_error)} with one and the same difference. Give more "
            "images, and out-models that are not the model itself."
        )
    return float(2 * population_error.mean() / (entries * math.sqrt(2) * spread))


def attack(
    forget_scores: Float[np.ndarray, "m"],
    holdout_scores: Float[np.ndarray, "n"],
    *,
    confidence: float,
    seed: int,
    fprs: Sequence[float] = (0.01, 0.001),
    min_n: int = LEAST,
    resamples: int = 2000,
) -> dict[str, Any]:
    """Measure how well scores tell forget images from images that were never trained on.

    {"n_forget", "n_holdout"}, and each as {"value", "ci_low", "ci_high", "n"} (n forget images) or,
    where the data cannot carry it, {"value": None, "reason"}:

    * "auroc": P(forget score > holdout score); DeLong interval.
    * "leakage": 2 |auroc - 0.5|, within [0, 1]; below 0.5 an AUROC leaks as well.
    * "spread_ratio": sd of the forget scores over sd of the holdout scores; bootstrap interval.
      Away from 1 an attacker gains at an AUROC of 0.5 too, by guessing the extremes.
    * "tpr_at_fpr": {"0.01": ...}: share of forget images found at this false positive rate;
      Clopper-Pearson interval, threshold taken as given. No verdict if n_holdout * fpr < 1.

    Guarantee:
      The intervals cover the choice of images, for forget and holdout images that are independent
      draws of one distribution (a holdout of other classes shows the classes, not membership). They
      do not cover the training run. An AUROC near 0.5 bounds this score only, not other attacks,
      and is no epsilon. What counts is the difference to a retrained model.

    Raises:
      UserError: no scores, or NaN among them; confidence or an fpr outside (0, 1).
    """
    samples = (forget_scores, holdout_scores)
    m, n = map(len, samples)
    area = statistics.auroc(*samples)
    result: dict[str, Any] = {"n_forget": m, "n_holdout": n}
    if min(m, n) < min_n:
        refused = _refused(f"{m} forget and {n} holdout images; at least {min_n} of each needed")
        tprs = {f"{fpr:g}": refused for fpr in fprs}
        names = ("auroc", "leakage", "spread_ratio")
        return result | dict.fromkeys(names, refused) | {"tpr_at_fpr": tprs}

    low, high = statistics.auroc_interval(*samples, confidence)
    result["auroc"] = statistics.estimate(area, (low, high), m)
    ends = sorted([2 * abs(low - 0.5), 2 * abs(high - 0.5)])
    folded = (0.0 if low <= 0.5 <= high else ends[0], ends[1])
    result["leakage"] = statistics.estimate(2 * abs(area - 0.5), folded, m)
    result["spread_ratio"] = _spread_ratio(*samples, confidence, resamples, seed)
    result["tpr_at_fpr"] = {}
    for fpr in fprs:
        tpr = statistics.tpr_at_fpr(*samples, fpr)
        interval = statistics.tpr_at_fpr_interval(*samples, fpr, confidence)
        result["tpr_at_fpr"][f"{fpr:g}"] = (
            statistics.estimate(tpr, interval, m)
            if n * fpr >= 1 - 1e-9
            else _refused(f"{n} holdout images; at least {math.ceil(1 / fpr - 1e-9)} needed")
        )
    return result


def _spread_ratio(
    forget: Float[np.ndarray, "m"],
    holdout: Float[np.ndarray, "n"],
    confidence: float,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    def ratio(x, y, axis=-1):
        with np.errstate(divide="ignore", invalid="ignore"):
            return x.std(axis, ddof=1) / y.std(axis, ddof=1)

    value = ratio(forget, holdout)
    if not np.isfinite(value):
        return _refused("the holdout scores are all equal")
    interval = statistics.bootstrap_interval(
        ratio, forget, holdout, confidence=confidence, resamples=resamples, seed=seed
    )
    if not np.isfinite(interval).all():
        return _refused("nearly all holdout scores are equal")
    return statistics.estimate(value, interval, len(forget))


def _refused(reason: str) -> dict[str, Any]:
    return {"value": None, "reason": reason}


def _check_errors(**errors: np.ndarray) -> None:
    for name, values in errors.items():
        bad = np.size(values) - np.count_nonzero((values > 0) & np.isfinite(values))
        if bad or not np.size(values):
            raise UserError(
                f"{name}: expected positive finite errors, got {np.size(values)} of which {bad} "
                "are not. Drop the examples that could not be measured."
            )
