"""Tell what a whole request takes, in chip-hours and at a price, before anything is rented.

    python -m launch.plan --config=configs/imagenet_mage.py --topology=v5e:4x4 --price=1.2
    python -m launch.plan --config=configs/cifar10_compare.py --topology=v5e:2x2
    python -m launch.plan --config=configs/imagenet_mage.py --topology=v5e:4x4 \\
        --without=original,retrained

Every program of the request is traced, by shape only, and multiplied by how often the config calls
it. No accelerator, no libtpu, no data: under a minute. docs/scale.md says what is assumed.
"""

import json
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from launch.aot import chips
from unlearn_jax import cli, config
from unlearn_jax.registry import UserError

EXAMPLE = "--config=configs/imagenet_mage.py --topology=v5e:4x4 --price=1.2"
MFU = (
    "MFU of training 0.35: an assumption, the least of MaxText's table of tuned language models on "
    "v6e and v5p (35 to 65 %), maxtext.readthedocs.io/en/maxtext-v0.2.0/reference/models/tiering."
    "html, read in November 2026. Of sampling, evaluation and towers 0.20: an assumption without "
    "a source. Where results/scale/aot.jsonl has a compiled bound below that for this model, chip "
    "and no fewer rows per chip, that bound is taken (marked *)."
)


def main(cfg: ConfigDict) -> None:
    """Run the command."""
    from launch import plan_parts  # brings jax
    from unlearn_jax.config.validation import validate

    args = flags.FLAGS
    if args.topology in (None, "local"):
        raise UserError(f"Expected --topology=CHIP:SHAPE. For example:\n  {EXAMPLE}")
    if not (0 < args.mfu <= 1 and 0 < args.sampling_mfu <= 1):
        raise UserError("Expected --mfu and --sampling_mfu above 0 and at most 1.")
    if args.price < 0 or args.start_minutes < 0:
        raise UserError("Expected --price and --start_minutes of 0 or more.")
    validate(cfg)
    topology = chips.parse_topology(args.topology, args.slices)
    rows = plan_parts.count_rows(cfg, plan_parts.parse_rows(args.rows))
    parts = plan_parts.request(cfg, topology.chips, rows, args.without)
    mfu = {"training": args.mfu, "sampling": args.sampling_mfu}
    report = price(cfg, topology, parts, mfu, args.start_minutes, args.price)
    report["images"] = rows._asdict()
    print(json.dumps(report) if args.json else table(report))


def price(
    cfg: ConfigDict,
    topology: chips.Topology,
    parts: list[Any],
    mfu: dict[str, float],
    start_minutes: float,
    per_chip_hour: float,
) -> dict[str, Any]:
    """Price a request: {"parts": each with "chip_hours", "start", "chip_hours", "hours", "price"}.

    A part takes the longer of its arithmetic at the assumed share of the chips' peak, and of its
    arguments read once per call at the full bandwidth of their memory.
    """
    chip, found = topology.chip, []
    for part in parts:
        rows = part.images / topology.chips
        known = known_bound(cfg.name, topology, part.program, rows)
        assumed = min(mfu[part.kind], known or 1)
        compute = part.flops / (chip.peak_flops * assumed) * part.calls
        memory = part.argument_bytes / chip.hbm_bandwidth * part.calls * topology.chips
        found.append(
            part._asdict()
            | {"mfu": assumed, "compiled_bound": bool(known and known < mfu[part.kind])}
            | {"by": "memory" if memory > compute else "compute"}
            | {"chip_hours": max(compute, memory) / 3600}
        )
    commands = 1 if config.chosen_methods(cfg) else len({part.section for part in parts})
    start = commands * topology.chips * start_minutes / 60
    total = start + sum(part["chip_hours"] for part in found)
    return {
        "name": cfg.name, "topology": topology.name, "slices": topology.slices,
        "chips": topology.chips, "parts": found, "commands": commands,
        "start_minutes": start_minutes, "start": start, "chip_hours": total,
        "hours": total / topology.chips, "per_chip_hour": per_chip_hour,
        "price": total * per_chip_hour,
    }  # fmt: skip


def known_bound(name: str, topology: chips.Topology, program: str, rows: float) -> float | None:
    """Find the largest MFU that a compiled program allows, with so many rows per chip; or None.

    Of full compilations if there are any.
    """
    from launch.aot.grid import done

    kind, found = topology.name.partition(":")[0], []
    for point, line in done().items():
        facts = line.get("programs", {}).get(program, {})
        same = line.get("name") == name and point.topology.partition(":")[0] == kind
        if same and "mfu_bound" in facts and facts["batch_per_chip"] >= rows:
            found.append((not point.quick, facts["mfu_bound"]))
    best = max((full for full, _ in found), default=False)
    return max((bound for full, bound in found if full == best), default=None)


def table(report: dict[str, Any]) -> str:
    """Write a report for people."""
    head = ["section", "part", "calls", "images", "TFLOP", "MFU", "by", "chip-hours"]
    priced = report["per_chip_hour"] > 0
    rows = [head + ["price"] * priced]

    def cost(chip_hours: float) -> list[str]:
        costs = [f"{chip_hours * report['per_chip_hour']:,.2f}"] if priced else []
        return [f"{chip_hours:,.3f}", *costs]

    for part in report["parts"]:
        rows.append([
            part["section"], part["name"], f"{part['calls']:,.0f}", f"{part['images']:,}",
            f"{part['flops'] / 1e12:,.4g}", f"{part['mfu']:.2f}" + "*" * part["compiled_bound"],
            part["by"], *cost(part["chip_hours"]),
        ])  # fmt: skip
    starts = f"{report['commands']} commands, {report['start_minutes']:g} minutes each"
    rows.append(["start", starts, "", "", "", "", "", *cost(report["start"])])
    rows.append(["all", "", "", "", "", "", "", *cost(report["chip_hours"])])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        f"{report['name']} on {report['topology']}, {report['chips']} chips: "
        f"{report['chip_hours']:,.1f} chip-hours, {report['hours']:,.1f} hours"
        + (f", {report['price']:,.2f} at {report['per_chip_hour']:g} each" if priced else ""),
        "images: " + ", ".join(f"{n:,} {name}" for name, n in report["images"].items()),
        "",
    ]
    for row in rows:
        cells = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in
                 enumerate(zip(row, widths, strict=True))]  # fmt: skip
        lines.append("  ".join(cells).rstrip())
    lines += ["", "calls × TFLOP / (peak × MFU), or the arguments' bytes / bandwidth if longer."]
    lines += ["images and TFLOP are of one call, over all chips.", MFU]
    lines += ["Not counted: the hosts' work (decoding, SSIM, covariances' roots), links, storage."]
    if not priced:
        lines.append("No price: prices of TPUs change and depend on region and Spot; give --price.")
    return "\n".join(lines)


if __name__ == "__main__":
    flags.DEFINE_string("topology", None, "CHIP:SHAPE, such as v5e:16x16.")
    flags.DEFINE_integer("slices", 1, "So many of them.")
    flags.DEFINE_float("price", 0, "Of a chip-hour, in any currency; 0: none is shown.")
    flags.DEFINE_float("mfu", 0.35, "Model FLOPs utilisation assumed of training.")
    flags.DEFINE_float("sampling_mfu", 0.20, "The same of everything else.")
    flags.DEFINE_float("start_minutes", 10, "Of all chips, for each command: machines, compiler.")
    flags.DEFINE_list("without", [], "Sections that are not needed, such as original,retrained.")
    flags.DEFINE_list("rows", [], "What the config does not tell: train=…,forget=…,… of images.")
    flags.DEFINE_bool("json", False, "Print JSON instead of a table.")
    cli.start(main, needs=("config",), example=EXAMPLE)
