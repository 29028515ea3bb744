"""The tables of docs/scale.md of every distinct program, from results/scale/programs.jsonl."""

from collections.abc import Mapping, Sequence
from typing import Any

from launch.aot.all_programs import MODELS, Point
from launch.aot.chips import GIB

Lines = Mapping[Point, Mapping[str, Any]]


def tables(lines: Lines, every: Sequence[Point]) -> dict[str, str]:
    """Write Markdown tables by name.

    "all" has a row for each model, "small" and "full" one for each program.
    """
    small = [model for model in MODELS if model.endswith("-small")]
    full = [model for model in MODELS if model not in small]
    return {
        "all": f"{_provenance(lines, every)}\n\n{_summary(lines, every)}",
        "small": _programs(lines, every, small),
        "full": _programs(lines, every, full),
    }


def _provenance(lines: Lines, every: Sequence[Point]) -> str:
    good = [lines[p] for p in every if lines.get(p, {}).get("fits")]
    text = f"{len(good)} of {len(every)} programs"
    versions = sorted({f"{k} {v}" for of in good for k, v in of.get("versions", {}).items() if v})
    dates = sorted({of["created"][:10] for of in good if "created" in of})
    return "; ".join([text, *([", ".join(versions)] if versions else []), *dates]) + "."


def _summary(lines: Lines, every: Sequence[Point]) -> str:
    rows = [["model", "topology", "programs", "compiled", "largest peak GiB", "of", "CPU s"]]
    rows.append(["---", "---"] + ["---:"] * 5)
    for model, (_, topology) in MODELS.items():
        of = [point for point in every if point.model == model]
        good = [p for p in of if lines.get(p, {}).get("fits")]
        largest = max(good, key=lambda p: lines[p]["peak_bytes"], default=None)
        seconds = sum(lines[p]["cpu_s"] for p in of if "cpu_s" in lines.get(p, {}))
        peak = f"{lines[largest]['peak_bytes'] / GIB:.2f}" if largest else "–"
        rows.append([
            *(model, topology, str(len(of)), str(len(good)), peak),
            *(largest.program if largest else "–", f"{seconds:,.0f}"),
        ])  # fmt: skip
    return _markdown(rows)


def _programs(lines: Lines, every: Sequence[Point], models: Sequence[str]) -> str:
    """Make the table of programs; cells are peak memory in GiB and seconds of CPU."""
    names = dict.fromkeys(p.program for p in every if p.model in models)
    rows = [["program", *models], ["---"] + ["---:"] * len(models)]
    for name in names:
        cells = [
            _cell(lines.get(Point(m, name))) if Point(m, name) in every else "" for m in models
        ]
        rows.append([name, *cells])
    return _markdown(rows)


def _cell(line: Mapping[str, Any] | None) -> str:
    if line is None:
        return "**missing**"
    if "fits" not in line:
        return "**failed**"
    if not line["fits"]:
        return "**too large**"
    return f"{line['peak_bytes'] / GIB:.2f}, {line['cpu_s']:.0f} s"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
