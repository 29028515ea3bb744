"""Facts of a compiled program: memory, the best speed, and the largest batch that fits."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from launch.aot import hlo
from launch.aot.chips import GIB, Chip
from launch.aot.programs import Program
from unlearn_jax.models import memory

Report = dict[str, Any]
QUICK = (
    {"exec_time_optimization_effort": -1.0}
    if hasattr(jax.config, "jax_exec_time_optimization_effort")  # as on Python 3.11
    else {"optimization_level": "O0"}
)
"""A TPU compiler's options for a fifth of the time: the same memory and collectives, but programs
that are not as good, see docs/scale.md. Either gives nearly the same programs."""


def measure(
    program: Program,
    chips: int,
    chip: Chip | None,
    *,
    model_flops: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> Report:
    """Measure one program on that many chips; that it does not fit in memory is a fact, too.

    Args:
      program: of programs.py.
      chips: as many as its mesh has.
      chip: of which kind, None if that is unknown; then there is no roofline.
      model_flops: of the same without recomputation, if it recomputes anything; for the MFU.
      options: of the compiler.
    """
    flops = program.flops()
    found: Report = {
        "batch": program.batch,
        "batch_per_chip": program.batch / chips,
        "argument_bytes": program.argument_bytes(),
        "flops": flops.total,
        "model_flops": model_flops or flops.total,
        "flops_at_most": bool(flops.bounded),
        "flops_at_least": bool(flops.unknown),
    }
    lowered = program.lower()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        compiled = lowered.compile(options and dict(options))
    except Exception as error:
        if not memory.exhausted(error):
            raise
        needed = memory.asked(str(error))
        found |= {"fits": False, "peak_bytes": needed, "error": str(error).partition("\n")[0]}
    else:
        used = compiled.memory_analysis()
        moved = hlo.moved(compiled.as_text())
        peak = used.peak_memory_in_bytes
        (device, *_) = jax.tree.leaves(compiled.output_shardings)[0].device_set
        if device.platform != "tpu":  # whose peak is not that of everything
            peak = used.argument_size_in_bytes + used.output_size_in_bytes
            peak += used.temp_size_in_bytes - used.alias_size_in_bytes
        found |= {"fits": not chip or peak <= chip.hbm_bytes, "peak_bytes": peak}
        found |= {"moved_bytes": moved.hbm_bytes, "wire_bytes": moved.wire_bytes}
        found |= {"slice_bytes": moved.slice_bytes}
        found |= {"collectives": moved.collectives, "unknown_loops": moved.unknown_loops}
        found |= roofline(found, chips, chip) if chip else {}
    found |= {"compile_s": time.perf_counter() - wall, "compile_cpu_s": time.process_time() - cpu}
    return found


def roofline(facts: Mapping[str, float], chips: int, chip: Chip) -> Report:
    """Bound the time of a call by what the chip can do.

    Return {"compute_s", "memory_s", "link_s", "slice_s", "bound_s", "bound_by", "mfu_bound"}.

    A call takes at least as long as its arithmetic at the chip's bfloat16 peak, as its bytes at the
    full bandwidth of the memory, as what it sends over all links at once, and as what it sends to
    other slices (left out where that bandwidth is unknown). The bound of the model FLOPs
    utilisation is what is reached if the longest of them hides the others. Measured times are
    longer.

    Args:
      facts: flops and model_flops of all chips; moved_bytes, wire_bytes, slice_bytes of one.
      chips: how many.
      chip: which.
    """
    seconds = {
        "compute_s": facts["flops"] / (chips * chip.peak_flops),
        "memory_s": facts["moved_bytes"] / chip.hbm_bandwidth,
        "link_s": facts["wire_bytes"] / chip.link_bandwidth,
    }
    if facts["slice_bytes"] and chip.slice_bandwidth:
        seconds["slice_s"] = facts["slice_bytes"] / chip.slice_bandwidth
    slowest = max(seconds, key=lambda name: seconds[name])
    bound = max(seconds[slowest], 1e-12)
    mfu = facts["model_flops"] / (chips * chip.peak_flops) / bound
    return {**seconds, "bound_s": bound, "bound_by": slowest[:-2], "mfu_bound": mfu}


def largest_batch(
    peaks_at: Callable[[list[int]], list[tuple[bool, float | None]]],
    known: Mapping[int, tuple[bool, float | None]],
    limit: float,
    *,
    seconds: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> Report:
    """Find the largest batch per chip that compiles and fits, in few compilations.

    Memory is close to affine in the batch. Two known batches predict the largest one. It and
    another are compiled, both at once; what that says improves the prediction, until a batch that
    fits and one that does not are within 5 % of each other.

    Args:
      peaks_at: (whether it fits, its peak bytes or None) of each of some batches per chip.
      known: the same of what has been compiled already; 0 stands for the arguments that do not
        depend on the batch.
      limit: bytes that the chip has.
      seconds: begin no two compilations that would end later, were they to take as long as the
        longest so far; the first two are begun.
      clock: in seconds.

    Returns:
      {"batch_per_chip": 0 if none fits, "peak_bytes", "too_large": the smallest batch that was
      compiled and does not fit, or None, "compiles", "predicted": what the last prediction is, not
      compiled if it is larger, "seconds": what it took}.
    """
    known, compiled, began, longest = dict(known), 0, clock(), 0.0
    while True:
        fitting = max(b for b, (fits, _) in known.items() if fits)
        failing = min((b for b, (fits, _) in known.items() if not fits), default=math.inf)
        predicted = _predict(known, fitting, failing, limit)
        close, late = failing <= 1.05 * fitting, clock() - began + longest > seconds
        if close or late or not fitting < predicted < failing:
            return {
                "batch_per_chip": fitting,
                "peak_bytes": known[fitting][1],
                "too_large": None if failing == math.inf else failing,
                "compiles": compiled,
                "predicted": predicted,
                "seconds": clock() - began,
            }
        # What a program keeps whatever its batch is not all in its arguments: one size promises
        # too little. Two promise as much as there is, or a little more.
        other = max(fitting + 1, (fitting + predicted) // 2)
        if failing > 1.25 * predicted:
            other = 4 * predicted if sum(map(bool, known)) < 2 else int(0.96 * predicted)
        begun, tries = clock(), sorted({predicted, other})
        known |= zip(tries, peaks_at(tries), strict=True)
        compiled, longest = compiled + len(tries), max(longest, clock() - begun)


def _predict(known: Mapping[int, tuple[bool, float | None]], fitting: int, failing: float,
             limit: float) -> int:  # fmt: skip
    sizes = sorted(b for b, (_, peak) in known.items() if peak)
    low = max((b for b in sizes if b <= fitting), default=None)
    others = [b for b in sizes if b != low]
    if low is None or not others:
        return fitting if failing == math.inf else _between(fitting, int(failing))
    other = failing if failing in others else max(others)  # the steeper side of what is not affine
    slope = (known[other][1] - known[low][1]) / (other - low)
    guess = low + int((limit - known[low][1]) / slope) if slope > 0 else fitting
    if failing < math.inf and guess >= failing:
        return _between(fitting, int(failing))
    return guess


def _between(fitting: int, failing: int) -> int:
    """Pick the middle of the logarithms: the two may be a factor of ten apart."""
    return max(fitting + 1, math.isqrt(fitting * failing)) if fitting else failing // 2


# ---- the table -----------------------------------------------------------------------------------
def table(report: Report) -> str:
    """Write a report of `aot` for people."""
    chip, programs = report["chip"], report["programs"]
    mesh = " x ".join(f"{name} {size}" for name, size in report["mesh"].items())
    lines = [
        f"{report['name']}: phase {report['phase']} on {report['topology']}"
        + (f", {report['slices']} slices" if report["slices"] > 1 else "")
        + f" ({report['chips']} x {report['device_kind']}), mesh {mesh}",
        f"parameters  {report['parameters']:,}, of which {report['trained']:,} are trained",
    ]
    if chip:
        lines.append(
            f"chip        {chip['peak_flops'] / 1e12:.0f} TFLOP/s bfloat16, "
            f"{chip['hbm_bytes'] / GIB:.2f} GiB at {chip['hbm_bandwidth'] / 1e9:.0f} GB/s, "
            f"links {chip['link_bandwidth'] / 1e9:.0f} GB/s"
        )
    rows = [["", *programs]]
    for title, cell in _ROWS.items():
        if title == "time between slices" and report["slices"] == 1:
            continue
        rows.append([title, *(_try(cell, facts) for facts in programs.values())])
        if title == "sent per device":
            for kind in sorted({k for p in programs.values() for k in p.get("collectives", ())}):
                cells = [_collective(p.get("collectives", {}).get(kind)) for p in programs.values()]
                rows.append([f"  {kind}", *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines.append("")
    for row in rows:
        cells = zip(row[1:], widths[1:], strict=True)
        lines.append("  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in cells)]).rstrip())
    lines.append("")
    for name, facts in programs.items():
        if facts.get("error"):
            lines.append(f"{name}: {facts['error']}")
        if facts.get("flops_at_most"):
            lines.append(f"{name}: a loop's rounds depend on the images; the most are counted.")
        if facts.get("flops_at_least") or facts.get("unknown_loops"):
            lines.append(f"{name}: a loop's rounds are unknown; one is counted.")
    if report["slices"] > 1 and chip and not chip["slice_bandwidth"]:
        lines.append("The bandwidth between slices is not known: it bounds nothing here.")
    if found := report.get("largest"):
        lines.append(_largest_line(found, report["chips"]))
    return "\n".join(lines).rstrip()


def _largest_line(found: Report, chips: int) -> str:
    if not found["batch_per_chip"]:
        return "largest batch: not even one row per chip fits; shard the parameters (--mesh)."
    rows, predicted = found["batch_per_chip"], found["predicted"]
    text = (
        f"largest batch: {rows * chips:,} ({rows} per chip, compiled, peak "
        f"{_gib(found['peak_bytes'])}; {found['compiles']} more compilations in "
        f"{found['seconds']:.0f} s)"
    )
    if found["too_large"]:
        text += f"; {found['too_large']} per chip does not fit"
    if predicted > rows:
        text += f"; {predicted} per chip may fit: predicted, not compiled (--search_seconds)"
    return text + "."


def _try(cell: Callable[[Report], str], facts: Report) -> str:
    try:
        return cell(facts)
    except (KeyError, TypeError):
        return "-"


def _gib(value: float) -> str:
    return f"{value / GIB:.2f} GiB" if value >= GIB / 10 else f"{value / 2**20:.2f} MiB"


def _gb(value: float) -> str:
    return f"{value / 1e9:,.2f} GB" if value >= 1e8 else f"{value / 1e6:,.2f} MB"


def _flop(value: float) -> str:
    return f"{value / 1e12:,.2f} TFLOP" if value >= 1e11 else f"{value / 1e9:,.3f} GFLOP"


def _seconds(value: float) -> str:
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def _collective(found: Mapping[str, float] | None) -> str:
    return f"{found['count']:,.0f} x, {_gb(found['bytes'])}" if found else "-"


_ROWS: dict[str, Callable[[Report], str]] = {
    "batch": lambda p: f"{p['batch']:,}",
    "batch per chip": lambda p: f"{p['batch_per_chip']:,.10g}",
    "arguments per device": lambda p: _gib(p["argument_bytes"]),
    "  of them state": lambda p: _gib(p["state_bytes"]),
    "peak memory per device": lambda p: _gib(p["peak_bytes"]),
    "fits": lambda p: "yes" if p["fits"] else "NO",
    "arithmetic, all chips": lambda p: _flop(p["flops"]),
    "  without recomputation": lambda p: _flop(p["model_flops"]),
    "moved per device": lambda p: _gb(p["moved_bytes"]),
    "sent per device": lambda p: _gb(p["wire_bytes"]),
    "time of arithmetic": lambda p: _seconds(p["compute_s"]),
    "time of memory": lambda p: _seconds(p["memory_s"]),
    "time of links": lambda p: _seconds(p["link_s"]),
    "time between slices": lambda p: _seconds(p["slice_s"]),
    "bound by": lambda p: p["bound_by"],
    "model FLOPs utilisation": lambda p: f"<= {100 * p['mfu_bound']:.1f} %",
    "compilation": lambda p: f"{p['compile_s']:.0f} s ({p['compile_cpu_s']:.0f} of CPU)",
}
