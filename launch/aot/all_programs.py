"""Which programs `launch.aot --all` compiles, of which models, and what became of them so far."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from launch.aot.chips import parse_topology

LINES = Path("results/scale/programs.jsonl")
# Config and topology: 4,096 rows of MAGE's pretraining need 16 chips, 96 of Palette's 32.
MODELS = {
    "autoencoder-small": ("configs/quickstart.py", "v5e:2x2"),
    "mae-small": ("configs/cifar10_mae.py", "v5e:2x2"),
    "mage-small": ("configs/cifar10_mage.py", "v5e:2x2"),
    "palette-small": ("configs/cifar10_palette.py", "v5e:2x2"),
    "autoencoder": ("configs/cifar10_autoencoder.py", "v5e:4x4"),
    "mage": ("configs/imagenet_mage.py", "v5e:4x4"),
    "mae": ("configs/imagenet_mae.py", "v5e:4x4"),
    "palette": ("configs/places365_palette.py", "v5e:4x8"),
}
OF_NO_MODEL = ("tower: ", "moments: ", "audit of ")  # the same for all models


class Point(NamedTuple):
    """One program of one model."""

    model: str
    program: str


def points() -> list[Point]:
    """List all programs; what is the same for two models comes once."""
    found: dict[tuple[str, str], Point] = {}
    for model in MODELS:
        for program in makers(model, local=True):
            shared = "" if program.startswith(OF_NO_MODEL) else model
            found.setdefault((shared, program), Point(model, program))
    return list(found.values())


def makers(model: str, local: bool = False) -> Mapping[str, Callable[[], Any]]:
    """Make each program of a model, lazily, for its topology, or for this machine's devices."""
    from launch.aot import formula, inventory, programs

    config, topology = MODELS[model]
    topology = parse_topology("local" if local else topology)
    return inventory.programs_of(formula.load(config), programs.make_mesh(topology, "-1:1", {}))


def done(path: Path = LINES) -> dict[Point, dict[str, Any]]:
    """Read the last line of each program that was tried."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {Point(**found["point"]): found for found in map(json.loads, lines)}


def missing(every: list[Point], path: Path = LINES) -> list[Point]:
    """List the programs that were not compiled, or failed, or do not fit."""
    found = done(path)
    return [p for p in every if not found.get(p, {}).get("fits")]
