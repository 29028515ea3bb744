"""The tables and the plot of docs/scale.md, from the lines of results/scale/aot.jsonl."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.aot.chips import GIB
from launch.aot.grid import Point, grid
from unlearn_jax.registry import UserError

DOCUMENT, PLOT = Path("docs/scale.md"), Path("docs/scale.png")
MARK = "<!-- {}: made by `python -m launch.aot.table --render` -->"
TITLES = {"mage": "MAGE-B", "mae": "MAE-L", "palette": "Palette"}
Line = dict[str, Any]
Lines = Mapping[Point, Line]


def write(lines: Lines, **more: str) -> None:
    """Put the tables between their marks in the document, and write the plot beside it.

    Args:
      lines: of the grid.
      more: other tables, by name.

    Raises:
      UserError: a mark is missing.
    """
    text = DOCUMENT.read_text()
    for name, table in (tables(lines) | more).items():
        begin, end = MARK.format(name), MARK.format(f"end of {name}")
        before, found, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not found or not found_end:
            raise UserError(f"Expected {begin} and {end} in {DOCUMENT}.")
        text = f"{before}{begin}\n\n{table}\n\n{end}{after}"
    DOCUMENT.write_text(text)
    plot(lines, PLOT)


def tables(lines: Lines) -> dict[str, str]:
    """Write Markdown by name: "steps", "evaluation", "batches", "effort", "provenance"."""
    quick = {p: line for p, line in lines.items() if p.quick and not line.get("error")}
    return {
        "steps": _steps(quick),
        "evaluation": _evaluation(quick),
        "batches": _batches(quick),
        "effort": _effort(lines),
        "provenance": _provenance(lines),
    }


def _steps(lines: Lines) -> str:
    rows = []
    for point, line in sorted(lines.items(), key=_order):
        step = line["programs"].get("step")
        if step is None or point.search:
            continue
        rows.append([
            *(TITLES[point.model], point.topology, str(line["chips"])),
            "{data} × {fsdp}".format(**line["mesh"]),
            *(f"{step['batch_per_chip']:g}", f"{step['state_bytes'] / GIB:.2f}"),
            _peak(step, line),
            *(_number(step, "moved_bytes", 1e9), _number(step, "wire_bytes", 1e6)),
            *(_number(step, "bound_s", 1e-3), step.get("bound_by", "–")),
            _percent(step),
            f"{step['compile_cpu_s']:.0f}",
        ])  # fmt: skip
    return _markdown(
        ["model", "topology", "chips", "data × fsdp", "rows per chip", "state GiB", "peak GiB",
         "moved GB", "sent MB", "bound ms", "by", "MFU ≤", "compile CPU s"], rows, left=2,
    )  # fmt: skip


def _evaluation(lines: Lines) -> str:
    rows = []
    for point, line in sorted(lines.items(), key=_order):
        for name in ("evaluation", "sampler"):
            if found := line["programs"].get(name):
                rows.append([
                    *(TITLES[point.model], point.topology, name, f"{found['batch_per_chip']:g}"),
                    _peak(found, line),
                    f"{found['flops'] / 1e12:,.1f}",
                    *(_number(found, "moved_bytes", 1e9), _number(found, "bound_s", 1)),
                    *(found.get("bound_by", "–"), f"{found['compile_cpu_s']:.0f}"),
                ])  # fmt: skip
    return _markdown(
        ["model", "topology", "program", "rows per chip", "peak GiB", "TFLOP", "moved GB",
         "bound s", "by", "compile CPU s"], rows, left=3,
    )  # fmt: skip


def _batches(lines: Lines) -> str:
    rows = []
    for point, line in sorted(lines.items(), key=_order):
        if found := line.get("largest"):
            peak, more = found["peak_bytes"], found["too_large"]
            rows.append([
                *(TITLES[point.model], point.topology, f"{found['batch_per_chip']:,}"),
                f"{found['batch_per_chip'] * line['chips']:,}",
                f"{peak / GIB:.2f} of {line['chip']['hbm_bytes'] / GIB:.2f}" if peak else "–",
                f"{more:,}" if more else "–",
                str(found["compiles"] + 1),
            ])  # fmt: skip
    return _markdown(
        ["model", "topology", "rows per chip", "batch", "peak GiB", "does not fit",
         "compilations"], rows, left=2,
    )  # fmt: skip


def _effort(lines: Lines) -> str:
    rows = []
    for point, line in sorted(lines.items(), key=_order):
        step = line.get("programs", {}).get("step")
        twin = lines.get(point._replace(quick=True), {}).get("programs", {}).get("step")
        if point.quick or not step or not twin:
            continue
        for title, found in (("full", step), ("--quick", twin)):
            rows.append([
                *(TITLES[point.model], point.topology, title, _peak(found, line)),
                *(_number(found, "moved_bytes", 1e9), _number(found, "wire_bytes", 1e6)),
                *(_number(found, "bound_s", 1e-3), _percent(found)),
                f"{found['compile_cpu_s']:.0f}",
            ])  # fmt: skip
    return _markdown(
        ["model", "topology", "compilation", "peak GiB", "moved GB", "sent MB", "bound ms",
         "MFU ≤", "compile CPU s"], rows, left=3,
    )  # fmt: skip


def _provenance(lines: Lines) -> str:
    good = [line for line in lines.values() if not line.get("error")]
    if not good:
        return "Nothing has been compiled yet."
    versions = sorted({f"{k} {v}" for line in good for k, v in line["versions"].items() if v})
    dates = sorted(line["created"][:10] for line in good)
    missing = [p for p in grid() if p not in lines]
    failed = [f"- {_name(p)}: {line['error'][-300:]}" for p, line in lines.items() if
              line.get("error")]  # fmt: skip
    text = (
        f"{len(good)} of {len(grid())} points of the grid; {', '.join(versions)}; "
        f"{dates[0]}{' to ' + dates[-1] if dates[-1] != dates[0] else ''}."
    )
    if missing:
        text += f"\n\nNot compiled, {len(missing)} points:\n"
        for model, title in TITLES.items():
            names = [_name(point, title="") for point in missing if point.model == model]
            text += f"\n- {title}: {', '.join(names)}" if names else ""
    if failed:
        text += "\n\nFailed:\n\n" + "\n".join(failed)
    return text


def plot(lines: Lines, path: Path) -> None:
    """Plot peak memory and sent bytes of a step against chips, of each model and chip."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    series: dict[tuple[str, str, bool], list[tuple[int, float, float]]] = {}
    for point, line in lines.items():
        step = line.get("programs", {}).get("step", {})
        if point.quick and not point.search and step.get("fits"):
            chip, sharded = point.topology.partition(":")[0], line["mesh"]["fsdp"] > 1
            values = line["chips"], step["peak_bytes"] / GIB, step["wire_bytes"] / 1e6
            series.setdefault((point.model, chip, sharded), []).append(values)
    colours = dict(zip(TITLES, ("tab:blue", "tab:orange", "tab:green"), strict=True))
    markers = {"v4": "s", "v5e": "o", "v5p": "^", "v6e": "D"}
    for (model, chip, sharded), values in sorted(series.items()):
        chips, peak, sent = zip(*sorted(values), strict=True)
        label = f"{TITLES[model]}, {chip}" + (", fsdp" if sharded else "")
        style = {"color": colours[model], "marker": markers[chip], "markersize": 4}
        style |= {"linestyle": "--" if sharded else "-", "linewidth": 1, "label": label}
        axes[0].plot(chips, peak, **style)
        axes[1].plot(chips, sent, **style)
    titles = ("peak memory per chip (GiB)", "sent per chip and step (MB)")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xscale="log", ylim=(0, None), xlabel="chips", title=title)
        axis.set_xticks([4, 16, 64, 256], ["4", "16", "64", "256"])
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _order(item: tuple[Point, Line]) -> tuple:
    point, line = item
    chip = point.topology.partition(":")[0]
    fsdp = line.get("mesh", {}).get("fsdp", 1)
    return list(TITLES).index(point.model), chip, fsdp > 1, line.get("chips", 0)


def _name(point: Point, title: str | None = None) -> str:
    title = TITLES[point.model] + " " if title is None else title
    notes = [point.programs.replace(",", " and ")] if point.programs != "step" else []
    notes += [f"mesh {point.mesh}"] if point.mesh != "-1:1" else []
    notes += ["search"] * point.search + ["full effort"] * (not point.quick)
    return title + point.topology + (f" ({', '.join(notes)})" if notes else "")


def _peak(program: Line, line: Line) -> str:
    if not program["fits"]:
        needed = program["peak_bytes"]
        return f"**{needed / GIB:.1f}: too large**" if needed else "**too large**"
    return f"{program['peak_bytes'] / GIB:.2f}"


def _number(program: Line, name: str, unit: float) -> str:
    if name not in program:
        return "–"
    value = program[name] / unit
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _percent(program: Line) -> str:
    return f"{100 * program['mfu_bound']:.0f} %" if "mfu_bound" in program else "–"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    rows = list(rows)
    if not rows:
        return "Not compiled yet."
    rule = ["---" if i < left else "---:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))
