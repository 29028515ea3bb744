"""The charts and thumbnails of a leaderboard page, from the files of a comparison."""

import math
import textwrap
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, SymmetricalLogLocator
from PIL import Image

from unlearn_jax.report.leaderboard_scores import (
    REFERENCES,
    Score,
    left_out,
    ranked,
    reference,
    short,
    shown,
    values,
)
from unlearn_jax.report.page import COLOURS, MINUS, panel, png, to_svg

AREA = 220.0  # of the mark of a model that costs as much as retraining, in square points
POINTS = 500  # drawn per cloud; correlations are over all examples
IMAGES, SIDE, PIXELS = 6, 64, 480_000  # rows of a grid, largest side, most pixels of all together


def in_order(results: dict[str, Any]) -> list[str]:
    """Order the models' names: original, retrained, then the methods by rank."""
    return [reference(results, kind) for kind in REFERENCES] + [s.name for s in ranked(results)]


def pareto(x: Float[np.ndarray, "m"], y: Float[np.ndarray, "m"]) -> list[int]:
    """Find the points that no other point beats in one coordinate and equals in the other, by x."""
    front, best = [], math.inf
    for i in np.lexsort([y, x]):
        if y[i] < best and math.isfinite(x[i]):
            front, best = [*front, int(i)], y[i]
    return front


def tradeoff(results: dict[str, Any], goal: tuple[float, float]) -> Markup:
    """Plot worst excess against loss on unseen images: methods by rank, and their front."""
    scores = ranked(results)
    x, y = (np.array([getattr(s, k) for s in scores]) for k in ("worst_excess", "unseen_loss"))
    front = pareto(x, y)
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots(subplot_kw={"xlabel": "worst excess", "ylabel": "loss on unseen images"})
    axes.axhline(0, color="black", alpha=0.3, linewidth=0.8)
    axes.step(x[front], y[front], where="post", color=COLOURS["unlearned"], linestyle=":")
    for rank, s in enumerate(scores, 1):
        at, area = (s.worst_excess, s.unseen_loss), AREA * np.nan_to_num(s.cost_fraction)
        arms = [
            _arms(s, key, x) for key, x in zip(("worst_excess", "unseen_loss"), at, strict=True)
        ]
        axes.errorbar(*at, arms[1], arms[0], color=COLOURS["unlearned"], alpha=0.5, linewidth=0.9)
        fill = COLOURS["unlearned"] if rank - 1 in front else "none"
        axes.scatter(*at, max(area, 8), fill, edgecolors=COLOURS["unlearned"], zorder=3)
        axes.annotate(str(rank), at, (4, 4), textcoords="offset points", fontweight="bold")
    if np.nanmax(x, initial=0) > 3:
        axes.set_xscale("symlog", linthresh=1, linscale=2)
        axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=0.1, subs=(1, 3)))
    if np.nanmax(abs(y), initial=0) > 0.6:
        axes.set_yscale("symlog", linthresh=0.1, linscale=2)
        axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=0.03, subs=(1, 3)))
    axes.set_xlim(left=min(0, axes.get_xlim()[0]))
    low = axes.get_ylim()[0]
    axes.fill_between(
        [0, goal[0]], [low, low], goal[1], color=COLOURS["retrained"], alpha=0.15, lw=0
    )
    axes.set_ylim(bottom=low)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{short(100 * v)} %"))
    places = [f"{s.name} at {short(s.worst_excess)}, {short(s.unseen_loss)}" for s in scores]
    alt = f"Worst excess and loss on unseen images of each method: {'; '.join(places)}"
    return to_svg(figure, "tradeoff", alt)


def _arms(s: Score, key: str, at: float) -> Float[np.ndarray, "2 1"]:
    """Return the lengths of an error bar, 0 where there is no interval."""
    low, high = s.intervals[key]
    return np.nan_to_num(np.maximum([[at - low], [high - at]], 0))


def audit_panels(results: dict[str, Any]) -> list[Markup]:
    """Plot a chart per audit: each method's raw value in each seed, the references as lines."""
    scores, uncounted = ranked(results), left_out(results)
    labels = [_label(results, s.name) for s in scores]
    charts = []
    for number, (key, audit) in enumerate(results["audits"].items()):
        found = {k: values(results, reference(results, k), "audits", key) for k in REFERENCES}
        figure = Figure(figsize=(3.4, 1.1 + 0.17 * len(scores)), layout="constrained")
        title = audit["label"] + (" (left out)" if key in uncounted else "")
        axes = figure.subplots(subplot_kw={"title": title, "xlabel": audit["unit"]})
        for (kind, x), style in zip(found.items(), ("--", "-"), strict=True):
            if np.isfinite(x).any():
                axes.axvline(np.nanmean(x), color=COLOURS[kind], linestyle=style, label=kind)
                axes.axvspan(np.nanmin(x), np.nanmax(x), color=COLOURS[kind], alpha=0.15, lw=0)
        for row, s in enumerate(scores):
            x = found[s.name] = values(results, s.name, "audits", key)
            axes.plot(x, np.full(len(x), row), "o", color=COLOURS["unlearned"], ms=3.5, alpha=0.75)
        every = np.concatenate(list(found.values()))
        every = every[np.isfinite(every)]
        if len(every) and every.min() > 0 and every.max() > 30 * every.min():
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
        axes.set(yticks=range(len(scores)), yticklabels=labels, ylim=(len(scores) - 0.5, -0.5))
        axes.grid(axis="y", visible=False)
        means = [f"{name} {short(x.mean())}" for name, x in found.items()]
        charts.append(to_svg(figure, f"audit-{number}", f"{audit['label']}: {', '.join(means)}"))
    return charts


def example_panels(results: dict[str, Any], examples: dict[str, np.ndarray]) -> list[Markup]:
    """Plot a chart per model: each forget example's error against the retrained model's.

    Original first, then retrained of another seed, which shows what training alone changes, then
    the methods by rank.
    """
    yardstick = reference(results, "retrained")
    first, *second = shown(results, yardstick)
    pairs = [(reference(results, "original"), shown(results, reference(results, "original"))[0])]
    pairs += [(yardstick, seed) for seed in second]
    pairs += [(s.name, shown(results, s.name)[0]) for s in ranked(results)]
    base, charts = examples[f"error/{yardstick}/{first}"], []
    for number, (name, seed) in enumerate(pairs):
        kind = results["models"][name]["kind"]
        title = _label(results, name) + (f", seed {seed}" if kind == "retrained" else "")
        pair = np.array([base, examples[f"error/{name}/{seed}"]], np.float64)
        pair = np.log10(pair[:, (np.isfinite(pair) & (pair > 0)).all(axis=0)])
        figure, axes = panel(title=title, xlabel="log10 error, retrained", ylabel="log10 error")
        text = "too few positive errors"
        if pair.shape[1] > 1:
            rms = math.sqrt(np.square(pair[1] - pair[0]).mean())
            flat = pair.std(axis=1).min() == 0
            r = "–" if flat else f"{np.corrcoef(pair)[0, 1]:.2f}".replace("-", MINUS)
            text = f"correlation {r}, rms difference {rms:.2f}"
            _cloud(axes, pair, COLOURS.get(kind, COLOURS["unlearned"]))
        axes.annotate(text, (0.02, 0.97), xycoords="axes fraction", va="top", fontsize=7)
        alt = f"Error of {results['models'][name]['label']} against retrained per example: {text}"
        svg = to_svg(figure, f"examples-{number}", alt)
        charts.append(svg.replace(Markup("base64,\n"), Markup("base64,")))
    return charts


def _cloud(axes: Axes, pair: Float[np.ndarray, "2 n"], colour: str) -> None:
    n = pair.shape[1]
    some = np.random.default_rng(0).permutation(n)[:POINTS]
    axes.plot(*pair[:, some], "o", color=colour, ms=2, mew=0, alpha=0.5, rasterized=True)
    limits = pair.min() - 0.1, pair.max() + 0.35  # room for the text
    axes.plot(limits, limits, color="black", linewidth=0.8)
    axes.set(xlim=limits, ylim=limits)


def images(results: dict[str, Any], grids: dict[str, np.ndarray]) -> dict[str, list]:
    """Make [(row label, thumbnails)] per set, in the order truth, input, references, methods."""
    rows = {"truth": "truth", "input": "input"}
    rows |= {name: results["models"][name]["label"] for name in in_order(results)}
    sets = [s for s in ("forget", "triggered") if f"{s}/truth" in grids]
    count = len(sets) * len(rows) * IMAGES
    side = min(SIDE, int(math.sqrt(PIXELS / count)))
    return {
        s: [
            (label, [_small(x, side) for x in grids[f"{s}/{c}"][:IMAGES]])
            for c, label in rows.items()
        ]
        for s in sets
    }


def _small(image: UInt8[np.ndarray, "h w c=3"], side: int) -> str:
    ratio = side / max(image.shape[:2])
    if ratio < 1:
        size = [max(1, round(ratio * n)) for n in image.shape[1::-1]]
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    return png(image)


def _label(results: dict[str, Any], name: str) -> str:
    return textwrap.shorten(results["models"][name]["label"], 24, placeholder="…")
