"""Speed on one accelerator, point by point, until the time is over; the next call goes on.

    python -m benchmarks.accelerator --minutes=9 --out=FILE.jsonl [--only=REGEX] [--tiny]
    python -m benchmarks.accelerator --out=FILE.jsonl --list    # what is done, what is missing
    python -m benchmarks.accelerator --out=FILE.jsonl --render  # the table of docs/accelerator.md

Each point is a process of its own with a limit of its own, after which it is ended and recorded
with how far it came. Every point is a line of the file as soon as it ends, with device, versions,
commit and figures; one that is there for this device and these versions is skipped, also if it
failed: delete its line to measure it again. A point starts only if its limit ends within --minutes.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.accelerator import table
from benchmarks.accelerator.points import VERSIONS, Point, die_with_parent, key, points, read
from unlearn_jax import cli
from unlearn_jax.registry import UserError

CHILD = (sys.executable, "-m", "benchmarks.accelerator.child")
PROBE_S = 60.0  # until the device has said what it is
GRACE_S = 10.0  # until a process that was killed is gone


def define_flags() -> None:
    """Define the flags of the command.

    Not at import, as other benchmarks have flags of these names.
    """
    flags.DEFINE_float("minutes", 9, "In all; no point runs longer.", lower_bound=0.1)
    flags.DEFINE_string("out", None, "File with lines of JSON: made, or continued.")
    flags.DEFINE_string("only", "", "Points whose name this regular expression finds.")
    flags.DEFINE_bool("tiny", False, "Models of a few thousand parameters, on any device.")
    flags.DEFINE_bool("list", False, "Show the points instead.")
    flags.DEFINE_bool("render", False, "Write the table of docs/accelerator.md instead.")


def measure(
    chosen: Sequence[Point], out: Path, minutes: float, where: Mapping[str, Any]
) -> tuple[int, int]:
    """Measure points; append a line for each to the file; return (those measured, those left).

    Args:
      chosen: in this order.
      out: the file; compilation caches lie beside it.
      minutes: after which everything has ended.
      where: "device", "platform", "versions" and "commit".
    """
    end = time.monotonic() + 60 * minutes
    found = {key(line["point"], line) for line in read(out)}
    missing = [point for point in chosen if key(point.name, where) not in found]
    out.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    for point in missing:
        waits = point.cache and key(point.cache, where) not in found
        if waits or time.monotonic() + point.limit_s + GRACE_S > end:
            continue  # a shorter one may fit
        print(f"{point.name} (at most {point.limit_s:g} s)", file=sys.stderr, flush=True)
        line = run(point, where, cache_folder(out, point))
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        found.add(key(point.name, where))
        count += 1
        print(f"  {line.get('error') or line['figures']}", file=sys.stderr, flush=True)
    return count, len(missing) - count


def cache_folder(out: Path, point: Point) -> Path:
    """Name the folder of a point's compiled programs; empty it, unless it starts from another's."""
    folder = Path(f"{out}.caches") / (point.cache or point.name).replace("/", "_")
    if not point.cache:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder.absolute()


def run(point: Point, where: Mapping[str, Any], cache: Path) -> dict[str, Any]:
    """Measure a point in a process that is dead when this returns; return its line."""
    start = time.monotonic()
    options = {"kind": point.kind, "options": point.options, "cached": bool(point.cache)}
    spec = json.dumps(options | {"platform": where.get("platform"), "device": where.get("device")})
    with tempfile.TemporaryDirectory() as folder:
        said, errors = Path(folder) / "said", Path(folder) / "errors"
        said.touch()
        with errors.open("w") as file:
            process = subprocess.Popen(
                [*CHILD, spec, str(said)], stdout=file, stderr=file, stdin=subprocess.DEVNULL,
                start_new_session=True, preexec_fn=die_with_parent,
                env=environment(options, where, cache),
            )  # fmt: skip
            try:
                code = process.wait(timeout=max(point.limit_s, 0.1))
            except subprocess.TimeoutExpired:
                code = None
            finally:  # with all that it started
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold it
                    process.wait(timeout=GRACE_S)
        lines, tail = read(said), errors.read_text(errors="replace").strip()[-2000:]
    figures = {k: v for line in lines for k, v in line.items()}
    stage, error = figures.pop("stage", "start"), figures.pop("error", None)
    if code is None:
        error = f"over its limit of {point.limit_s:g} s, in the stage {stage!r}"
    elif code and not error:
        error = f"ended with exit code {code}, in the stage {stage!r}: {tail}"
    line = {"point": point.name, "side": point.options.get("side"), **where, "figures": figures}
    line |= {name: figures.pop(name, None) for name in ("first_step_s", "peak_memory_gib")}
    line |= {"wall_s": round(time.monotonic() - start, 1), "stage": stage}
    return line | ({"error": error} if error else {})


def environment(
    options: Mapping[str, Any], where: Mapping[str, Any], cache: Path
) -> dict[str, str]:
    """Make a child's environment: its own caches; with PyTorch, jax leaves the GPU alone."""
    side = options["options"].get("side", "ours")
    made = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
        "TRITON_CACHE_DIR": f"{cache}/triton",
        "CUDA_CACHE_PATH": f"{cache}/cuda",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",  # nobody else is on the device
    }
    if side != "ours" or where.get("platform") == "cpu":
        made["JAX_PLATFORMS"] = "cpu"
    return os.environ | made


def place() -> dict[str, Any]:
    """Describe the device that jax has, versions, and the commit of the code; null where unknown.

    Raises:
      UserError: no device in a minute.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = run(Point("device", "device", PROBE_S), {}, Path(folder))
    if "error" in found:
        raise UserError(f"Expected a device that jax can use, got: {found['error']}")
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        commit = None
    return {**found["figures"], "versions": versions, "commit": commit}


def main() -> None:
    """Run the command."""
    values = flags.FLAGS
    if not values.out:
        raise UserError("Expected --out=FILE.jsonl, where the figures are or will be.")
    out = Path(values.out)
    if values.render:
        return table.write(read(out))
    start, where = time.monotonic(), place()
    chosen = [point for point in points(values.tiny) if re.search(values.only, point.name)]
    if values.list:
        done = {key(line["point"], line): line for line in read(out)}
        for point in chosen:
            line = done.get(key(point.name, where))
            state = "missing" if line is None else line.get("error", "done").splitlines()[0]
            print(f"{point.name:45} {point.limit_s:5g} s  {state}")
        return None
    if where["platform"] == "cpu" and not values.tiny:
        raise UserError("Expected an accelerator, got only a CPU; --tiny is for any device.")
    longest = max((point.limit_s for point in chosen), default=0)
    if 60 * values.minutes < longest + PROBE_S:
        print(f"Points of up to {longest:g} s need more than --minutes.", file=sys.stderr)
    left = values.minutes - (time.monotonic() - start) / 60
    count, missing = measure(chosen, out, left, where)
    print(f"{count} measured, {missing} missing: {out}")
    return None


if __name__ == "__main__":
    define_flags()
    cli.start(main, needs=(), example="--minutes=9 --out=accelerator.jsonl")
