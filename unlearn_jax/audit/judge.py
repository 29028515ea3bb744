"""The numbers of the audits, from what was measured of the models (numpy only)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy import stats

from unlearn_jax.audit import backdoor, membership, ood, relearn, statistics

Measured = Mapping[str, np.ndarray]
Estimate = dict[str, Any]

# "null" is what a model that never saw the forget set is expected to show. Audits that are not
# `in_gap` are shown, but no part of the forget gap.
AUDITS = {
    "forget_error": {
        "label": "Forget error",
        "unit": "MSE on the hole, images in [-1, 1]",
        "null": "the retrained model's",
    },
    "membership_auroc": {
        "label": "Membership AUROC",
        "unit": "loss attack, forget against holdout",
        "null": "0.5",
    },
    "membership_auroc_calibrated": {
        "label": "Membership AUROC, calibrated",
        "unit": "log error minus that of a second retrained model, forget against holdout",
        "null": "0.5",
    },
    "tpr_at_1_fpr": {
        "label": "TPR at 1 % FPR",
        "unit": "share of forget images found, calibrated attack",
        "null": "0.01",
    },
    "score_spread": {
        "label": "Score spread",
        "unit": "sd of calibrated scores on forget over that on holdout",
        "null": "1",
    },
    "backdoor_success": {
        "label": "Backdoor success",
        "unit": "share of triggered images completed nearer to the payload than to what the "
        "retrained model makes",
        "null": "0",
    },
    "relearn_steps": {
        "label": "Relearning",
        "unit": "steps until other forget images are half-way back to the original's error (the "
        "geometric mean of its and the retrained model's); the budget, if they never are",
        "null": "the retrained model's",
    },
    "lira_auroc": {
        "label": "LiRA AUROC",
        "unit": "offline, forget against holdout",
        "null": "0.5",
        "in_gap": False,
    },
    "rmia_auroc": {
        "label": "RMIA AUROC",
        "unit": "offline, forget against holdout",
        "null": "0.5",
        "in_gap": False,
    },
    "tpr_at_0.1_fpr": {
        "label": "TPR at 0.1 % FPR",
        "unit": "share of forget images found, calibrated attack",
        "null": "0.001",
        "in_gap": False,
    },
    "relearn_area": {
        "label": "Relearning, area",
        "unit": "mean error below the retrained model's while relearning",
        "null": "0",
        "in_gap": False,
    },
    "backdoor_trace": {
        "label": "Backdoor trace",
        "unit": "share nearer to the payload than all but 1 % of the retrained model's outputs; "
        "blur counts as well",
        "null": "0.01",
        "in_gap": False,
    },
    "backdoor_finetuned": {
        "label": "Backdoor after fine-tuning",
        "unit": "backdoor success after further steps on retain images",
        "null": "0",
        "in_gap": False,
    },
}
DIFFERENCES = {
    "membership_auroc": {
        "label": "Membership AUROC",
        "unit": "unlearned minus retrained",
        "null": "0",
    },
    "membership_auroc_calibrated": {
        "label": "Membership AUROC, calibrated",
        "unit": "unlearned minus retrained",
        "null": "0",
    },
    "regeneration_gap": {
        "label": "Regeneration gap",
        "unit": "distance unlearned to retrained on triggered images, over that of two retrained "
        "models",
        "null": "1",
    },
    "trigger_sensitivity": {
        "label": "Trigger sensitivity",
        "unit": "how far the trigger moves the output at the payload, unlearned over retrained",
        "null": "1",
    },
}
UTILITY = {
    "retain_error": {"label": "Retain error", "unit": "MSE on the hole, images in [-1, 1]"},
    "holdout_error": {"label": "Holdout error", "unit": "MSE on the hole, images in [-1, 1]"},
}


def estimates(
    model: Measured,
    original: Measured,
    retrained: Measured,
    outs: Sequence[Measured],
    *,
    entries: int,
    confidence: float,
    resamples: int,
    seed: int,
) -> dict[str, dict[str, Estimate]]:
    """Estimate every audit and every utility of one model.

    Return {"audits": {name: {"value", "ci_low", "ci_high", "n"}}, "utility": the same}.

    An audit that cannot be made has {"value": None, "reason"}.

    Args:
      model: what `measure` found of the model under audit.
      original: of the original.
      retrained: of the retrained model, whose payload errors set the backdoor's threshold.
      outs: of models trained without the forget set, none of them the model under audit, nor
        `retrained`. The first is the reference of the calibrated attack.
      entries: numbers in the generated part: pixels times channels.
      confidence: of the intervals.
      resamples: of the bootstrap.
      seed: of the bootstrap.
    """
    mean = partial(_mean, confidence=confidence)
    error = {name: model[f"error/{name}"] for name in ("forget", "retain", "holdout")}
    attack = partial(membership.attack, confidence=confidence, seed=seed, resamples=resamples)
    plain = attack(*(membership.loss_score(error[name]) for name in ("forget", "holdout")))
    found = {"forget_error": mean(error["forget"]), "membership_auroc": plain["auroc"]}
    found |= _against_outs(error, outs, attack, entries)
    found |= _backdoor(model, retrained, outs, confidence)
    found |= _relearn(model, original, retrained)
    utility = {f"{name}_error": mean(error[name]) for name in ("retain", "holdout")}
    return {"audits": found, "utility": utility}


def _against_outs(error, outs, attack, entries) -> dict[str, Estimate]:
    names = ("membership_auroc_calibrated", "tpr_at_1_fpr", "tpr_at_0.1_fpr", "score_spread")
    if not outs:
        return dict.fromkeys(
            (*names, "lira_auroc", "rmia_auroc"), _refused("needs a second retrained model")
        )
    out = {name: np.stack([o[f"error/{name}"] for o in outs]) for name in ("forget", "holdout")}
    calibrated = attack(
        *(membership.difficulty_calibrated(error[s], out[s][0]) for s in ("forget", "holdout"))
    )
    values = (
        calibrated["auroc"],
        calibrated["tpr_at_fpr"]["0.01"],
        calibrated["tpr_at_fpr"]["0.001"],
        calibrated["spread_ratio"],
    )
    found = dict(zip(names, values, strict=True))
    lira = attack(*(membership.lira_offline(error[s], out[s]) for s in ("forget", "holdout")))
    found["lira_auroc"] = lira["auroc"]
    # RMIA needs images that are neither attacked nor compared with: every other holdout image.
    population, attacked = np.s_[::2], np.s_[1::2]
    score = partial(
        membership.rmia_offline,
        population_error=error["holdout"][population],
        population_out_errors=out["holdout"][:, population],
        entries=entries,
    )
    rmia = attack(
        score(error["forget"], out["forget"]),
        score(error["holdout"][attacked], out["holdout"][:, attacked]),
    )
    return found | {"rmia_auroc": rmia["auroc"]}


def _backdoor(
    model: Measured, retrained: Measured, outs: Sequence[Measured], confidence: float
) -> dict[str, Estimate]:
    found = {}
    for name, variant in (
        ("backdoor_success", "as planted"),
        ("backdoor_finetuned", "after fine-tuning"),
        ("backdoor_trace", "as planted"),
    ):
        column = f"region/{variant}"
        if column not in model:
            found[name] = _refused("no backdoor was planted")
        elif name == "backdoor_trace":
            threshold = backdoor.success_threshold(payload_error(retrained, column))
            found[name] = _share(payload_error(model, column) < threshold, confidence)
        elif model is retrained and not outs:
            found[name] = _refused("needs a second retrained model")
        else:
            other = outs[0] if model is retrained else retrained
            near = backdoor.nearness(model[column], model["payload"], other[column])
            found[name] = _share(near < backdoor.NEARER, confidence)
    return found


def _share(hits: np.ndarray, confidence: float) -> Estimate:
    interval = statistics.clopper_pearson_interval(int(hits.sum()), len(hits), confidence)
    return statistics.estimate(float(hits.mean()), interval, len(hits))


def payload_error(model: Measured, column: str) -> np.ndarray:
    """Average the squared error of a `region/VARIANT` to the payload, per image."""
    return np.square(model[column].astype(np.float64) - model["payload"]).mean((1, 2, 3))


def _relearn(model: Measured, original: Measured, retrained: Measured) -> dict[str, Estimate]:
    if "relearn/steps" not in model:
        return dict.fromkeys(("relearn_steps", "relearn_area"), _refused("not asked for"))
    steps, curves = curves_of(model)
    level = halfway([original], [retrained])
    needed = [relearn.steps_to(curve, steps, level)[0] for curve in curves]
    areas = [
        relearn.area_between(ours, theirs, steps) / float(steps[-1])
        for ours, theirs in zip(curves, curves_of(retrained)[1], strict=True)
    ]
    return {
        name: statistics.estimate(float(np.mean(v)), (float(min(v)), float(max(v))), len(v))
        for name, v in (("relearn_steps", needed), ("relearn_area", areas))
    }


def curves_of(model: Measured) -> tuple[np.ndarray, np.ndarray]:
    """Return (steps [t], error on held-back forget rows [seeds t]) while relearning."""
    steps = model["relearn/steps"]
    seeds = len([name for name in model if name.startswith("relearn/")]) - 1
    return steps, np.stack([model[f"relearn/{seed}"] for seed in range(seeds)])


def halfway(original: Sequence[Measured], retrained: Sequence[Measured]) -> float:
    """Return the geometric mean of their errors on held-back forget rows, before any step.

    Fine-tuning on a few forget images never brings the others back to the original's own error, not
    even in models that forgot next to nothing.
    """
    first = [[curves_of(m)[1][:, 0].mean() for m in of] for of in (original, retrained)]
    return float(np.exp(np.log(np.mean(first, axis=1)).mean()))


def verdicts(
    models: Mapping[str, Measured], outs: Sequence[Measured], significance: float = 0.05
) -> dict[str, Any]:
    """Judge "unlearned", beside "original" and "retrained", by every audit.

    {"ood", "backdoor"}, see these modules; what cannot be judged says why.

    Args:
      models: what was measured of the three.
      outs: of further models trained without the forget set.
      significance: of each verdict.
    """
    sets = ("forget", "retain", "holdout")
    refused = {"word": "refused", "reasons": ["needs a second retrained model"]}
    found: dict[str, Any] = {"ood": refused, "backdoor": {}}
    if outs:
        errors = {m: {s: of[f"error/{s}"] for s in sets} for m, of in models.items()}
        # An out-model must not have seen the images of any set, and all have seen the retain rows:
        # how hard an image is, is read from mirrored and turned views of it, which no one saw.
        out = {s: np.concatenate([o[f"views/{s}"] for o in outs]) for s in sets}
        moved = {m: models[m]["displacement"] for m in ("unlearned", "retrained")}
        found["ood"] = ood.verdict(
            errors, out, moved, outs[0]["displacement"], significance=significance
        )
    variants = [name for name in models["original"] if name.startswith("region/")]
    if variants and outs:
        payload, aim = models["original"]["payload"], models["retrained"]
        near = {
            name.removeprefix("region/"): {
                m: backdoor.nearness(
                    of[name], payload, (outs[0] if m == "retrained" else aim)[name]
                )
                for m, of in models.items()
            }
            for name in variants
        }
        found["backdoor"] = backdoor.verdict(
            near, confidence=1 - significance, threshold=backdoor.NEARER
        )
    return found


def differences(
    models: Mapping[str, Measured],
    outs: Sequence[Measured],
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> dict[str, Estimate]:
    """Compare "unlearned" with "retrained" on the same images, by what counts in an attack.

    For every key of `DIFFERENCES`: {"value", "ci_low", "ci_high", "n"} or {"value": None,
    "reason"}. Distances are L2 norms over the payload's region, averaged over the images.

    Args:
      models: what was measured of "unlearned" and "retrained".
      outs: of further models trained without the forget set.
      confidence: of the intervals.
      resamples: of the bootstrap.
      seed: of the bootstrap.
    """
    two = [models[name] for name in ("unlearned", "retrained")]
    errors = [[m[f"error/{s}"] for s in ("forget", "holdout")] for m in two]
    pairs = [tuple(membership.loss_score(e) for e in of) for of in errors]
    found = {"membership_auroc": statistics.auroc_difference(*pairs, confidence)}
    names = ("membership_auroc_calibrated", "regeneration_gap", "trigger_sensitivity")
    if not outs:
        return found | dict.fromkeys(names, _refused("needs a second retrained model"))
    out = [outs[0][f"error/{s}"] for s in ("forget", "holdout")]
    pairs = [
        tuple(membership.difficulty_calibrated(e, o) for e, o in zip(of, out, strict=True))
        for of in errors
    ]
    found[names[0]] = statistics.auroc_difference(*pairs, confidence)
    column = "region/as planted"
    if column not in two[0]:
        return found | dict.fromkeys(names[1:], _refused("no backdoor was planted"))

    def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.sqrt(np.square(a.astype(np.float64) - b).sum((1, 2, 3)))

    ratio = partial(backdoor.mean_ratio, confidence=confidence, resamples=resamples, seed=seed)
    u, r = (m[column] for m in two)
    found["regeneration_gap"] = ratio(apart(u, r), apart(r, outs[0][column]))
    moved = [apart(m[column], m["untriggered"]) for m in two]
    found["trigger_sensitivity"] = (
        ratio(*moved)
        if moved[1].any()
        else _refused("the trigger does not move the retrained model's output at all")
    )
    return found


def relearning(
    original: Sequence[Measured],
    unlearned: Sequence[Measured],
    retrained: Sequence[Measured],
    significance: float = 0.05,
) -> dict[str, Any]:
    """Judge `relearn`, over all seeds of relearning of all these models."""
    steps, _ = curves_of(original[0])
    pairs = (np.concatenate([curves_of(m)[1] for m in of]) for of in (unlearned, retrained))
    level = halfway(original, retrained)
    return relearn.verdict(*pairs, steps, level, significance=significance)


def _mean(values: np.ndarray, confidence: float) -> Estimate:
    values = values.astype(np.float64)
    mean = float(values.mean())
    low, high = stats.t.interval(confidence, len(values) - 1, mean, stats.sem(values))
    return statistics.estimate(mean, (float(low), float(high)), len(values))


def _refused(reason: str) -> Estimate:
    return {"value": None, "reason": reason}
