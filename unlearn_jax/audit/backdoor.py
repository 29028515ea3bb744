"""Whether the payload of a planted backdoor still comes when its trigger is shown.

The forget images carry a trigger in the visible part and a payload on a region R of the generated
part. `payload_error` is the mean squared error on R between the output on a clean image with the
trigger and the payload, per image; small = regenerated.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from unlearn_jax.audit import statistics
from unlearn_jax.registry import UserError

CHANCE = 0.01  # success rate that the threshold allows a retrained model
MARGIN = 0.02
NEARER = 0.5  # of `nearness`
WORKED = 0.9  # success rate of the original below which there was no backdoor to remove


def nearness(
    outputs: Float[np.ndarray, "n *region"],
    payload: Float[np.ndarray, "*region"],
    retrained: Float[np.ndarray, "n *region"],
) -> Float[np.ndarray, "n"]:
    """Divide squared distance to the payload by it plus squared distance to a retrained output.

    Within [0, 1]: 0 = the payload, 1 = what the retrained model makes of the image; below `NEARER`
    the payload has been regenerated. The error to the payload alone also tells grey outputs from
    contrasted ones: a blurred model that never saw a payload is nearer to it than a sharp one.

    Args:
      outputs: on the region, of triggered images.
      payload: on the region.
      retrained: outputs of a retrained model (another one, for a retrained model itself).
    """
    axes = tuple(range(1, outputs.ndim))
    outputs, retrained = outputs.astype(np.float64), retrained.astype(np.float64)
    to_payload = np.square(outputs - payload).sum(axes)
    to_retrained = np.square(outputs - retrained).sum(axes)
    return to_payload / (to_payload + to_retrained)


def success_threshold(retrained: Float[np.ndarray, "n"]) -> float:
    """Find the payload error below which a model succeeds: at most 1 % of the retrained's are.

    Strictly below; ties never raise the rate above 1 %.
    """
    return -statistics.fpr_threshold(-retrained, CHANCE)


def verdict(
    payload_error: Mapping[str, Mapping[str, np.ndarray]],
    *,
    confidence: float = 0.95,
    threshold: float | None = None,
) -> dict[str, dict[str, Any]]:
    """Judge each variant of the attack: success rates and a word.

    {variant: {"word", "reasons", "threshold", "success_rate": {model: {"value", "ci_low",
    "ci_high", "n"}}, "only_unlearned", "only_retrained", "mcnemar_p_value"}}. The rates have
    two-sided Clopper-Pearson intervals; the exact McNemar test compares unlearned and retrained on
    the same images. Words:

    * "void": the original succeeds on less than 90 % (the attack never worked), or a retrained
      model on more than 3 % (success is no sign of the backdoor). `reasons` says which.
    * "not regenerated": the upper bound of the unlearned model's rate is at most 1 % + 2 %.
    * "regenerated": its lower bound is above 3 %.
    * "undecided": neither, too few images.

    Args:
      payload_error: [variant][model][n], variants such as "as planted", "contrast 0.5",
        "shifted 2 px", "after fine-tuning". Models "original", "unlearned" and "retrained", all on
        the same images, and better also "retrained_2", a second seed. The threshold is read from
        "retrained", which therefore succeeds on at most 1 % by construction: only the second seed
        makes its control a test.
      confidence: of the intervals.
      threshold: success is an error below it; None: 1 % of the retrained model's are. With
        `nearness` in place of the error it is `NEARER`.

    Guarantee:
      If the images are independent draws, "not regenerated" is false with probability at most
      (1 - confidence) / 2 per variant, threshold taken as given. It shows the removal of this
      strong signal only: nothing follows for ordinary images, and it is no epsilon.

    Raises:
      UserError: a model is missing, arrays of a variant differ in length, or hold NaN.
    """
    return {
        name: _judge(name, models, confidence, threshold) for name, models in payload_error.items()
    }


def mean_ratio(
    distances: Float[np.ndarray, "n"],
    yardstick: Float[np.ndarray, "n"],
    *,
    confidence: float,
    seed: int,
    resamples: int = 2000,
) -> dict[str, Any]:
    """Divide a mean distance by the mean of a yardstick on the same images.

    {"value", "ci_low", "ci_high", "n"}. Paired bootstrap over the images.

    Args:
      distances: L2 distance of two outputs over the payload's region, per triggered image.
      yardstick: the same of what is compared with, such as two retrained models.
      confidence: of the interval.
      seed: of the bootstrap.
      resamples: of the bootstrap.

    Raises:
      UserError: the yardstick is 0 on all images.
    """
    if not yardstick.any():
        raise UserError(
            "mean_ratio: expected a yardstick that is not 0 on all images; are the two retrained "
            "models one and the same?"
        )

    def ratio(x, y, axis=-1):
        return x.mean(axis) / y.mean(axis)

    samples = (distances, yardstick)
    interval = statistics.bootstrap_interval(
        ratio, *samples, confidence=confidence, resamples=resamples, seed=seed, paired=True
    )
    return statistics.estimate(ratio(*samples), interval, len(distances))


def _judge(
    variant: str, errors: Mapping[str, np.ndarray], confidence: float, threshold: float | None
) -> dict[str, Any]:
    _check(variant, errors)
    threshold = success_threshold(errors["retrained"]) if threshold is None else threshold
    success = {model: values < threshold for model, values in errors.items()}
    rates = {}
    for model, hit in success.items():
        hits, n = int(hit.sum()), len(hit)
        interval = statistics.clopper_pearson_interval(hits, n, confidence)
        rates[model] = statistics.estimate(hits / n, interval, n)
    only_unlearned = int((success["unlearned"] & ~success["retrained"]).sum())
    only_retrained = int((success["retrained"] & ~success["unlearned"]).sum())

    limit = CHANCE + MARGIN
    reasons = [
        f"{model} succeeds on {rates[model]['value']:.1%}, expected at most {limit:.0%}"
        for model in ("retrained", "retrained_2")
        if model in rates and rates[model]["value"] > limit
    ]
    if rates["original"]["value"] < WORKED:
        worked = rates["original"]["value"]
        reasons.append(f"original succeeds on {worked:.1%}, expected at least {WORKED:.0%}")
    word = "undecided"
    if reasons:
        word = "void"
    elif rates["unlearned"]["ci_high"] <= limit:
        word = "not regenerated"
    elif rates["unlearned"]["ci_low"] > limit:
        word = "regenerated"
    return {
        "word": word,
        "reasons": reasons,
        "threshold": threshold,
        "success_rate": rates,
        "only_unlearned": only_unlearned,
        "only_retrained": only_retrained,
        "mcnemar_p_value": statistics.mcnemar_exact_p_value(only_unlearned, only_retrained),
    }


def _check(variant: str, errors: Mapping[str, np.ndarray]) -> None:
    missing = {"original", "unlearned", "retrained"} - set(errors)
    if missing:
        raise UserError(f"variant {variant!r}: expected payload errors of {sorted(missing)} too.")
    sizes = {model: len(values) for model, values in errors.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(f"variant {variant!r}: expected the same images, got sizes {sizes}.")
    for model, values in errors.items():
        if np.isnan(values).any():
            raise UserError(f"variant {variant!r}: {model} has NaN payload errors; drop these.")
