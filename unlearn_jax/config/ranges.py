"""Numbers of a config: which are finite, and in the range that their key allows."""

import datetime
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from unlearn_jax.data.sizes import sides
from unlearn_jax.data.transforms import TASKS, check_task
from unlearn_jax.registry import UserError

# What keys allow, in words: a test of a number, and their paths.
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "at least 1": (
        lambda x: x >= 1,
        "batch_size accumulate log_every checkpoint.every checkpoint.keep probe_rows "
        "data.num_threads data.prefetch mesh.fsdp protocol.batch_size "
        "protocol.shard_size evaluation.retain_rows evaluation.grid_rows evaluation.resamples "
        "audit.rows audit.draws audit.batch_size audit.relearn.images audit.relearn.every "
        "audit.resurfacing.steps",
    ),
    "at least 0": (
        lambda x: x >= 0,
        "audit.shadows audit.relearn.steps data.train_rows request.per_class "
        "retain.per_class protocol.per_class protocol.grid_rows "
        "sharding.min_bytes",
    ),
    "whole numbers from 0 to 10,000": (
        lambda x: type(x) is int and 0 <= x <= 10_000,
        "data.slices.count",
    ),
    "whole numbers from 0 to 2**32 - 1": (
        lambda x: type(x) is int and 0 <= x < 2**32,
        "seed request.seed retain.seed poison.seed data.train_seed compare.seeds",
    ),
    "whole numbers from 1 to 15": (
        lambda x: type(x) is int and 0 < x < 16,
        "protocol.inpaint protocol.outpaint",
    ),
    "at least 1, or -1": (lambda x: x >= 1 or x == -1, "mesh.data"),
    "above 0": (lambda x: x > 0, "audit.learning_rate audit.resurfacing.learning_rates"),
    "between 0 and 1": (lambda x: 0 <= x <= 1, "poison.fraction poison.jitter"),
    "between 0 and 1, neither": (lambda x: 0 < x < 1, "evaluation.confidence data.slices.last"),
    "at least 0, below 1": (lambda x: 0 <= x < 1, "data.slices.newest"),
}


def not_finite(value: Any, path: str = "config") -> list[str]:
    """List all numbers that are NaN or infinite, wherever they are."""
    if isinstance(value, Mapping):
        parts = [(part, f"{path}.{key}") for key, part in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(part, f"{path}[{i}]") for i, part in enumerate(value)]
    else:
        try:
            bad = isinstance(value, numbers.Number) and not math.isfinite(value)
        except (OverflowError, TypeError):  # too large for a float, or complex
            bad = True
        return [f"{path}: expected a finite number, got {value!r}"] if bad else []
    return [problem for part, where in parts for problem in not_finite(part, where)]


def problems(config: ConfigDict) -> list[str]:
    """List the numbers that their keys do not allow."""
    found = []

    def expect(good: bool, path: str, expected: str, got: Any) -> None:
        if not good:
            found.append(f"config.{path}: expected {expected}, got {got!r}")

    for expected, (good, paths) in _RANGES.items():
        for path in paths.split():
            value = get(config, path)
            values = value if isinstance(value, tuple | list) else (value,)
            expect(all(map(good, values)), path, expected, value)
    for key, most in (("scale", 1), ("ratio", float("inf"))):
        path, value = f"data.augment.{key}", tuple(config.data.augment[key])
        good = len(value) == 2 and all(type(v) in (int, float) for v in value)
        good = good and 0 < value[0] <= value[1] <= most
        expect(good, path, f"0 < least <= largest{' <= 1' if most == 1 else ''}", value)
    if config.data.augment.name and config.data.cache and config.data.resize != "none":
        found.append(
            "config.data.augment: random views are cut from original images, which data.cache does "
            f"not keep with data.resize={config.data.resize!r}; set data.cache to False"
        )
    for section, kind in ((config.request, "random"), (config.retain, "subset")):
        share = section.fraction
        name = "request" if section is config.request else "retain"
        expect(section.kind != kind or 0 < share < 1, f"{name}.fraction", "0 < f < 1", share)
    due = config.request.due
    expect(not due or _is_day(due), "request.due", "a day as 2026-12-31, or ''", due)
    share = config.holdout.fraction
    expect(bool(config.holdout.split) or 0 < share < 1, "holdout.fraction", "0 < f < 1", share)
    try:
        sides(config.data.image_size)
    except UserError as error:
        return [*found, f"config.{error}"]
    for name in {config.task.name, config.task.train or config.task.name} & {*TASKS}:
        try:
            check_task({**config.task, "name": name}, config.data.image_size)
        except UserError as error:
            found.append(f"config.task: {error}")
    return found


def _is_day(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def get(config: ConfigDict, path: str) -> Any:
    """Return the value at a path, such as "data.path"."""
    for key in path.split("."):
        config = config[key]
    return config
