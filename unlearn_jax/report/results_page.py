"""One self-contained HTML page made from the files of one finished unlearning request.

`python -m unlearn_jax.report --workdir=runs/quickstart` reads results.json, examples.npz, grids.npz
and {model}/metrics.jsonl, and writes report.html beside them. Nothing is recomputed and JAX is not
imported, so a page can be rendered again years later. Names are escaped, no file is executed. What
`evaluate --checkpoints=…` left in protocol/ gets a page of its own there.
"""

import math
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from markupsafe import Markup
from matplotlib.ticker import LogLocator, NullFormatter

from unlearn_jax import files
from unlearn_jax.report import audit_page
from unlearn_jax.report import guarantee_section as report_guarantee
from unlearn_jax.report import receipt as receipts
from unlearn_jax.report.page import (
    COLOURS,
    NUMBER,
    STYLE,
    Finding,
    interval,
    load,
    panel,
    percent,
    render,
    to_svg,
    unzip,
    value,
)

MODELS, SETS = ("original", "unlearned", "retrained"), ("forget", "holdout", "retain")
PRIMARY = "mse_hole"  # the metric of the headline and the histograms
MARGIN = 0.05  # by which the loss on unseen images may grow, if quality is kept
COST = ("steps_ratio", "wall_ratio", "examples_ratio")

# What results.json must hold besides its statistics: "*" stands for every key, [x] for a list of x.
_STAT = dict.fromkeys(("mean", "ci_low", "ci_high"), NUMBER)
_PHASE = {"name": str, "objective": str, "first_step": int, "last_step": int, "stopped_by": str}
_METRIC = {"label": str, "unit": str}
_STAGE = {"phases": [_PHASE], "steps": int, "wall_s": NUMBER, "examples": int}
_SCHEMA = dict.fromkeys(("name", "created", "hardware"), str)
_SCHEMA |= {"seed": int, "config": dict, "versions": dict, "confidence": NUMBER}
_SCHEMA |= {"request": {"text": str, "kind": str}, "task": {"name": str}, "stages": {"*": _STAGE}}
_BOUNDS = {"lower": NUMBER, "measured": NUMBER, "upper": NUMBER}
_WANTED = {"lambda": NUMBER, "phase": str, "moved": {"*": int}}
_MOVED = {"example": _BOUNDS, "rms": _BOUNDS, "held": int, "n": int}
_SCHEMA |= {
    "split": {"hash": str, "n": {"*": int}},
    "metrics": dict.fromkeys((PRIMARY, "*"), _METRIC),
}


def read(workdir: str | Path) -> tuple[dict, dict, dict, dict]:
    """Read results, log rows per model, per-example arrays and image grids, and check all of them.

    Raises:
        FileNotFoundError: A file is missing; says which one, and which command makes it.
        UserError: A file is damaged; lists everything that is wrong with it.
    """
    root = Path(workdir)
    results = load(
        root, "results.json", files.parse, {"evaluation": {"original": {"forget": dict}}}
    )
    sets = sets_of(results)
    shown = [m for m in MODELS if m in results["evaluation"]]
    counted = _STAT | {"n": int}
    by_set = {s: {PRIMARY: counted, "*": counted} for s in sets}
    stats = by_set["forget"]
    schema = _SCHEMA | {"contrasts": dict.fromkeys(shown if "holdout" in sets else (), stats)}
    schema |= {"evaluation": dict.fromkeys(shown, by_set)}
    if "displacement" in results:  # version 0.1.0 had none
        given = results["displacement"]
        wanted = _WANTED if isinstance(given, dict) and given.get("wanted") else type(None)
        moved = {"*": dict.fromkeys(sets, _MOVED)}
        schema["displacement"] = {"models": moved, "wanted": wanted}
    schema |= {"certificate": report_guarantee.schema(results.get("certificate"))}
    if results.get("exact"):
        schema |= {"exact": {"lines": [str], "reason": str}}
    schema |= {"audit": audit_page.schema(results["audit"])} if "audit" in results else {}
    if len(shown) == len(MODELS):
        schema |= {"gaps": dict.fromkeys(sets, stats), "cost": dict.fromkeys(COST, NUMBER)}
    results = load(root, "results.json", files.parse, schema)
    errors = {f"{m}/{s}/{PRIMARY}": "f1" for m in shown for s in sets}
    images = {f"{s}/{c}": "u4" for s in sets for c in ("input", "truth", *shown)}
    images |= {f"{s}/index": "i1" for s in sets}
    examples = load(root, "examples.npz", unzip, errors)
    shows = results["config"].get("report", {}).get("pictures", True)
    grids = load(root, "grids.npz", unzip, images) if shows else {}
    if "worst/index" in grids:
        images |= {f"worst/{c}": images[f"forget/{c}"] for c in ("index", "input", "truth", *shown)}
        load(root, "grids.npz", unzip, images)
    names = {m: f"{m}/metrics.jsonl" for m in MODELS if m in results["stages"]}
    logs = {m: load(root, name, _rows, [{"step": int}]) for m, name in names.items()}
    return results, logs, examples, grids


def sets_of(results: dict[str, Any]) -> list[str]:
    """List the sets that were measured, in the page's order; forget is always one of them."""
    return [s for s in SETS if s in results["evaluation"]["original"]]


def _rows(content: bytes) -> list:
    # A killed run may leave a last line without its end; every whole line must be sound.
    return [files.parse(line) for line in content.split(b"\n")[:-1]]


def audit_of(results: dict[str, Any]) -> dict[str, Any]:
    """Return the audit in results.json; without one of today's format, why nothing was tested."""
    audit = results.get("audit") or {}
    if audit.get("format") == audit_page.FORMAT:
        return audit
    if "unlearned" not in results["evaluation"]:
        return audit_page.without("there is no unlearned model")
    again = "run unlearn-jax audit, then unlearn-jax evaluate"
    if audit:
        return audit_page.without(f"the audit is of an earlier version; {again}")
    lacking = [of for of in results.get("limits", ()) if of["audit"] == "audits"]
    why = lacking[0]["text"] if lacking and not lacking[0]["enough"] else again
    return audit_page.without(f"there is no audit; {why}")


def findings(results: dict[str, Any]) -> list[Finding]:
    """Say in words what else the numbers of results.json say, good news and bad news alike.

    Nothing is good news unless attacks that would have seen something have failed; a certificate
    has a proof of its own.
    """
    audit, shown = audit_of(results), results["evaluation"]
    found = [_memorised(audit), _yardstick(results)]
    if "unlearned" in shown:
        found += [_kept(audit), _cost(results)]
    if audit["conclusion"]["word"] != "not refuted":
        found = [replace(f, status="note") if f.status == "good" else f for f in found]
    means = [by_set[PRIMARY]["mean"] for m in MODELS for by_set in shown.get(m, {}).values()]
    if not all(math.isfinite(x) and x > 0 for x in means):
        text = "A mean error is not a positive, finite number: nothing can be concluded from it."
        found = [Finding("bad", text, "Are the numbers usable?", "no")]
    guarantee = report_guarantee.finding(results["certificate"], results.get("exact"))
    return [*found, guarantee, *_earlier(audit)]


def _earlier(audit: dict[str, Any]) -> list[Finding]:
    status = {"still forgotten": "note", "returned": "bad"}
    found = []
    for of in audit.get("earlier", ()):
        text = of.get("reason", "")
        if "difference" in of:
            text = "The loss attack's AUROC of these images, unlearned minus retrained, is "
            text += f"{_of(of['difference'] | {'n': of['n']})}. {of['text']}"
        question = "Are the images of an earlier request still forgotten?"
        found.append(Finding(status.get(of["word"], "unclear"), text, question, of["word"]))
    return found


def _memorised(audit: dict[str, Any]) -> Finding:
    question, gate = "Was there something to forget?", audit["gate"]
    if gate["value"] is None:
        reason = gate.get("reason") or "it cannot be computed"
        return Finding("unclear", f"{reason}.".capitalize(), question, "not tested")
    text = "On the images to forget, the model before is told from the retrained one with an AUROC "
    text += f"of {_of(gate)}; 0.5 would be guessing, {gate['least']} is needed."
    status, word = ("note", "yes") if gate["passed"] else ("unclear", "nothing measurable")
    return Finding(status, text, question, word)


def _of(estimate: dict[str, Any]) -> str:
    """Write an estimate of audit.json with its interval and n."""
    stat = estimate | {"mean": estimate["value"]}
    return f"{value(stat)} {interval(stat)} (n = {estimate['n']})"


def _yardstick(results: dict[str, Any]) -> Finding:
    status, word = "unclear", "not retrained"
    text = "There is no retrained model; the holdout set takes its place, a weaker yardstick."
    if "holdout" not in sets_of(results):
        text = (
            "There are no unseen images, and nothing tells how a model finds images it never saw."
        )
    elif "retrained" in results["contrasts"]:
        gap = results["contrasts"]["retrained"][PRIMARY]
        text = "The retrained model's error on forget minus that on holdout is "
        text += f"{value(gap)} {interval(gap)} (n = {gap['n']})"
        if gap["ci_low"] <= 0 <= gap["ci_high"]:
            status, word = "note", "fair"
            text += ": it saw neither and finds them equally hard."
        else:
            word = "sets differ"
            text += ", though it saw neither: the sets differ by themselves, or "
            text += "forget images are left in retain. Compare models on one set, not two sets."
    return Finding(status, text, "Is retraining a fair yardstick?", word)


def _kept(audit: dict[str, Any]) -> Finding:
    question, loss = "Is quality kept?", audit["damage"].get("unseen_loss")
    if not loss or None in (loss["value"], loss.get("ci_low"), loss.get("ci_high")):
        text = "The loss on unseen images was not compared with that of the model before."
        return Finding("unclear", text, question, "not tested")
    change, low, high = (percent(loss[key]) for key in ("value", "ci_low", "ci_high"))
    text = f"The loss on unseen images has changed by {change} [{low}, {high}] (n = {loss['n']}) "
    text += f"against the model before; up to {percent(MARGIN)} more counts as kept."
    if loss["ci_high"] <= MARGIN:
        return Finding("good", text, question, "kept")
    status, word = ("bad", "damaged") if loss["ci_low"] > MARGIN else ("unclear", "too few images")
    return Finding(status, text, question, word)


def _cost(results: dict[str, Any]) -> Finding:
    status, word, text = "unclear", "unknown", "There was no retraining to compare with."
    if "cost" in results:
        ratios = [results["cost"][key] for key in COST]
        text = "Unlearning took {} of retraining's steps, {} of its seconds, {} of its examples"
        text, word = text.format(*map(percent, ratios)), "mixed"
        flops = results["cost"].get("flops_ratio")
        text += (
            "; FLOPs were not counted." if flops is None else f", {percent(flops)} of its FLOPs."
        )
        if max(ratios) < 1:
            status, word = "good", "cheaper"
        elif min(ratios) >= 1:
            status, word = "bad", "dearer"
            text += " Retraining, which is exact, would have cost no more."
    return Finding(status, text, "Was it cheaper than retraining?", word)


def summary(results: dict[str, Any]) -> str:
    """Write the outcome for a terminal: under 20 lines of 80 columns, printable text only."""
    head = f"{results['name']}: {results['request']['text']}"
    lines = [textwrap.shorten("".join(c if c.isprintable() else "?" for c in head), 80)]
    lines += [f"Error on the hole, mean ± half of its {percent(results['confidence'])} interval"]
    sets = sets_of(results)
    lines += [f"{'':12}" + "".join(f"{name:22}" for name in sets)]
    for model in (m for m in MODELS if m in results["evaluation"]):
        stats = [results["evaluation"][model][name][PRIMARY] for name in sets]
        cells = [f"{value(s)} ± {value(s, (s['ci_high'] - s['ci_low']) / 2)}" for s in stats]
        lines += [f"{model:12}" + "".join(f"{cell:22}" for cell in cells)]
    if "cost" in results:
        ratios = [(key.removesuffix("_ratio"), results["cost"][key]) for key in COST]
        ratios = [*ratios, ("FLOPs", results["cost"].get("flops_ratio"))]
        ratios = [f"{name} {percent(ratio)}" for name, ratio in ratios]
        lines += ["Cost against retraining: " + ", ".join(ratios)]
    lines += report_guarantee.summary(results["certificate"])
    lines += [f"{'Is it forgotten?':32} {audit_of(results)['conclusion']['word']}"]
    lines += [f"{finding.question:32} {finding.word}" for finding in findings(results)]
    return "\n".join(line.rstrip() for line in lines)


def _overview(results: dict[str, Any], shown: list[str]) -> Markup:
    figure, axes = panel(xlabel=results["metrics"][PRIMARY]["label"])
    sets = sets_of(results)
    for row, model in enumerate(shown):
        stats = [results["evaluation"][model][name][PRIMARY] for name in sets]
        mean, low, high = ([stat[key] for stat in stats] for key in _STAT)
        height = np.arange(len(sets)) + 0.22 * (row - (len(shown) - 1) / 2)
        axes.hlines(height, low, high, color=COLOURS[model], linewidth=2)
        axes.plot(mean, height, "oDs"[row], color=COLOURS[model], markersize=4.5, label=model)
    axes.set(yticks=range(len(sets)), yticklabels=sets, ylim=(len(sets) - 0.5, -0.5))
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper left", ncols=len(shown))
    return to_svg(figure, "overview", "Mean error of each model on each set; numbers in the table")


def _histograms(examples: dict[str, np.ndarray], shown: list[str]) -> list[Markup]:
    sets = [s for s in SETS[:2] if f"{shown[0]}/{s}/{PRIMARY}" in examples]
    errors = {(m, s): examples[f"{m}/{s}/{PRIMARY}"] for m in shown for s in sets}
    every = np.concatenate([e[np.isfinite(e) & (e > 0)] for e in errors.values()])
    edges = np.geomspace(every.min() * 0.99, every.max() * 1.01, 31) if len(every) else [0.1, 1]
    share = {key: np.histogram(e, edges)[0] / max(len(e), 1) for key, e in errors.items()}
    top = 1.1 * max(heights.max() for heights in share.values()) or 1
    panels = []
    for model in shown:
        figure, axes = panel(title=model, xlabel="error of an example", ylabel="share of examples")
        filled = {"fill": True, "color": COLOURS[model], "alpha": 0.65}
        axes.stairs(share[model, "forget"], edges, label="forget", **filled)
        if "holdout" in sets:
            line = {"color": "black", "linewidth": 1.2}
            axes.stairs(share[model, "holdout"], edges, label="holdout", **line)
        axes.set(xscale="log", xlim=(edges[0], edges[-1]), ylim=(0, top))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(loc="upper left")
        medians = " and ".join(f"{np.median(errors[model, s]):.3g} on {s}" for s in sets)
        text = f"Histograms of the error of the {model} model; medians {medians}"
        panels.append(to_svg(figure, f"histogram-{model}", text))
    return panels


def _curves(model: str, phases: list[dict], log: list[dict]) -> list[Markup]:
    terms = ["retain", "forget"] if any(row.get("forget") for row in log) else ["loss"]
    groups = [terms, ["probe_forget", "probe_holdout"], ["displacement"]]
    panels = []
    for title, keys in zip(("loss", "probe", "displacement"), groups, strict=True):
        data = {k: [(r["step"], r[k]) for r in log if isinstance(r.get(k), NUMBER)] for k in keys}
        data = {key: np.array(line).T for key, line in data.items() if line}
        if not data:
            continue
        figure, axes = panel(xlabel="step", ylabel=title)
        for key, line in data.items():
            other = key in ("retain", "probe_holdout")
            colour, style = ("black", "--") if other else (COLOURS[model], "-")
            axes.plot(*line, style, color=colour, marker="." * (line.size == 2), label=key)
        for i, phase in enumerate(phases):
            start, label = phase["first_step"], textwrap.shorten(phase["name"], 16, placeholder="…")
            axes.axvspan(start, phase["last_step"], color="black", alpha=0.06 * (i % 2), lw=0)
            axes.annotate(label, (start, 1.01), xycoords=("data", "axes fraction"), fontsize=7)
        if len(data) > 1:
            axes.legend()
        ends = [f"{key} from {line[1][0]:.3g} to {line[1][-1]:.3g}" for key, line in data.items()]
        text = f"{title} of the {model} model by step: {', '.join(ends)}"
        panels.append(to_svg(figure, f"curve-{model}-{title}", text))
    return panels


def write(
    workdir: str | Path, receipt: dict[str, Any] | None = None, pictures: bool = True
) -> Path:
    """Write report.html into `workdir`; return its path; raise what `read` does.

    The page refers to nothing outside itself, and the same inputs give the same bytes.

    Args:
      workdir: of the request.
      receipt: what the page says of it; None: of the receipt that is there, if any.
      pictures: show images, if config.report.pictures allows it.
    """
    if receipt is None and (Path(workdir) / receipts.FILE).exists():
        receipts.check_open(Path(workdir))
        receipt = receipts.read(Path(workdir))
    results, logs, examples, grids = read(workdir)
    with files.of_others(Path(workdir) / "results.json", "what evaluate writes"):
        page = _rendered(results, logs, examples, grids if pictures else {}, receipt)
    path = Path(workdir) / "report.html"
    path.write_text(page, encoding="utf-8", errors="replace")
    return path


def _rendered(results: dict, logs: dict, examples: dict, grids: dict, receipt: Any) -> str:
    shown = [m for m in MODELS if m in results["evaluation"]]
    stages = results["stages"]
    names = {
        "r": results,
        "models": shown,
        "sets": sets_of(results),
        "primary": PRIMARY,
        "colours": COLOURS,
    }
    config = results["config"]
    named = config.get("report", {}).get("names", True)
    of_images = results.get("names", {}) if named else {}
    names |= {"a": audit_page.parts(audit_of(results), config=config, grids=grids, names=of_images)}
    names |= {"findings": findings(results), "grids": grids, "named": named}
    names |= {"receipt": receipts.rows(receipt) if receipt else []}
    names |= {"certifiers": report_guarantee.CERTIFIERS, "refuted": report_guarantee.refuted}
    with matplotlib.style.context(["default", STYLE]):
        names |= {"overview": _overview(results, shown), "histograms": _histograms(examples, shown)}
        names |= {"tradeoff": report_guarantee.tradeoff(results["certificate"])}
        names |= {"curves": {m: _curves(m, stages[m]["phases"], logs[m]) for m in logs}}
    return render("report.html.j2", names)
