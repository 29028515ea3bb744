"""The numbers of a leaderboard: how much each method of a comparison leaves of the forget set.

What the panel says of each method is in results.json, see docs/audits.md; nothing is recomputed.
All functions are pure and take the content of results.json.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float

from unlearn_jax.report.page import MINUS

REFERENCES = ("original", "retrained")  # the kinds of model that gaps are measured between
HEADLINE = ("recall_excess", "hidden_excess", "worst_excess")
DAMAGE = ("unseen_loss", "retain_memory")
Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Score:
    """A model in the leaderboard; a number that cannot be given is NaN.

    Excesses are beyond what retrained models differ by, as shares of the way to the original:
    means of the two families, and the largest, of the row `worst`. `intervals` by name, of all
    but the cost; `gaps` by row of the panel.
    """

    name: str
    seeds: list[int]
    default: bool
    recall_excess: float
    hidden_excess: float
    worst_excess: float
    worst: str
    no_power: list[str]
    unseen_loss: float
    retain_memory: float
    cost_fraction: float
    intervals: dict[str, Interval]
    gaps: dict[str, float]


def reference(results: dict[str, Any], kind: str) -> str:
    """Name the model whose kind is "original" or "retrained"."""
    return next(name for name, model in results["models"].items() if model["kind"] == kind)


def methods(results: dict[str, Any]) -> list[str]:
    """List the names of the methods."""
    return [name for name, model in results["models"].items() if model["kind"] == "method"]


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


def left_out(results: dict[str, Any]) -> dict[str, str]:
    """Say why rows do not count: {row: reason}; the same for all methods."""
    panel = results["models"][methods(results)[0]]["panel"]["witnesses"]
    found = {}
    for key, row in panel.items():
        if row["family"] == "information":
            found[key] = "shown only: it leaks after exact deletion, too"
        elif not row["has_power"]:
            found[key] = row["reason"]
    return found


def score(results: dict[str, Any], name: str) -> Score:
    """Score one model; the references have no excess of their own."""
    model = results["models"][name]
    panel = model.get("panel") or {"headline": {}, "damage": {}, "witnesses": {}}
    found = {**panel["headline"], **panel["damage"]}
    numbers = {key: _number(found.get(key)) for key in (*HEADLINE, *DAMAGE)}
    costs = [(entry["cost"] or {}).get("flops_fraction") for entry in model["seeds"].values()]
    gaps = {key: row["gap"]["value"] for key, row in panel["witnesses"].items() if "gap" in row}
    return Score(
        name=name,
        seeds=sorted(map(int, model["seeds"])),
        default=bool(model.get("default")),
        worst=found.get("worst", ""),
        no_power=list(found.get("no_power", ())),
        cost_fraction=float(np.mean([math.nan if x is None else x for x in costs])),
        intervals={key: interval for key, (_, interval) in numbers.items()},
        gaps={key: math.nan if gap is None else gap for key, gap in gaps.items()},
        **{key: value for key, (value, _) in numbers.items()},
    )


def _number(found: dict[str, Any] | None) -> tuple[float, Interval]:
    """Return an estimate's value and interval, NaN where there is none."""
    ends = [(found or {}).get(key) for key in ("value", "ci_low", "ci_high")]
    value, low, high = (math.nan if x is None else float(x) for x in ends)
    return value, (low, high)


def ranked(results: dict[str, Any]) -> list[Score]:
    """Rank the methods' scores by worst excess, smallest first, those without one last."""
    scores = [score(results, name) for name in methods(results)]
    return sorted(scores, key=lambda s: (np.nan_to_num(s.worst_excess, nan=math.inf), s.name))


def rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Make the content of leaderboard.json: methods by worst excess, null for what is unknown.

    Each has method, default (the one that the config's own unlearned stage runs), seeds, the fields
    of `Score` but the gaps, and intervals as NAME_interval; numbers have six significant digits.
    """
    found = []
    for s in ranked(results):
        row: dict[str, Any] = {"method": s.name, "default": s.default, "seeds": s.seeds}
        for key in (*HEADLINE, *DAMAGE):
            row[key] = _plain(getattr(s, key))
            row[f"{key}_interval"] = [_plain(x) for x in s.intervals[key]]
        row |= {"worst": s.worst, "no_power": s.no_power, "cost_fraction": _plain(s.cost_fraction)}
        found.append(row)
    return found


def _plain(x: float) -> float | None:
    return float(f"{x:.6g}") if math.isfinite(x) else None


def short(x: float) -> str:
    """Format a number with three significant digits; a dash for what is not a number."""
    text = f"{x:.3g}" if abs(x) < 999.5 else f"{x:,.0f}"
    return text.replace("-", MINUS) if math.isfinite(x) else "–"
