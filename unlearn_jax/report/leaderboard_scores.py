"""The numbers of a leaderboard: how far each method of a comparison is from retraining.

A gap is |u - r| / |o - r|, u being a method's value of an audit in one seed, r and o the means over
seeds of the retrained and of the original model: 0 is retrained, 1 is as if nothing had been done.
All functions are pure and take the content of results.json.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from unlearn_jax.report.page import MINUS

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


def reference(results: dict[str, Any], kind: str) -> str:
    """Name the model whose kind is "original" or "retrained"."""
    return next(name for name, model in results["models"].items() if model["kind"] == kind)


def shown(results: dict[str, Any], name: str) -> list[int]:
    """Choose the seeds whose examples are drawn: a model's first, and retrained's first two."""
    model = results["models"][name]
    seeds = [seed for seed in results["seeds"] if str(seed) in model["seeds"]]
    return seeds[: 2 if model["kind"] == "retrained" else 1]


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


def ranked(results: dict[str, Any]) -> list[Score]:
    """Rank the methods' scores by forget gap, smallest first, those without one last."""
    names = [name for name, model in results["models"].items() if model["kind"] == "method"]
    scores = [score(results, name) for name in names]
    return sorted(scores, key=lambda s: (np.nan_to_num(s.forget_gap, nan=math.inf), s.name))


def rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Make the content of leaderboard.json: methods by forget gap, null for what is unknown.

    Each has method, seeds, forget_gap, worst_gap, gaps by audit, utility_loss and cost_fraction;
    numbers have six significant digits.
    """
    return [
        {
            "method": s.name,
            "seeds": s.seeds,
            "forget_gap": _plain(s.forget_gap),
            "worst_gap": _plain(s.worst_gap),
            "gaps": {key: _plain(gap) for key, gap in s.gaps.items()},
            "utility_loss": _plain(s.utility_loss),
            "cost_fraction": _plain(s.cost_fraction),
        }
        for s in ranked(results)
    ]


def _plain(x: float) -> float | None:
    return float(f"{x:.6g}") if math.isfinite(x) else None


def short(x: float) -> str:
    """Format a number with three significant digits; a dash for what is not a number."""
    text = f"{x:.3g}" if abs(x) < 999.5 else f"{x:,.0f}"
    return text.replace("-", MINUS) if math.isfinite(x) else "–"
