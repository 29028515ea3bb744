"""How far each model of this experiment is from retraining, by the audits of version 0.2.

A gap is |u - r| / |o - r|, u being a method's value of an audit in one seed, r and o the means over
seeds of the retrained and of the original model: 0 is retrained, 1 is as if nothing had been done.
All functions are pure and take the content of points.json, of one world.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from unlearn_jax.audit import statistics
from unlearn_jax.report.page import MINUS

AUDITS = {
    "forget_error": {"label": "Forget error", "unit": "MSE on the hole, images in [-1, 1]"},
    "membership_auroc": {"label": "Membership AUROC", "unit": "loss attack"},
    "membership_auroc_calibrated": {
        "label": "Membership AUROC, calibrated",
        "unit": "log error minus that of a second retrained model",
    },
    "tpr_at_1_fpr": {"label": "TPR at 1 % FPR", "unit": "calibrated attack"},
    "score_spread": {"label": "Score spread", "unit": "sd of scores, forget over holdout"},
}
UTILITY = {
    "retain_error": {"label": "Retain error", "unit": "MSE on the hole, images in [-1, 1]"},
    "holdout_error": {"label": "Holdout error", "unit": "MSE on the hole, images in [-1, 1]"},
}
REFERENCES = ("original", "retrained")  # the kinds of model that gaps are measured between


@dataclasses.dataclass(frozen=True)
class Score:
    """A model on all audits that count; a number that cannot be given is NaN.

    `gaps` are means over seeds by audit, `forget_gap` is their mean and `worst_gap` the largest.
    `utility_loss` and `cost_fraction` are ratios. The halves are those of Student t intervals over
    seeds.
    """

    name: str
    seeds: list[int]
    gaps: dict[str, float]
    forget_gap: float
    forget_half: float
    worst_gap: float
    worst_audit: str
    utility_loss: float
    utility_half: float
    cost_fraction: float


def audits(
    errors: Mapping[str, np.ndarray], out: Mapping[str, np.ndarray] | None
) -> dict[str, float | None]:
    """Measure a model by its errors on each set; `out`: of another retrained model, if there is."""
    forget, holdout = (np.log(errors[f"error/{s}"]) for s in ("forget", "holdout"))
    found = dict.fromkeys(AUDITS)
    found["forget_error"] = float(errors["error/forget"].mean(dtype=np.float64))
    found["membership_auroc"] = statistics.auroc(-forget, -holdout)
    if out is not None:
        pairs = (("forget", forget), ("holdout", holdout))
        scores = [np.log(out[f"error/{s}"]) - own for s, own in pairs]
        found["membership_auroc_calibrated"] = statistics.auroc(*scores)
        found["tpr_at_1_fpr"] = statistics.tpr_at_fpr(*scores, 0.01)
        found["score_spread"] = float(scores[0].std(ddof=1) / scores[1].std(ddof=1))
    return found


def reference(results: dict[str, Any], kind: str) -> str:
    """Name the model whose kind is "original" or "retrained"."""
    return next(name for name, model in results["models"].items() if model["kind"] == kind)


def values(results: dict[str, Any], name: str, group: str, key: str) -> Float[np.ndarray, "s"]:
    """List an entry of "audits" or "utility" for each seed of a model, NaN where it is null."""
    seeds = results["models"][name]["seeds"]
    found = [seeds[seed][group][key]["value"] for seed in sorted(seeds, key=int)]
    found = np.array([math.nan if x is None else x for x in found], np.float64)
    return np.where(np.isfinite(found), found, math.nan)


def anchors(results: dict[str, Any]) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    """Find the (original, retrained) means of each audit that counts, and why others do not.

    An audit that is meant to (`in_gap`) counts if every model has a value in every seed, and if the
    means of original and retrained are more than two standard deviations over seeds (pooled over
    the two) apart. With one seed each there is no deviation, and any difference counts.
    """
    kept, left_out = {}, {}
    for key, audit in results["audits"].items():
        if not audit.get("in_gap", True):
            left_out[key] = "shown only: it overlaps with another audit"
            continue
        o, r = (values(results, reference(results, k), "audits", key) for k in REFERENCES)
        freedom = len(o) + len(r) - 2
        spread = math.sqrt((o.var() * len(o) + r.var() * len(r)) / freedom) if freedom else 0.0
        if missing := _missing(results, key):
            left_out[key] = f"no value for {missing}"
        elif abs(o.mean() - r.mean()) > 2 * spread:
            kept[key] = (float(o.mean()), float(r.mean()))
        else:
            left_out[key] = (
                f"original ({short(o.mean())}) and retrained ({short(r.mean())}) differ by no "
                f"more than two standard deviations over seeds (2 × {short(spread)})"
            )
    return kept, left_out


def _missing(results: dict[str, Any], key: str) -> str:
    """Say which values of an audit are null, and why, as far as results.json says so."""
    found: dict[str, list[str]] = {}
    for name, model in results["models"].items():
        lacking = np.isnan(values(results, name, "audits", key))
        seeds = list(np.array(sorted(model["seeds"], key=int))[lacking])
        if seeds:
            reason = model["seeds"][seeds[0]]["audits"][key].get("reason") or "no reason given"
            of = "" if lacking.all() else f" of seed {' and '.join(seeds)}"
            found[reason] = [*found.get(reason, []), model["label"] + of]
    return "; ".join(f"{', '.join(models)} ({reason})" for reason, models in found.items())


def _own_spread(x: Float[np.ndarray, "s"]) -> Float[np.ndarray, "s"]:
    """Measure each seed's distance to the mean of the others; NaN for one seed."""
    return abs(x - (x.sum() - x) / (len(x) - 1)) if len(x) > 1 else np.full(1, math.nan)


def _half(x: Float[np.ndarray, "s"], confidence: float) -> float:
    """Compute half of the Student t interval of a mean over seeds; NaN for one seed."""
    if len(x) < 2:
        return math.nan
    quantile = stats.t.ppf((1 + confidence) / 2, len(x) - 1)
    return float(quantile * x.std(ddof=1) / math.sqrt(len(x)))


def score(results: dict[str, Any], name: str) -> Score:
    """Score one model; the retrained model's gaps are the floors.

    The utility loss is the largest, over the errors in "utility", of mean(u / max(o, r) - 1).
    """
    model, confidence = results["models"][name], results["confidence"]
    apart = {}
    for key, (original, retrained) in anchors(results)[0].items():
        x = values(results, name, "audits", key)
        own = _own_spread(x) if model["kind"] == "retrained" else abs(x - retrained)
        apart[key] = own / abs(original - retrained)
    gaps = {key: float(x.mean()) for key, x in apart.items()}
    each = np.mean(list(apart.values()) or [[math.nan]], axis=0)
    losses = []
    for key in results["utility"]:
        standard = [values(results, reference(results, k), "utility", key) for k in REFERENCES]
        standard = np.max([x.mean() for x in standard])
        losses += [values(results, name, "utility", key) / standard - 1]
    losses = losses or [np.full(1, math.nan)]
    worst = losses[int(np.argmax([x.mean() for x in losses]))]  # the first NaN, if there is one
    costs = [(entry["cost"] or {}).get("flops_fraction") for entry in model["seeds"].values()]
    return Score(
        name=name,
        seeds=sorted(map(int, model["seeds"])),
        gaps=gaps,
        forget_gap=float(each.mean()),
        forget_half=_half(each, confidence),
        worst_gap=max(gaps.values(), default=math.nan),
        worst_audit=max(gaps, key=gaps.__getitem__, default=""),
        utility_loss=float(worst.mean()),
        utility_half=_half(worst, confidence),
        cost_fraction=float(np.mean([math.nan if x is None else x for x in costs])),
    )


def utility_floor(results: dict[str, Any]) -> float:
    """Compute by what ratio retrained models of different seeds differ in utility; NaN for one."""
    name = reference(results, "retrained")
    found = [values(results, name, "utility", key) for key in results["utility"]]
    return float(np.max([_own_spread(x).mean() / x.mean() for x in found] or [math.nan]))


def short(x: float) -> str:
    """Format a number with three significant digits; a dash for what is not a number."""
    text = f"{x:.3g}" if abs(x) < 999.5 else f"{x:,.0f}"
    return text.replace("-", MINUS) if math.isfinite(x) else "–"
