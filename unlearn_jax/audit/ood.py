"""Whether a model treats forget images as unseen: displaced, no longer members, not damaged.

Three tests, each with its own null hypothesis, of one score per image. The claim is statistical:
a forget image is as unknown as an unseen one. Pushing it further out is damage, not unlearning.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from unlearn_jax.audit import statistics
from unlearn_jax.registry import UserError

SETS = ("forget", "retain", "holdout")
LEAST = 400  # images of each set; with fewer, equivalence is rarely shown
TAIL = 0.05  # T2: the share of members above its threshold; BH level of the per-image claim
MARGIN_DISPLACED = 0.1  # T1: tolerated shortfall of the displaced share
MARGIN_AUROC = 0.05  # T3: tolerated distance of the AUROC from 0.5


def score(
    error: Float[np.ndarray, "n"], out_errors: Float[np.ndarray, "j n"], offset: float
) -> Float[np.ndarray, "n"]:
    """Score images by log(e + offset) - log(mean out e + offset): larger = less known to the model.

    Args:
      error: mean squared error on the generated part; e is its square root.
      out_errors: the same of J >= 1 models that were not trained on these images. They remove how
        hard an image is, which otherwise dominates.
      offset: small against e, so that an error near 0 does not dominate.
    """
    return np.log(np.sqrt(error) + offset) - np.log(np.sqrt(out_errors).mean(axis=0) + offset)


def displaced(
    displacement: Float[np.ndarray, "m"],
    calibration: Float[np.ndarray, "k"],
    *,
    significance: float,
    alpha: float = 0.1,
) -> dict[str, Any]:
    """Test T1: forget outputs moved from the original's as far as a retrained model's do.

    lambda is `conformal_threshold(calibration, alpha)`: a retrained model's displacement falls
    short of it with probability at most alpha. Null: a forget image reaches lambda with probability
    1 - alpha - 0.1 or less; exact binomial test, interval Clopper-Pearson (one-sided, high = 1).

    Args:
      displacement: RMS distance to the original's output, per forget image.
      calibration: of a retrained model, on forget images or images like them.
      significance: of the test.
      alpha: see above.
    """
    threshold = statistics.conformal_threshold(calibration, alpha)
    hits, m = int((displacement >= threshold).sum()), len(displacement)
    required = 1 - alpha - MARGIN_DISPLACED
    p_value = float(stats.binom.sf(hits - 1, m, required))
    low = statistics.clopper_pearson_lower(hits, m, significance)
    return {
        "share_displaced": statistics.estimate(hits / m, (low, 1.0), m),
        "lambda_ood": threshold,
        "required_share": required,
        "p_value": p_value,
        "pass": p_value <= significance,
    }


def no_longer_member(
    forget: Float[np.ndarray, "m"], retain: Float[np.ndarray, "n"], *, significance: float
) -> dict[str, Any]:
    """Test T2: forget scores lie above those of images that the model was trained on and kept.

    Null: forget and retain scores are exchangeable. Two tests of it, the larger p-value counts:
    how many forget scores exceed the members' 95 % order statistic (`exceedance_p_value`), and
    Mann-Whitney, one-sided, whose AUROC P(forget > retain) is given. "share_unknown" is the share
    of forget images that are unknown one by one: conformal p-values, false discovery rate 5 %.
    """
    order = int((1 - TAIL) * (len(retain) + 1) + 1e-9)
    exceedances = int((forget > np.sort(retain)[order - 1]).sum())  # a tie is no exceedance
    exceedance = statistics.exceedance_p_value(len(retain), order, len(forget), exceedances)
    rank = float(stats.mannwhitneyu(forget, retain, alternative="greater").pvalue)
    adjusted = stats.false_discovery_control(statistics.conformal_p_values(forget, retain))
    interval = statistics.auroc_interval(forget, retain, 1 - 2 * significance)
    p_value = max(exceedance, rank)
    return {
        "auroc": statistics.estimate(statistics.auroc(forget, retain), interval, len(forget)),
        "exceedances": exceedances,
        "exceedance_p_value": exceedance,
        "mann_whitney_p_value": rank,
        "share_unknown": float((adjusted <= TAIL).mean()),
        "p_value": p_value,
        "pass": p_value <= significance,
    }


def as_unseen(
    forget: Float[np.ndarray, "m"], holdout: Float[np.ndarray, "n"], *, significance: float
) -> dict[str, Any]:
    """Test T3: forget scores are equivalent to those of images that were never trained on.

    Null: the AUROC P(forget > holdout) is outside 0.5 +- 0.05. Two one-sided tests (TOST) with
    DeLong's standard error; passed if the interval of confidence 1 - 2 significance is inside.
    """
    area, error = statistics.delong(forget, holdout)
    error = max(error, float(np.finfo(float).tiny))
    p_value = max(
        float(stats.norm.sf((area - (0.5 - MARGIN_AUROC)) / error)),
        float(stats.norm.cdf((area - (0.5 + MARGIN_AUROC)) / error)),
    )
    interval = statistics.auroc_interval(forget, holdout, 1 - 2 * significance)
    return {
        "auroc": statistics.estimate(area, interval, len(forget)),
        "p_value": p_value,
        "pass": p_value <= significance,
    }


def verdict(
    errors: Mapping[str, Mapping[str, np.ndarray]],
    out_errors: Mapping[str, np.ndarray],
    displacement: Mapping[str, np.ndarray],
    calibration_displacement: Float[np.ndarray, "k"],
    *,
    significance: float = 0.05,
    min_n: int = LEAST,
) -> dict[str, Any]:
    """Judge the unlearned model by the three tests, and the same on two controls; add a word.

    {"word", "reasons", "unlearned_ood", "significance_per_test", "n": {set: count}, "tests":
    {model: {"displaced", "no_longer_member", "as_unseen"}}}. Each test is made at significance / 3
    (Bonferroni). `unlearned_ood` = the unlearned model passes all three; None if refused. Words:

    * "refused": fewer than min_n images in a set (no tests are made then), or a control fails: the
      retrained model must pass every test, the original must fail every one. Otherwise a test
      either rejects what it should accept or cannot see that an image was trained on.
    * "still known": not shown to be no longer a member, or significantly better known than holdout.
    * "damaged on forget": no longer a member, but significantly less known than holdout.
    * "unlearned": all three passed.
    * "undecided": anything else, such as too few images for the margin.

    Args:
      errors: mean squared error on the generated part, [model][set][n]; models "original",
        "unlearned", "retrained"; sets "forget", "retain", "holdout".
      out_errors: [set][j n], of J >= 1 further models not trained on the images of *that set*. (For
        retain that takes cross-fitted models; the retrained model above must not be among them.)
      displacement: RMS distance to the original's output per forget image, of "unlearned" and
        "retrained".
      calibration_displacement: the same of a retrained model, better of another seed and on
        forget-like images that are used for nothing else; otherwise the retrained model passes the
        first test by construction.
      significance: of the whole claim.
      min_n: images needed in every set. (The TOST rarely passes with fewer.)

    Guarantee:
      If images within a set are independent draws, and forget and holdout are drawn from one
      distribution (reserve images of the forgotten classes), a false "unlearned" has probability
      at most `significance`, lambda taken as given; the third test is asymptotic. It holds for
      these scores of these models. It is no epsilon, and says nothing of other attacks or other
      training runs.

    Raises:
      UserError: an error is not positive and finite; sets differ in size between arguments; too
        few calibration displacements for the conformal threshold.
    """
    _check(errors, out_errors, displacement)
    sizes = {name: len(errors["unlearned"][name]) for name in SETS}
    level = significance / 3
    result = {"significance_per_test": level, "n": sizes, "tests": {}}
    short = [f"{n} {name} images, {min_n} needed" for name, n in sizes.items() if n < min_n]
    if short:
        return result | {"word": "refused", "reasons": short, "unlearned_ood": None}

    out = np.concatenate([np.sqrt(out_errors[name]).mean(axis=0) for name in SETS])
    offset = 1e-3 * float(np.median(out))
    moved = {**displacement, "original": np.zeros(sizes["forget"])}
    tests = result["tests"]
    for model, of_set in errors.items():
        scores = {name: score(of_set[name], out_errors[name], offset) for name in SETS}
        forget = scores["forget"]
        tests[model] = {
            "displaced": displaced(moved[model], calibration_displacement, significance=level),
            "no_longer_member": no_longer_member(forget, scores["retain"], significance=level),
            "as_unseen": as_unseen(forget, scores["holdout"], significance=level),
        }
    refusals = [
        f"control: the retrained model fails '{name}', it would refuse what never saw the images"
        for name, test in tests["retrained"].items()
        if not test["pass"]
    ] + [
        f"control: the original passes '{name}', it cannot see that images were trained on"
        for name, test in tests["original"].items()
        if test["pass"]
    ]
    if refusals:
        return result | {"word": "refused", "reasons": refusals, "unlearned_ood": None}
    failed = [name for name, test in tests["unlearned"].items() if not test["pass"]]
    return result | {
        "word": _word(tests["unlearned"]),
        "reasons": [f"the unlearned model fails '{name}'" for name in failed],
        "unlearned_ood": not failed,
    }


def _word(tests: Mapping[str, Mapping[str, Any]]) -> str:
    if all(test["pass"] for test in tests.values()):
        return "unlearned"
    area = tests["as_unseen"]["auroc"]
    equivalent = tests["as_unseen"]["pass"]
    if not tests["no_longer_member"]["pass"] or (not equivalent and area["ci_high"] < 0.5):
        return "still known"
    return "damaged on forget" if not equivalent and area["ci_low"] > 0.5 else "undecided"


def _check(
    errors: Mapping[str, Mapping[str, np.ndarray]],
    out_errors: Mapping[str, np.ndarray],
    displacement: Mapping[str, np.ndarray],
) -> None:
    for found, expected, what in (
        (errors, {"original", "unlearned", "retrained"}, "errors"),
        (out_errors, set(SETS), "out_errors"),
        (displacement, {"unlearned", "retrained"}, "displacement"),
        *((of_set, set(SETS), f"errors[{model!r}]") for model, of_set in errors.items()),
    ):
        if set(found) != expected:
            raise UserError(f"{what}: expected keys {sorted(expected)}, got {sorted(found)}.")
    for name in SETS:
        columns = {f"errors[{model!r}][{name!r}]": errors[model][name] for model in errors}
        columns |= {f"out_errors[{name!r}]": out_errors[name]}
        if name == "forget":
            columns |= {f"displacement[{model!r}]": moved for model, moved in displacement.items()}
        sizes = {column: values.shape[-1] for column, values in columns.items()}
        if len(set(sizes.values())) > 1:
            raise UserError(f"expected equally many {name} images everywhere, got {sizes}.")
        for column, values in columns.items():
            low = 0 if column.startswith("displacement") else np.finfo(float).tiny
            bad = ~(np.isfinite(values) & (values >= low))
            if bad.any():
                raise UserError(
                    f"{column}: expected positive finite numbers, got {bad.sum()} that are not. "
                    "Drop the examples that could not be measured."
                )
