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
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from absl import flags

from launch.aot import child
from launch.aot.all_programs import LINES, MODELS, Point, done, makers, missing, points
from launch.aot.chips import parse_topology
from unlearn_jax.registry import UserError

TOGETHER = 8  # programs in a process, which takes seconds to start; the last ones share the cores


def define_flags() -> None:
    """Define the flags of `launch.aot` with --all."""
    flags.DEFINE_bool("all", False, "Every distinct program of a request, for all models.")
    flags.DEFINE_bool("missing", False, "List the programs that are not done, and compile none.")
    flags.DEFINE_float("minutes", 0, "Begin no program after that time; 0: all.")
    flags.DEFINE_integer("jobs", os.cpu_count() or 1, "So many processes at once.")
    flags.DEFINE_list("models", list(MODELS), "Only these.")
    flags.DEFINE_list("only", [], "Only these programs.")
    flags.DEFINE_string("out", str(LINES), "Where the lines are.")


def main() -> None:
    """Run the command."""
    args = flags.FLAGS
    if unknown := set(args.models) - set(MODELS):
        raise UserError(f"Expected --models among {', '.join(MODELS)}; got {sorted(unknown)}.")
    if args.in_this_process:
        compile_here(args.models[0], args.only, args.minutes)
        return
    every, path = points(), Path(args.out)
    if unknown := set(args.only) - {point.program for point in every}:
        raise UserError(f"Expected --only among the programs of --missing; got {sorted(unknown)}.")
    chosen = [p for p in every if p.model in args.models and p.program in (args.only or p)]
    todo = missing(chosen, path)
    if args.missing:
        for point in todo:
            print(f"{point.model}: {point.program}")
        print(f"{len(todo)} of {len(every)} programs are missing.", file=sys.stderr)
        return
    child.check_libtpu()
    compile_all(todo, path, 60 * args.minutes, args.jobs)
    left = missing(every, path)
    print(f"{len(every) - len(left)} of {len(every)} programs are compiled.", file=sys.stderr)
    if failed := [p for p in todo if p in left and p in done(path)]:
        raise UserError(f"{len(failed)} failed: " + "; ".join(": ".join(p) for p in failed))


def compile_all(todo: list[Point], path: Path, seconds: float, jobs: int) -> None:
    """Append a line for each program, a few of a model in each process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds if seconds else float("inf")
    by_model: dict[str, list[str]] = {}
    stop = threading.Event()
    for point in todo:
        by_model.setdefault(point.model, []).append(point.program)
    with ThreadPoolExecutor(jobs) as pool:
        tasks = [
            pool.submit(_compile_some, model, names[first : first + TOGETHER], path, end, stop)
            for model, names in by_model.items()
            for first in range(0, len(names), TOGETHER)
        ]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            child.kill_all()
            raise


def _compile_some(
    model: str, names: list[str], path: Path, end: float, stop: threading.Event
) -> None:
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
                    _append(path, model, doing, found)
                    names, doing = [name for name in names if name != doing], None
            return
        except ValueError as error:  # the process ended: with the others in another one
            if doing is None or stop.is_set():
                raise
            _append(path, model, doing, {"error": str(error)})
            names = [name for name in names if name != doing]


def _append(path: Path, model: str, program: str, found: Mapping[str, Any]) -> None:
    line = {"point": Point(model, program)._asdict(), "topology": MODELS[model][1], **found}
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def compile_here(model: str, names: list[str], minutes: float) -> None:
    """Emit the facts of each program of a model, in this process."""
    from launch.aot.cost import QUICK, measure

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
