"""The leaderboard of a comparison: which method comes closest to retraining, and at what price.

`python -m unlearn_jax.leaderboard --workdir=runs/comparison` reads results.json, examples.npz and
grids.npz, which `unlearn_jax.compare` wrote, and writes leaderboard.json, .md and .html beside
them. Nothing is recomputed and JAX is not imported. Names are escaped, no file is executed.
"""

import html
import json
import math
import re
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np

from unlearn_jax import cli
from unlearn_jax.registry import UserError
from unlearn_jax.report import leaderboard_plots as plots
from unlearn_jax.report.leaderboard_scores import (
    REFERENCES,
    Score,
    anchors,
    ranked,
    reference,
    rows,
    score,
    short,
    shown,
    utility_floor,
    values,
)
from unlearn_jax.report.page import (
    MINUS,
    NUMBER,
    STYLE,
    Finding,
    load,
    percent,
    render,
    unzip,
    value,
)

# What a method should reach at most, and how much counts as entirely missed, for the colours.
GOALS = {
    "forget_gap": ("Forget gap", 0.05, 1.0),
    "worst_gap": ("Worst gap", 0.10, 1.0),
    "utility_loss": ("Utility loss", 0.05, 0.5),
    "cost_fraction": ("Cost", 0.10, 1.0),
}
MARGIN = 0.05  # an original that is better by this on forget than on holdout has memorised
READING = (
    "A gap says how far a method is from the retrained model on one audit, as a share of the way "
    "from there to the original: 0 is retrained, 1 is the original, and too much forgetting counts "
    "like too little. The forget gap is the mean over the audits, the worst gap the largest; lower "
    "is better, down to the floor, by which retrained models of different seeds differ. Utility "
    "loss is the largest rise of an error on images that may be kept, relative to the worse of "
    "original and retrained (negative: better than both); cost is the share of retraining's FLOPs "
    "(matrix products and convolutions; elementwise operations are left out). "
    "After a raw value ± is the standard deviation over seeds; after a gap or a loss it is half of "
    "the {level} Student t interval over seeds, the two references taken as exact."
)

_VALUE = {"value": NUMBER | None}
_SCHEMA = dict.fromkeys(("name", "command", "created", "hardware"), str)
_SCHEMA |= {"versions": dict, "config": dict, "confidence": NUMBER, "poison": dict | None}
_SCHEMA |= {"request": {"kind": str, "text": str}, "split": {"hash": str, "n": {"*": int}}}
_SCHEMA |= {"audits": {"*": {"label": str, "unit": str, "null": str}}, "seeds": [int]}
_SCHEMA |= {"utility": {"*": {"label": str, "unit": str}}}
_MODEL = dict.fromkeys(("kind", "label", "source"), str) | {"phases": list}


def read(workdir: str | Path) -> tuple[dict, dict, dict]:
    """Read results, per-example arrays and image grids, and check all of them.

    Raises:
        FileNotFoundError: A file is missing; says which one, and which command makes it.
        UserError: A file is damaged; lists everything that is wrong with it.
    """
    root = Path(workdir)
    results = load(root, "results.json", json.loads, _SCHEMA, "compare")
    entry = {"audits": dict.fromkeys(results["audits"], _VALUE), "cost": dict | None}
    entry |= {"utility": dict.fromkeys(results["utility"], _VALUE)}
    schema = _SCHEMA | {"models": {"*": _MODEL | {"seeds": {"*": entry}}}}
    schema |= {"poison": {"text": str} if results["poison"] else None | dict}
    results = load(root, "results.json", json.loads, schema, "compare")
    _refuse(root / "results.json", _inconsistent(results))
    wanted = {"index/forget": "i1"}
    wanted |= {
        f"error/{name}/{s}": "f1" for name in results["models"] for s in shown(results, name)
    }
    examples = load(root, "examples.npz", unzip, wanted, "compare")
    _refuse(root / "examples.npz", _uneven(examples, wanted))
    grids = load(root, "grids.npz", unzip, {}, "compare")
    for name in ("forget", "triggered")[: 1 + ("triggered/truth" in grids)]:
        wanted = {f"{name}/{c}": "u4" for c in ("truth", "input", *results["models"])}
        load(root, "grids.npz", unzip, wanted, "compare")
        _refuse(root / "grids.npz", _uneven(grids, wanted))
    return results, examples, grids


def _refuse(path: Path, wrong: list[str]) -> None:
    if wrong:
        remedy = f"make it with: python -m unlearn_jax.compare --workdir={path.parent} (and your"
        raise UserError("\n  ".join([f"{path} is damaged; {remedy} --config)", *wrong]))


def _uneven(arrays: dict[str, np.ndarray], keys: dict[str, str]) -> list[str]:
    n = len(arrays[next(iter(keys))])
    counts = {key: len(arrays[key]) for key in keys}
    return [f"/{key}: expected {n} rows, got {m}" for key, m in counts.items() if m != n]


def _inconsistent(results: dict[str, Any]) -> list[str]:
    kinds = [model["kind"] for model in results["models"].values()]
    wrong, known = [], {str(seed) for seed in results["seeds"]}
    if sorted(set(kinds)) != ["method", *REFERENCES] or kinds.count("method") != len(kinds) - 2:
        wrong += [f"/models: expected one original, one retrained and methods, got kinds {kinds}"]
    for name, model in results["models"].items():
        if not model["seeds"] or model["seeds"].keys() - known:
            got = sorted(model["seeds"])
            wrong += [f"/models/{name}/seeds: expected some of {sorted(known)}, got {got}"]
    return wrong


def findings(results: dict[str, Any]) -> list[Finding]:
    """Write the headline: who is first, whether that method meets the goals, what to distrust."""
    (first, *others), (kept, _) = ranked(results), anchors(results)
    floor = score(results, reference(results, "retrained"))
    who, label = "Who comes closest to retraining?", lambda s: results["models"][s.name]["label"]
    if not kept:
        text = "No audit tells the original from the retrained model: nothing can be ranked."
        return [Finding("unclear", text, who, "nobody"), memorised(results)]
    text = f"Its forget gap is {_pair(first.forget_gap, first.forget_half)}, the smallest of "
    text += f"{len(others) + 1} on {len(kept)} of {len(results['audits'])} audits. "
    rivals = [label(s) for s in others if not _below(first, s)]
    if math.isnan(first.forget_half):
        status, text = "unclear", text + "With one seed the order may be chance. "
    elif rivals:
        status = "unclear"
        text += f"The intervals do not tell it from {_listed(rivals)}. "
    else:
        status, text = "good", text + "Its interval is below those of all others. "
    best = [label(s) for s in [first, *others] if all(_met(s, key) for key in GOALS)]
    text += f"All four goals are met by {_listed(best)}."
    found = [Finding(status, text, who, label(first))]
    audit = results["audits"][first.worst_audit]["label"]
    texts = {
        "forget_gap": f"{_number(first.forget_gap)}, with a floor of {_number(floor.forget_gap)}.",
        "worst_gap": f"{_number(first.worst_gap)} on {audit}, where the floor is "
        f"{_number(floor.gaps[first.worst_audit])}.",
        "utility_loss": f"{_signed(first.utility_loss)}; retrained models of different seeds "
        f"differ by {_percent(utility_floor(results))}.",
        "cost_fraction": "FLOPs were not counted."
        if math.isnan(first.cost_fraction)
        else f"{percent(first.cost_fraction)} of retraining's FLOPs.",
    }
    for key, (name, limit, _) in GOALS.items():
        unknown = math.isnan(getattr(first, key))
        status, word = ("good", "met") if _met(first, key) else ("bad", "missed")
        limit = percent(limit) if key in ("utility_loss", "cost_fraction") else f"{limit:.2f}"
        status, word = ("unclear", "unknown") if unknown else (status, word)
        found += [Finding(status, texts[key], f"{name} at most {limit}?", word)]
    return [*found, memorised(results)]


def memorised(results: dict[str, Any]) -> Finding:
    """Say whether the original knew the forget images; if not, the ranks are luck."""
    question, text, ratios = "Was there something to forget?", [], []
    unknown = Finding("unclear", "Errors on forget and holdout were not given.", question, "–")
    if "forget_error" not in results["audits"] or "holdout_error" not in results["utility"]:
        return unknown
    for kind in REFERENCES:
        name = reference(results, kind)
        forget = values(results, name, "audits", "forget_error").mean()
        holdout = values(results, name, "utility", "holdout_error").mean()
        ratios += [forget / holdout - 1]
        text += [f"{kind} {forget:.4g} and {holdout:.4g} ({_signed(ratios[-1])})"]
    if not np.isfinite(ratios).all():
        return unknown
    text = f"Mean error on forget and on holdout: {', '.join(text)}. "
    if ratios[0] < -MARGIN:
        text += "The original restores forget images better than images it never saw."
        return Finding("good", text, question, "memorised")
    text += "No memorisation is visible in this error, so the ranks say little."
    return Finding("unclear", text, question, "hardly")


def _below(first: Score, other: Score) -> bool:
    return first.forget_gap + first.forget_half < other.forget_gap - other.forget_half


def _met(s: Score, key: str) -> bool:
    return getattr(s, key) <= GOALS[key][1]


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1])] * (len(words) > 1) + words[-1:]) or "no method"


def _number(x: float) -> str:
    text = f"{x:.3f}" if abs(x) < 10 else f"{x:.0f}"
    return text.replace("-", MINUS) if math.isfinite(x) else "–"


def _pair(x: float, half: float) -> str:
    return _number(x) + (f" ± {_number(half)}" if math.isfinite(half) else "")


def _percent(x: float) -> str:
    return percent(x) if math.isfinite(x) else "–"


def _signed(x: float) -> str:
    text = f"{round(100 * x, 1) + 0.0:+.1f} %"  # + 0.0 makes -0.0 positive
    return text.replace("-", MINUS) if math.isfinite(x) else "–"


def columns(results: dict[str, Any]) -> list[str]:
    """Name the columns of `table`."""
    return [g[0].lower() for g in GOALS.values()] + [a["label"] for a in results["audits"].values()]


def table(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Make the table: methods by rank, then retrained at its floor, then the original.

    A row has rank (None for the last two), label and cells of (text, note, badness), where
    badness is from 0 = goal met to 1, or NaN. Audits show raw values, with the gap as the note.
    """
    scores = ranked(results)
    scores += [score(results, reference(results, kind)) for kind in reversed(REFERENCES)]
    return [_row(results, s, rank) for rank, s in enumerate(scores, 1)]


def _row(results: dict[str, Any], s: Score, rank: int) -> dict[str, Any]:
    kind = results["models"][s.name]["kind"]
    audit = results["audits"][s.worst_audit]["label"] if s.worst_audit else ""
    half = f"± {_signed(s.utility_half)[1:]}" if math.isfinite(s.utility_half) else ""
    floor = f"floor {_signed(utility_floor(results)).removeprefix('+')}"
    texts = {
        "forget_gap": (_pair(s.forget_gap, s.forget_half), "floor" * (kind == "retrained")),
        "worst_gap": (_number(s.worst_gap), audit),
        "utility_loss": (_signed(s.utility_loss), floor if kind == "retrained" else half),
        "cost_fraction": (_percent(s.cost_fraction), ""),
    }
    cells = [(*texts[key], _badness(getattr(s, key), key)) for key in GOALS]
    for key in results["audits"]:
        raw, apart = _spread(values(results, s.name, "audits", key)), s.gaps.get(key, math.nan)
        note = f"{'floor' if kind == 'retrained' else 'gap'} {_number(apart)}"
        cells += [(raw, note if key in s.gaps else "left out", _badness(apart, "worst_gap"))]
    if kind != "method":  # the references are not judged
        rank, cells = None, [(text, note, math.nan) for text, note, _ in cells]
    return {"rank": rank, "label": results["models"][s.name]["label"], "cells": cells}


def _badness(x: float, key: str) -> float:
    _, goal, worst = GOALS[key]
    return math.nan if math.isnan(x) else min(max((x - goal) / (worst - goal), 0.0), 1.0)


def _spread(x: np.ndarray) -> str:
    mean, sd = float(x.mean()), float(x.std(ddof=1)) if len(x) > 1 else 0.0
    if not sd > 0:
        return short(mean)
    stat = {"mean": mean, "ci_low": mean - sd, "ci_high": mean + sd}
    return f"{value(stat)} ± {value(stat, sd)}"


def markdown(results: dict[str, Any]) -> str:
    """Write the leaderboard as Markdown: what was asked and run, the table and how to read it."""
    left_out = anchors(results)[1]
    lines = [
        f"# {_md(results['name'])}: leaderboard",
        "",
        f"Request: {_md(results['request']['text'])}",
    ]
    if results["poison"]:
        lines += ["", f"Poison: {_md(results['poison']['text'])}"]
    lines += ["", f"    {_plain(results['command'])}", ""]
    n = ", ".join(f"{_md(name)} {count:,}" for name, count in results["split"]["n"].items())
    lines += [f"Made {_md(results['created'])} on {_md(results['hardware'])}. Examples: {n}."]
    lines += [f"Seeds: {', '.join(map(str, results['seeds']))}."]
    lines += ["", _md(memorised(results).text), "", markdown_table(results), ""]
    lines += ["Audits, in the order of the columns:", ""]
    for key, audit in results["audits"].items():
        why = f". **Left out:** {_md(left_out[key])}" if key in left_out else ""
        about = _md(f"{audit['label']} ({audit['unit']}); null: {audit['null']}")
        lines += [f"- {about}{why}"]
    return "\n".join([*lines, "", _reading(results), ""])


def markdown_table(results: dict[str, Any]) -> str:
    """Write `table` as Markdown."""
    heads = ["rank", "method", *columns(results)]
    lines = [[_md(head) for head in heads], ["--:", ":--", *["--:"] * (len(heads) - 2)]]
    for row in table(results):
        cells = [f"{text} ({note})" if note else text for text, note, _ in row["cells"]]
        lines += [[str(row["rank"] or "–"), *map(_md, [row["label"], *cells])]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _md(text: str) -> str:
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(_plain(text), quote=False))


def _reading(results: dict[str, Any]) -> str:
    return READING.format(level=percent(results["confidence"]))


def _shade(badness: float) -> str:
    if math.isnan(badness):
        return ""
    colour = f"rgb(213 94 0 / {8 + 42 * badness:.0f}%)" if badness else "rgb(0 158 115 / 22%)"
    return f"background:{colour}"


def write(workdir: str | Path) -> Path:
    """Write leaderboard.html, with leaderboard.json and .md beside it; return its path.

    The page refers to nothing outside itself, the same inputs give the same bytes, and nothing is
    written before all files are read and checked; raises what `read` does.
    """
    results, examples, grids = read(workdir)
    names = {"r": results, "findings": findings(results), "reading": _reading(results)}
    names |= {"columns": columns(results), "rows": table(results), "left_out": anchors(results)[1]}
    names |= {"models": plots.in_order(results), "images": plots.images(results, grids)}
    with matplotlib.style.context(["default", STYLE]):
        goal = GOALS["forget_gap"][1], GOALS["utility_loss"][1]
        names |= {"tradeoff": plots.tradeoff(results, goal), "audits": plots.audit_panels(results)}
        names |= {"clouds": plots.example_panels(results, examples)}
    page = render("leaderboard.html.j2", names | {"shade": _shade})
    files = {
        "json": json.dumps(rows(results), indent=2) + "\n",
        "md": markdown(results),
        "html": page,
    }
    for suffix, content in files.items():
        path = Path(workdir) / f"leaderboard.{suffix}"
        path.write_text(content, encoding="utf-8", errors="replace")
    return path


def main(workdir: Path) -> None:
    """Run the command."""
    path = write(workdir)
    print(markdown_table(read(workdir)[0]), f"Leaderboard: {path}", sep="\n\n")


if __name__ == "__main__":
    cli.start(main, needs=("workdir",))
