"""Tell what a config needs on accelerators that are not there: compile ahead, by shape only.

    python -m launch.aot --config=configs/imagenet_mage.py --topology=v5e:16x16 --batch=2048
    python -m launch.aot --config=configs/imagenet_mae.py --topology=v5p:2x2x4 --mesh=4:4 --json
    python -m launch.aot --config=configs/quickstart.py --topology=local

compiles the unlearning step, the evaluation step and the sampler for that TPU topology, on any
machine with libtpu (`pip install 'unlearn_jax[tpu]'`), or for the devices of this one, and prints
what they take of the memory, compute, move and send, how fast they can be at best, and the largest
batch that fits. No data is read, no parameters are made, no accelerator is booked. docs/scale.md
explains the numbers.
"""

import json
import math
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from launch.aot import chips
from launch.aot.child import check_libtpu, emit, lines_of_child, now, versions
from launch.aot.chips import Topology
from unlearn_jax import cli
from unlearn_jax.registry import UserError

PROGRAMS = ("step", "evaluation", "sampler")
EXAMPLE = "--config=configs/imagenet_mage.py --topology=v5e:16x16 --batch=2048"

flags.DEFINE_string("topology", None, "CHIP:SHAPE, such as v5e:16x16 or v5p:2x2x4, or local.")
flags.DEFINE_integer("slices", 1, "So many of them, connected by the data centre's network.")
flags.DEFINE_string("mesh", "", "DATA:FSDP; by default the config's. -1: what is left.")
flags.DEFINE_integer("batch", 0, "Rows per step over all chips; by default the config's.")
flags.DEFINE_integer("eval_batch", 0, "The same of evaluation; by default protocol.batch_size.")
flags.DEFINE_string("phase", "", "The step of this phase; by default the one that unlearns.")
flags.DEFINE_list("programs", list(PROGRAMS), "Which programs.")
flags.DEFINE_bool("search", True, "Search for the largest batch of the step that fits.")
flags.DEFINE_float(
    "search_seconds", 120, "Begin nothing in that search that would end later; 0: all."
)
flags.DEFINE_bool("quick", False, "Compile in a fifth of the time, and not as well (TPUs only).")
flags.DEFINE_bool("json", False, "Print JSON instead of a table.")
flags.DEFINE_bool("in_this_process", False, "As the command itself does in a child process.")


def main(cfg: ConfigDict) -> None:
    """Run the command."""
    args = flags.FLAGS
    if args.topology is None:
        raise UserError(f"Expected --topology=CHIP:SHAPE. For example:\n  {EXAMPLE}")
    if args.batch < 0 or args.eval_batch < 0:
        raise UserError("Expected --batch and --eval_batch of 1 or more, or 0: the config's.")
    if unknown := set(args.programs) - set(PROGRAMS):
        raise UserError(f"Expected --programs among {PROGRAMS}, got {sorted(unknown)}.")
    topology = chips.parse_topology(args.topology, args.slices)
    if args.in_this_process:
        compile_all(cfg, topology)
        return
    if topology.name != "local":
        if args.mesh:
            chips.parse_mesh(args.mesh, topology.chips, topology.slices)
        check_libtpu()
    report = in_child(sys.argv[1:], topology)
    from launch.aot.cost import table

    print(json.dumps(report) if args.json else table(report))


def in_child(argv: list[str], topology: Topology) -> dict[str, Any]:
    """Make the report of `lines_of_child`, in one."""
    report: dict[str, Any] = {"programs": {}}
    for found in lines_of_child(argv, topology):
        if "doing" in found:
            print(f"{found.pop('doing')} …", file=sys.stderr)
        report["programs"] |= found.pop("programs", {})
        report |= found
    return report


def compile_all(cfg: ConfigDict, topology: Topology) -> None:
    """Print the parts of the report, a line of JSON each, as they are done."""
    from launch.aot import programs
    from launch.aot.cost import QUICK, largest_batch, measure
    from unlearn_jax.config.validation import validate

    args = flags.FLAGS
    validate(cfg)
    mesh = programs.make_mesh(topology, args.mesh, cfg.mesh)
    device = mesh.devices.flat[0]
    chip = topology.chip or chips.by_kind(device.device_kind)
    quick = None if topology.name == "local" else QUICK
    phase, _ = programs.phase_of(cfg, args.phase)
    makers: dict[str, Callable[..., programs.Program]] = {
        "step": lambda **more: programs.step(cfg, mesh, phase=phase, **more),
        "evaluation": lambda **more: programs.evaluation(cfg, mesh, **more),
        "sampler": lambda **more: programs.sampler(cfg, mesh, **more),
    }
    rows = {name: args.batch if name == "step" else args.eval_batch for name in PROGRAMS}
    made = {name: makers[name](rows=rows[name]) for name in args.programs}
    unit = programs.accumulated(cfg, phase)  # rows per chip of the step come in multiples of it
    step = makers["step"](rows=mesh.size * unit)
    state, target = step.args[:2]
    whole = target or state.params
    emit(
        name=cfg.name, phase=phase, topology=topology.name, slices=topology.slices,
        chips=mesh.size, mesh=dict(mesh.shape), device_kind=device.device_kind,
        chip=chip and chip._replace(shapes=())._asdict(),
        parameters=programs.parameters(whole), trained=programs.parameters(state.params),
        created=now(), versions=versions(), quick=args.quick,
    )  # fmt: skip
    fixed = sum(programs.bytes_per_device(tree) for tree in (state, target))
    found: dict[str, Any] = {}
    for name, program in made.items():
        emit(doing=f"compiling {name}, batch {program.batch:,}, for {topology.name}")
        model_flops = 0.0
        if name == "step":
            model_flops = makers["step"](rows=program.batch, remat=False).flops().total
        found[name] = measure(
            program, mesh.size, chip, model_flops=model_flops, options=quick if args.quick else None
        )
        if name == "step":
            found[name]["state_bytes"] = fixed
        emit(programs={name: found[name]})
    if chip and args.search and "step" in found:

        def peak_at(units: int) -> tuple[bool, float | None]:
            program = makers["step"](rows=units * unit * mesh.size)
            facts = measure(program, mesh.size, chip, options=quick)
            return facts["fits"], facts["peak_bytes"]

        def peaks_at(batches: list[int]) -> list[tuple[bool, float | None]]:
            each = " and ".join(str(units * unit) for units in batches)
            emit(doing=f"compiling step, {each} rows per chip, for {topology.name}")
            with ThreadPoolExecutor(len(batches)) as pool:
                return list(pool.map(peak_at, batches))

        first = found["step"]
        known = {0: (True, float(fixed)), int(first["batch_per_chip"]) // unit: (first["fits"],
                 first["peak_bytes"])}  # fmt: skip
        seconds = args.search_seconds or math.inf
        largest = largest_batch(peaks_at, known, chip.hbm_bytes, seconds=seconds)
        in_units = ("batch_per_chip", "too_large", "predicted")
        emit(largest=largest | {key: largest[key] and largest[key] * unit for key in in_units})


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the child goes too
    if "--all" in sys.argv:
        from launch.aot import everything

        everything.define_flags()
        cli.start(everything.main, needs=(), example="--all --minutes=5")
    else:
        cli.start(main, needs=("config",), example=EXAMPLE)
