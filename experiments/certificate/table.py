"""The table and the curve of `experiments.certificate`, from its points.json alone.

python -m experiments.certificate.table --workdir=results/certificate

writes table.md and curve.png beside points.json.
"""

import json
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from experiments.certificate.scores import anchors, score
from experiments.certificate.settings import EPSILONS
from unlearn_jax import cli
from unlearn_jax.report.page import COLOURS, STYLE

ROLES = {"original": "original", "retrained": "retrained"}
LINES = {k: COLOURS[k] for k in ROLES}
LINES |= {"exact": "olive", "centre_initial": "gray", "centre_public": "black"}
NAMES = {
    "original": "original",
    "decoupled": "decoupled",
    "unnoised": "decoupled, repaired, no noise",
    "retrained": "retrained without the forget set",
    "exact": "exact deletion from the newest of ten slices",
    "centre_initial": "initial parameters, repaired",
    "public": "public weights",
    "centre_public": "public weights, repaired",
}


def of_world(points: dict[str, Any], world: str) -> dict[str, Any]:
    """Make a comparison's results.json, for leaderboard_scores, of the models of one world."""
    chosen = {k: m for k, m in points["models"].items() if m["world"] == world}
    named = {k: m | {"kind": ROLES.get(m["name"], "method"), "label": k} for k, m in chosen.items()}
    seeds = sorted({int(s) for m in chosen.values() for s in m["seeds"]})
    return points | {"models": named, "seeds": seeds}


def noise_over_radius(certificate: dict[str, Any]) -> float:
    """Divide the expected length of the noise that stays in the released model by the radius."""
    arguments, length = certificate["arguments"], certificate["noise_std"]
    length *= math.sqrt(certificate["parameters"])
    if certificate["mechanism"] == "noisy_finetune":
        length *= math.sqrt(certificate["steps"])
    return length / (arguments.get("init_radius") or arguments["model_clip_norm"])


def rows(points: dict[str, Any]) -> list[dict[str, Any]]:
    """Make one row per model: its errors, gap and utility loss, and what its certificates say."""
    found = []
    for world in dict.fromkeys(m["world"] for m in points["models"].values()):
        results = of_world(points, world)
        for key, model in results["models"].items():
            fared, seeds = score(results, key), list(model["seeds"].values())
            errors = {s: np.array([x["errors"][s] for x in seeds]) for s in seeds[0]["errors"]}
            certificates = [x["certificate"] for x in seeds]
            certified = certificates[0]
            found.append(
                {
                    "world": world,
                    "name": model["name"],
                    "mechanism": model.get("mechanism", ""),
                    "target_epsilon": model.get("target_epsilon"),
                    "epsilon": max(c["epsilon"] for c in certificates) if certified else None,
                    "certifier": certified and certified["certifier"],
                    "noise": certified and noise_over_radius(certified),
                    "seeds": len(seeds),
                    "errors": {s: float(v.mean()) for s, v in errors.items()},
                    "spread": {s: float(v.std(ddof=1)) if len(v) > 1 else math.nan
                               for s, v in errors.items()},
                    "gap": fared.forget_gap,
                    "utility_loss": fared.utility_loss,
                    "cost": fared.cost_fraction,
                }
            )  # fmt: skip
    return found


def markdown(points: dict[str, Any]) -> str:
    """Write table.md."""
    n = points["n"]
    lines = [
        "# What a certificate costs on CIFAR-10",
        "",
        f"    {points['command']}",
        "",
        f"{points['created']}, {points['hardware']}, jax {points['versions']['jax']}. Errors are "
        "mean squared errors on the hole, images in [-1, 1], mean ± sd over seeds; "
        + ", ".join(f"{k} n = {v:,}" for k, v in n.items())
        + ". Gap and utility loss as in docs/comparison.md, of the audits that tell original from "
        "retrained (no relearning, no backdoor; with one seed any difference counts). Cost: FLOPs "
        "over those of retraining, ascent and repair included. Noise: expected length of what "
        "stays, in radii.",
    ]
    shown = rows(points)
    for world in dict.fromkeys(row["world"] for row in shown):
        kept, left_out = anchors(of_world(points, world))
        title = (
            "The whole network" if world == "network" else f"Only `{world}`, around public weights"
        )
        left = f" Left out, as fewer than two seeds or no difference: {', '.join(left_out)}."
        lines += ["", f"## {title}", "",
                  f"The gap is over {', '.join(kept) or 'no audit'}.{left if left_out else ''}", "",
                  "| mechanism | ε at δ = 1e-5 | certifier | noise | repaired | forget | holdout | "
                  "retain | gap | utility loss | cost | seeds |",
                  "|" + "---|" * 12]  # fmt: skip
        mine = [row for row in shown if row["world"] == world]
        lines += [_line(points, row) for row in sorted(mine, key=_order)]
    return "\n".join(lines) + "\n"


def _order(row: dict[str, Any]) -> tuple:
    fixed = list(NAMES).index(row["name"]) if row["name"] in NAMES else len(NAMES)
    return fixed, row["name"], row["target_epsilon"] or 0


def _line(points: dict[str, Any], row: dict[str, Any]) -> str:
    if row["mechanism"]:
        label = points["mechanisms"][row["mechanism"]]["label"]
        repaired = "yes" if row["name"].endswith("repaired") else "no"
        claim = [f"{row['epsilon']:.4g}", row["certifier"], f"{row['noise']:,.0f}", repaired]
    else:
        label = NAMES[row["name"]]
        claim = [
            "none" if row["name"] in ("original", "decoupled", "unnoised") else "0",
            "–",
            "–",
            "–",
        ]
    errors = [f"{value:.4f}" for value in row["errors"].values()]
    if row["seeds"] > 1:
        errors = [f"{e} ± {x:.4f}" for e, x in zip(errors, row["spread"].values(), strict=True)]
    gap = f"{row['gap']:.2f}" if math.isfinite(row["gap"]) else "–"
    scores = [gap, f"{100 * row['utility_loss']:+.1f} %", f"{100 * row['cost']:.1f} %"]
    return "| " + " | ".join([label, *claim, *errors, *scores, str(row["seeds"])]) + " |"


def plot(points: dict[str, Any], path: Path) -> None:
    """Write curve.png: holdout error against epsilon, without and with repair."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        shown = rows(points)
        for axes, stage in ((left, "released"), (right, "repaired")):
            for number, mechanism in enumerate(points["mechanisms"]):
                mine = [r for r in shown if r["name"] == f"{mechanism}, {stage}"]
                mine.sort(key=lambda r: r["target_epsilon"])
                if not mine:
                    continue
                error, spread = ([r[k]["holdout"] for r in mine] for k in ("errors", "spread"))
                axes.errorbar([r["target_epsilon"] for r in mine], error, spread, marker=".",
                              color=f"C{number}", label=points["mechanisms"][mechanism]["label"]
                              )  # fmt: skip
            for row in shown:
                if row["world"] == "network" and row["name"] in LINES:
                    axes.axhline(row["errors"]["holdout"], color=LINES[row["name"]], ls="--",
                                 label=NAMES[row["name"]], lw=0.8)  # fmt: skip
            axes.set(xscale="log", yscale="log", xlabel="ε at δ = 1e-5", title=stage)
            for axis, ticks in (
                (axes.xaxis, EPSILONS),
                (axes.yaxis, (0.12, 0.15, 0.2, 0.3, 0.5, 1)),
            ):
                axis.set_major_locator(FixedLocator(ticks))
                axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
                axis.set_minor_formatter(NullFormatter())
        left.set_ylabel("error on unseen images")
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        figure.savefig(path, dpi=150)


def write(workdir: Path) -> None:
    """Write table.md and curve.png beside workdir/points.json."""
    points = json.loads((workdir / "points.json").read_text())
    (workdir / "table.md").write_text(markdown(points))
    plot(points, workdir / "curve.png")


if __name__ == "__main__":
    cli.start(write, needs=("workdir",), example="--workdir=results/certificate")
