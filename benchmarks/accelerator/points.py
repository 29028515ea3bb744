"""The points that are measured, in order of value; their lines on disk; how their processes end."""

import contextlib
import ctypes
import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

QUICK_TESTS = (sys.executable, "-m", "pytest", "-q", "--quick")  # what `make quick` runs
VERSIONS = ("jax", "jaxlib", "torch")

CONFIGS = {"mae": "imagenet_mae", "mage": "imagenet_mage", "palette": "places365_palette"}
TRAINED = {"mae": 256, "mage": 128, "palette": 32}  # images per step
UNLEARNED = {"mae": 128, "mage": 128, "palette": 32}  # the same; Palette's config says 96
SAMPLED = {"mage": 32, "palette": 16}
TINY = {
    "mae": {"image_size": 16, "patch": 4, "dim": 32, "depth": 1, "heads": 2, "decoder_dim": 16,
            "decoder_depth": 1, "decoder_heads": 2, "dtype": "float32"},
    "mage": {"image_size": 16, "dim": 16, "depth": 1, "heads": 2, "decoder_dim": 16,
             "decoder_depth": 1, "decoder_heads": 2, "class_slots": 80, "dtype": "float32",
             "tokenizer": {"ch": 8, "ch_mult": (1, 2), "groups": 4, "codebook": 16, "z_dim": 4,
                           "res_blocks": 1}},
    "palette": {"image_size": 16, "inner": 8, "mults": (1, 2), "res_blocks": 1, "groups": 4,
                "head_channels": 8, "timesteps": 20, "dtype": "float32"},
}  # fmt: skip


class Point(NamedTuple):
    """One process's measurement.

    Attributes:
      name: what, of which model, by which side.
      kind: a function of `child.KINDS`.
      limit_s: after which it is ended.
      options: keyword arguments of that function.
      cache: name of the point whose compilation cache it starts with; "": an empty one.
    """

    name: str
    kind: str
    limit_s: float
    options: Mapping[str, Any] = {}
    cache: str = ""


def points(tiny: bool = False) -> list[Point]:
    """List all points, the most valuable first; `tiny` ones take seconds on a CPU."""
    config = {"config": "tests/helpers/tiny.py"} if tiny else {}
    found = [
        Point("quickstart", "quickstart", 240, config),
        Point("tests", "tests", 360, {"command": QUICK_TESTS}),
    ]
    for name in ("mae", "mage", "palette"):
        found += _training(name) + _unlearning(name) + _sampling(name)
    found += [
        Point("fid", "fid", 240, {"images": 10_000, "batch_size": 256}),
        Point("input", "loader", 180, {"batch_size": 256, "images": 1024, "epochs": 8}),
        Point("input/mae", "feed", 400, {"batch_size": 256, "steps": 60, "images": 1024}),
    ]
    return [_small(point) for point in found] if tiny else found


def _training(name: str) -> list[Point]:
    options = {"name": name, "batch_size": TRAINED[name], "steps": 20}
    return _sides(f"train/{CONFIGS[name]}", "training", options, ("compiled", "eager"))


def _unlearning(name: str) -> list[Point]:
    found = []
    for objective in ("calibrated", "l2_encoder"):
        options = {"name": name, "batch_size": UNLEARNED[name], "steps": 20}
        options["objective"] = objective
        sides = ("published", "clever_compiled") if objective == "l2_encoder" else ()
        found += _sides(f"unlearn/{CONFIGS[name]}/{objective}", "unlearning", options, sides)
    return found


def _sampling(name: str) -> list[Point]:
    if name == "mae":
        return []  # one pass
    found, options = [], {"name": name, "batch_size": SAMPLED[name]}
    for number in (6, 14) if name == "mage" else (50, 1000):
        title, more = f"sample/{CONFIGS[name]}/{number}", options | {"taken": number}
        found.append(Point(f"{title}/ours", "sampling", 300, more | {"side": "ours"}))
        if name == "mage" or number == 1000:  # the release has no strided sampler
            for side in ("published", "compiled"):
                found.append(Point(f"{title}/{side}", "sampling", 240, more | {"side": side}))
    return found


def _sides(title: str, kind: str, options: dict, sides: tuple[str, ...]) -> list[Point]:
    ours = Point(f"{title}/ours", kind, 330, options | {"side": "ours"})
    again = Point(f"{title}/ours_cached", kind, 180, options | {"side": "ours"}, ours.name)
    theirs = [Point(f"{title}/{side}", kind, 330, options | {"side": side}) for side in sides]
    return [ours, again, *theirs]


def _small(point: Point) -> Point:
    few = {"batch_size": 8, "steps": 2, "images": 48, "epochs": 1}
    options = {k: few.get(k, v) for k, v in point.options.items()}
    if "name" in options:
        options["fields"] = TINY[options["name"]]
    if point.kind == "sampling" and options["name"] == "palette":
        options["taken"] = 20 if options["taken"] == 1000 else 5
    if point.kind == "tests":
        options["command"] = (*QUICK_TESTS[:-1], "tests/launch/aot/test_chips.py")
    if point.kind == "feed":
        options |= {"steps": 15, "fields": TINY["mae"]}
    cache = point.cache and f"tiny/{point.cache}"
    return point._replace(name=f"tiny/{point.name}", options=options, cache=cache)


def key(point: str, line: Mapping[str, Any]) -> tuple:
    """Return what makes two lines the same measurement: the point, the device and the versions."""
    return (point, line["device"], *sorted(line["versions"].items()))


def read(file: Path) -> list[dict[str, Any]]:
    """Read all whole lines; what a kill left of a last one is cut off the file."""
    if not file.exists():
        return []
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with file.open("r+b") as opened:
            opened.truncate(len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def die_with_parent() -> None:
    """Have Linux end this process when the one that started it ends, however that ends."""
    with contextlib.suppress(AttributeError, OSError):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
