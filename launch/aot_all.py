"""Every distinct program of a request, compiled once for a TPU, for four models and two sizes.

    python -m launch.aot --all              # compiles what is missing, as many at once as cores
    python -m launch.aot --all --minutes=4  # begins none after 4 minutes
    python -m launch.aot --all --missing    # lists what is not done, and compiles nothing

Each program is a line of results/scale/programs.jsonl as soon as it is done, so an interrupted run
goes on where it was. One that fails or does not fit is a line too, and stays missing.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from launch import child
from launch.chips import parse_topology

LINES = Path("results/scale/programs.jsonl")
MODELS = {  # config and topology; 4,096 rows of MAGE's pretraining need 16 chips
    "autoencoder-small": ("configs/quickstart.py", "v5e:2x2"),
    "mae-small": ("configs/cifar10_mae.py", "v5e:2x2"),
    "mage-small": ("configs/cifar10_mage.py", "v5e:2x2"),
    "palette-small": ("configs/cifar10_palette.py", "v5e:2x2"),
    "autoencoder": ("configs/cifar10_autoencoder.py", "v5e:4x4"),
    "mage": ("configs/imagenet_mage.py", "v5e:4x4"),
    "mae": ("configs/imagenet_mae.py", "v5e:4x4"),
    "palette": ("configs/places365_palette.py", "v5e:4x4"),
}
OF_NO_MODEL = ("tower: ", "moments: ", "audit of ")  # the same for all models on a topology

flags.DEFINE_bool("all", False, "Every distinct program of a request, for all models.")
flags.DEFINE_bool("missing", False, "List the programs that are not done, and compile none.")
flags.DEFINE_float("minutes", 0, "Begin no program after that time; 0: all.")
flags.DEFINE_integer("jobs", os.cpu_count() or 1, "So many models at once.")
flags.DEFINE_list("models", list(MODELS), "Only these.")
flags.DEFINE_list("only", [], "Only these programs.")


class Point(NamedTuple):
    """One program of one model."""

    model: str
    program: str


def main() -> None:
    """The binary."""
    args = flags.FLAGS
    if unknown := set(args.models) - set(MODELS):
        raise ValueError(f"Expected --models among {', '.join(MODELS)}; got {sorted(unknown)}.")
    if args.in_this_process:
        compile_here(args.models[0], args.only, args.minutes)
        return
    every = points()
    if unknown := set(args.only) - {point.program for point in every}:
        raise ValueError(f"Expected --only among the programs of --missing; got {sorted(unknown)}.")
    todo = [p for p in missing(every) if p.model in args.models and p.program in (args.only or p)]
    if args.missing:
        for point in todo:
            print(f"{point.model}: {point.program}")
        print(f"{len(todo)} of {len(every)} programs are missing.", file=sys.stderr)
        return
    child.check_libtpu()
    compile_all(todo, 60 * args.minutes, args.jobs)
    left = missing(every)
    print(f"{len(every) - len(left)} of {len(every)} programs are compiled.", file=sys.stderr)
    if failed := [p for p in todo if p in left and p in done()]:
        raise ValueError(f"{len(failed)} failed: " + "; ".join(": ".join(p) for p in failed))


def points() -> list[Point]:
    """All programs; what is the same for two models once."""
    found: dict[tuple[str, str], Point] = {}
    for model, (_, topology) in MODELS.items():
        for program in makers(model, local=True):
            shared = topology if program.startswith(OF_NO_MODEL) else model
            found.setdefault((shared, program), Point(model, program))
    return list(found.values())


def makers(model: str, local: bool = False) -> Mapping[str, Callable[[], Any]]:
    """What makes each program of a model, for its topology, or for this machine's devices."""
    from launch import aot_formula, inventory, programs

    config, topology = MODELS[model]
    topology = parse_topology("local" if local else topology)
    return inventory.programs_of(aot_formula.load(config), programs.make_mesh(topology, "-1:1", {}))


def done() -> dict[Point, dict[str, Any]]:
    """The last line of each program that was tried."""
    lines = LINES.read_text().splitlines() if LINES.exists() else []
    return {Point(**found["point"]): found for found in map(json.loads, lines)}


def missing(every: list[Point]) -> list[Point]:
    """Those that were not compiled, or failed, or do not fit."""
    found = done()
    return [p for p in every if not found.get(p, {}).get("fits")]


def compile_all(todo: list[Point], seconds: float, jobs: int) -> None:
    """Appends a line for each program, each model in a process of its own."""
    LINES.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds if seconds else float("inf")
    by_model: dict[str, list[str]] = {}
    for point in todo:
        by_model.setdefault(point.model, []).append(point.program)
    with ThreadPoolExecutor(jobs) as pool:
        tasks = [pool.submit(_compile_model, *item, end) for item in by_model.items()]
        for task in tasks:
            task.result()


def _compile_model(model: str, names: list[str], end: float) -> None:
    topology = parse_topology(MODELS[model][1])
    while names and (left := end - time.monotonic()) > 0:
        argv = ["--all", f"--models={model}", f"--only={','.join(names)}"]
        argv += [f"--minutes={left / 60}"] if end < float("inf") else []
        doing = None
        try:
            for found in child.lines_of_child(argv, topology):
                if "doing" in found:
                    doing = found["doing"]
                    print(f"{model}: {doing} …", file=sys.stderr)
                else:
                    _append(model, doing, found)
                    names, doing = [name for name in names if name != doing], None
            return
        except ValueError as error:  # the process ended: with the others in another one
            if doing is None:
                raise
            _append(model, doing, {"error": str(error)})
            names = [name for name in names if name != doing]


def _append(model: str, program: str, found: Mapping[str, Any]) -> None:
    line = {"point": Point(model, program)._asdict(), "topology": MODELS[model][1], **found}
    with LINES.open("a") as file:
        file.write(json.dumps(line) + "\n")


def compile_here(model: str, names: list[str], minutes: float) -> None:
    """Emits the facts of each program of a model, in this process."""
    from launch.report import QUICK, measure

    end = time.monotonic() + 60 * minutes if minutes else float("inf")
    topology = parse_topology(MODELS[model][1])
    made = makers(model)
    for name in names:
        if time.monotonic() > end:
            return
        child.emit(doing=name)
        began = time.process_time()
        try:
            program = made[name]()
            found = measure(program, topology.chips, topology.chip, options=QUICK)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"[:2000]}
        facts = {"cpu_s": time.process_time() - began, "created": child.now()}
        child.emit(**found, **facts, versions=child.versions())
