"""The leaderboard of a comparison: which method leaves least, and at what price.

`python -m unlearn_jax.leaderboard --workdir=runs/comparison` reads results.json, examples.npz and
grids.npz, which `unlearn_jax.compare` wrote, and writes leaderboard.json, .md and .html beside
them. Nothing is recomputed and JAX is not imported. Names are escaped, no file is executed.

    python -m unlearn_jax.report.leaderboard --workdir=runs/all --merge=runs/seed1,runs/seed2

makes these files first, from the points.jsonl and measured/ of parts of one comparison, which
machines made with --only_seed; also of one workdir that has lost everything else.
"""

import html
import json
import math
import re
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from absl import flags

from unlearn_jax import cli, files
from unlearn_jax.registry import UserError
from unlearn_jax.report import leaderboard_plots as plots
from unlearn_jax.report.audit_page import STATUS
from unlearn_jax.report.leaderboard_scores import (
    REFERENCES,
    Score,
    left_out,
    methods,
    ranked,
    reference,
    rows,
    score,
    short,
    shown,
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
    "recall_excess": ("Recall excess", 0.05, 1.0),
    "hidden_excess": ("Hidden excess", 0.05, 1.0),
    "worst_excess": ("Worst excess", 0.10, 1.0),
    "unseen_loss": ("Loss on unseen images", 0.05, 0.5),
    "cost_fraction": ("Cost", 0.10, 1.0),
}
MEMORY = ("recall_excess", "hidden_excess", "worst_excess")
PERCENT = ("unseen_loss", "retain_memory", "cost_fraction")
READING = (
    "A gap says how far a method is from the retrained model by one witness, as a share of the way "
    "from there to the original; the excess is what is above the floor, by which retrained models "
    "of different seeds differ. Recall witnesses look at what the model does, hidden ones at what "
    "comes back when one does something with it; each family's mean, and the worst of both. Loss "
    "on unseen images is relative to the method's own original (negative: better); memory of "
    "retained training images is shown, and is no quality; cost is the share of retraining's FLOPs "
    "(matrix products and convolutions). Brackets are {level} bootstrap intervals over seeds and "
    "images; a goal is met if the upper end is. After a raw value ± is the standard deviation over "
    "seeds. docs/audits.md says the rest."
)

_VALUE = {"value": NUMBER | None}
_SCHEMA = dict.fromkeys(("name", "command", "created", "hardware"), str)
_SCHEMA |= {"versions": dict, "config": dict, "confidence": NUMBER, "poison": dict | None}
_SCHEMA |= {"request": {"kind": str, "text": str}, "split": {"hash": str, "n": {"*": int}}}
_SCHEMA |= {"audits": {"*": {"label": str, "unit": str, "family": str}}, "seeds": [int]}
_SCHEMA |= {"utility": {"*": {"label": str, "unit": str}}}
_ROW = {"label": str, "family": str, "word": str, "reason": str, "has_power": bool}
_MODEL = dict.fromkeys(("kind", "label", "source"), str) | {"phases": list}


def read(workdir: str | Path) -> tuple[dict, dict, dict]:
    """Read results, per-example arrays and image grids, and check all of them.

    Raises:
        FileNotFoundError: A file is missing; says which one, and which command makes it.
        UserError: A file is damaged; lists everything that is wrong with it.
    """
    root = Path(workdir)
    results = load(root, "results.json", files.parse, _SCHEMA, "compare")
    entry = {"audits": dict.fromkeys(results["audits"], _VALUE), "cost": dict | None}
    entry |= {"utility": dict.fromkeys(results["utility"], _VALUE)}
    schema = _SCHEMA | {"models": {"*": _MODEL | {"seeds": {"*": entry}}}}
    schema |= {"poison": {"text": str} if results["poison"] else None | dict}
    results = load(root, "results.json", files.parse, schema, "compare")
    _refuse(root / "results.json", _inconsistent(results))
    panel = {"headline": dict, "damage": dict, "gate": {"value": NUMBER}, "witnesses": {"*": _ROW}}
    panel |= {"conclusion": {"word": str, "text": str}}
    schema = {"models": {name: {"panel": panel} for name in methods(results)}}
    load(root, "results.json", files.parse, schema, "compare")
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
    """Write the headline: who leaves least, whether the goals are met, what to distrust."""
    first, *others = ranked(results)
    who, label = "Who leaves the least?", lambda s: results["models"][s.name]["label"]
    if not math.isfinite(first.worst_excess):
        text = "No witness has power: nothing can be ranked."
        return [Finding("unclear", text, who, "nobody"), memorised(results)]
    counted = len(results["audits"]) - len(left_out(results))
    text = f"Its worst excess is {_with(first, 'worst_excess')}, the smallest of "
    text += f"{len(others) + 1} on {counted} of {len(results['audits'])} rows of the panel. "
    rivals = [label(s) for s in others if not _below(first, s)]
    status = "unclear" if rivals else "good"
    text += (
        f"The intervals do not tell it from {_listed(rivals)}. "
        if rivals
        else "Its interval is below those of all others. "
    )
    best = [label(s) for s in [first, *others] if all(_met(s, key) for key in GOALS)]
    text += f"All goals are met by {_listed(best)}."
    found = [Finding(status, text, who, label(first)), _concluded(results, first), advised(results)]
    for key, (name, limit, _) in GOALS.items():
        unknown = math.isnan(getattr(first, key))
        status, word = ("good", "met") if _met(first, key) else ("bad", "missed")
        limit = percent(limit) if key in PERCENT else f"{limit:.2f}"
        status, word = ("unclear", "unknown") if unknown else (status, word)
        text = _with(first, key) + (
            f" by {results['audits'][first.worst]['label']}" if key == "worst_excess" else ""
        )
        found += [Finding(status, f"{text}.", f"{name} at most {limit}?", word)]
    return [*found, memorised(results)]


def _concluded(results: dict[str, Any], first: Score) -> Finding:
    of = results["models"][first.name]["panel"]["conclusion"]
    status = STATUS.get(of["word"], "unclear")
    return Finding(status, of["text"], "Is it forgotten?", of["word"])


def advised(results: dict[str, Any]) -> Finding:
    """Name the cheapest method that is not refuted; say whether starting over is as good.

    Those come first that leave no more of the memory than the goals allow.
    """
    question, models = "Which one to take?", results["models"]
    held = [s for s in ranked(results) if s.cost_fraction < 1 and math.isfinite(s.unseen_loss)
            and models[s.name]["panel"]["conclusion"]["word"] == "not refuted"]  # fmt: skip
    if not held:
        text = "No method that costs less than retraining passes the panel here: retrain."
        return Finding("bad", text, question, "retraining")
    able = [s for s in held if all(_met(s, key) for key in MEMORY)]
    held = able or held
    best = min(held, key=lambda s: (round(s.cost_fraction, 2), s.unseen_loss))
    goals = " and leaves no more than the goals allow" if able else ""
    text = f"The cheapest that is not refuted{goals}, at {percent(best.cost_fraction)} of "
    text += f"retraining, and of those the best on unseen images ({_with(best, 'unseen_loss')} "
    text += "against the original's loss). "
    fresh = [s for s in held if _from_scratch(models[s.name])
             and round(s.cost_fraction, 2) <= round(best.cost_fraction, 2)]  # fmt: skip
    word = models[best.name]["label"]
    if best in fresh:
        text += "It is training from scratch: nothing that starts from the original is better."
        return Finding("unclear", text, question, word)
    for s in fresh:
        if s.intervals["unseen_loss"][0] <= best.intervals["unseen_loss"][1]:
            text += f"{models[s.name]['label']} starts over for no more, and is as good: take that."
            return Finding("unclear", text, question, models[s.name]["label"])
    if fresh:
        text += f"Starting over for no more is worse ({_with(fresh[0], 'unseen_loss')})."
    return Finding("good", text.strip(), question, word)


def _from_scratch(model: dict[str, Any]) -> bool:
    """Tell whether a method keeps nothing of the original: the competitor of all others."""
    return model["phases"][0].get("shrink", {}).get("alpha") == 1


def memorised(results: dict[str, Any]) -> Finding:
    """Say whether the original knew the forget images; if not, the ranks are luck."""
    question = "Was there something to forget?"
    gate = results["models"][methods(results)[0]]["panel"]["gate"]
    text = "On the same forget images, the original is told from the retrained model with an AUROC "
    text += f"of {gate['value']:.2f}. "
    if gate["passed"]:
        return Finding("note", text + "It had memorised them.", question, "yes")
    return Finding("unclear", text + "Hardly any memory: the ranks say little.", question, "hardly")


def _below(first: Score, other: Score) -> bool:
    return first.intervals["worst_excess"][1] < other.intervals["worst_excess"][0]


def _with(s: Score, key: str) -> str:
    """Write a number of a score with its interval."""
    text = _signed if key in PERCENT else _number
    if key == "cost_fraction":
        return "not counted" if math.isnan(s.cost_fraction) else percent(s.cost_fraction)
    ends = s.intervals[key]
    interval = f" [{text(ends[0])}, {text(ends[1])}]" if all(map(math.isfinite, ends)) else ""
    return text(getattr(s, key)) + interval


def _met(s: Score, key: str) -> bool:
    value = getattr(s, key) if key not in s.intervals else s.intervals[key][1]
    return value <= GOALS[key][1]


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1])] * (len(words) > 1) + words[-1:]) or "no method"


def _number(x: float) -> str:
    text = f"{x:.3f}" if abs(x) < 10 else f"{x:.0f}"
    return text.replace("-", MINUS) if math.isfinite(x) else "–"


def _percent(x: float) -> str:
    return percent(x) if math.isfinite(x) else "–"


def _signed(x: float) -> str:
    text = f"{round(100 * x, 1) + 0.0:+.1f} %"  # + 0.0 makes -0.0 positive
    return text.replace("-", MINUS) if math.isfinite(x) else "–"


def columns(results: dict[str, Any]) -> list[str]:
    """Name the columns of `table`."""
    heads = [g[0].lower() for g in GOALS.values()] + ["memory of retained"]
    return heads + [a["label"] for a in results["audits"].values()]


def table(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Make the table: methods by rank, then retrained, then the original.

    A row has rank (None for the last two), label and cells of (text, note, badness), where
    badness is from 0 = goal met to 1, or NaN. Audits show raw values, with the gap as the note.
    """
    scores = ranked(results)
    scores += [score(results, reference(results, kind)) for kind in reversed(REFERENCES)]
    return [_row(results, s, rank) for rank, s in enumerate(scores, 1)]


def _row(results: dict[str, Any], s: Score, rank: int) -> dict[str, Any]:
    cells = []
    for key in (*GOALS, "retain_memory"):
        text, _, interval = _with(s, key).partition(" [")
        note = f"[{interval}" if interval else ""
        if key == "worst_excess" and s.worst:
            note += f" {results['audits'][s.worst]['label']}"
        bad = _badness(getattr(s, key), key) if key in GOALS else math.nan
        cells.append((text, note.strip(), bad))
    uncounted = left_out(results)
    for key in results["audits"]:
        raw, apart = _spread(values(results, s.name, "audits", key)), s.gaps.get(key, math.nan)
        note = "left out" if key in uncounted else f"gap {_number(apart)}" if s.gaps else ""
        cells += [(raw, note, math.nan if key in uncounted else _badness(apart, "worst_excess"))]
    method = results["models"][s.name]["kind"] == "method"
    return {
        "rank": rank if method else None,
        "label": results["models"][s.name]["label"],
        "cells": cells if method else [(text, note, math.nan) for text, note, _ in cells],
    }


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
    uncounted = left_out(results)
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
        why = f". **Left out:** {_md(uncounted[key])}" if key in uncounted else ""
        about = _md(f"{audit['label']} ({audit['family']}; {audit['unit']})")
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
    with files.of_others(Path(workdir) / "results.json", "what compare writes"):
        written = _written(results, examples, grids)
    for suffix, content in written.items():
        path = Path(workdir) / f"leaderboard.{suffix}"
        path.write_text(content, encoding="utf-8", errors="replace")
    return path


def _written(results: dict, examples: dict, grids: dict) -> dict[str, str]:
    """Return what is to be written, by suffix; the page, "html", last."""
    names = {"r": results, "findings": findings(results), "reading": _reading(results)}
    names |= {"columns": columns(results), "rows": table(results), "left_out": left_out(results)}
    names |= {"models": plots.in_order(results), "images": plots.images(results, grids)}
    with matplotlib.style.context(["default", STYLE]):
        goal = GOALS["worst_excess"][1], GOALS["unseen_loss"][1]
        names |= {"tradeoff": plots.tradeoff(results, goal), "audits": plots.audit_panels(results)}
        names |= {"clouds": plots.example_panels(results, examples)}
    page = render("leaderboard.html.j2", names | {"shade": _shade})
    data = json.dumps(rows(results), indent=2) + "\n"
    return {"json": data, "md": markdown(results), "html": page}


def main(workdir: Path) -> None:
    """Run the command."""
    if folders := flags.FLAGS.merge:
        from unlearn_jax.evaluate import comparison  # brings jax

        comparison.write(workdir, *comparison.merge([Path(folder) for folder in folders]))
    path = write(workdir)
    print(markdown_table(read(workdir)[0]), f"Leaderboard: {path}", sep="\n\n")


if __name__ == "__main__":
    flags.DEFINE_list("merge", [], "Workdirs of parts of the comparison, which are joined first.")
    cli.start(main, needs=("workdir",))
