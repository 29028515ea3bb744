"""Slices of the training images, for exact deletion: which one an image is in, when each enters.

Training is cut into as many segments as there are slices. In segment s, batches are of slices 0 to
s: a fixed share of each batch of slice s, the rest of those before.

**Guarantee**: where an image is depends on the config and that image alone, the steps of a segment
on the config alone, and its batches on the seed and the images of slices 0 to s alone. So nothing
that is computed before slice s enters depends on any image of it or of later slices, nor on how
many there are.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt64
from ml_collections import ConfigDict

from unlearn_jax.data import names
from unlearn_jax.data.holdout import id_keys
from unlearn_jax.data.sampling import Rows
from unlearn_jax.data.sources import Source
from unlearn_jax.registry import UserError


class Segment(NamedTuple):
    """The steps from the entrance of a slice to that of the next, or a part of them."""

    slice: int
    first: int  # step at which it begins
    last: int  # step at which the next one begins
    earlier: Rows  # of slices before
    newest: Rows  # of this slice; empty if all images count the same


def steps_of(cfg: ConfigDict) -> int:
    """Return the steps of the config's stage, of all its phases."""
    return sum(cfg.phases[name].steps for name in cfg.stages[cfg.stage].phases)


def entrances(count: int, steps: int, last: float) -> list[int]:
    """Return the step at which each slice enters: equal segments, and one for the last slice.

    Args:
      count: of slices.
      steps: of the training.
      last: share of the steps from the entrance of the last slice on.

    >>> entrances(4, 100, 0.1)
    [0, 30, 60, 90]
    """
    return [round(steps * (1 - last) * s / max(count - 1, 1)) for s in range(count)]


def problems(cfg: ConfigDict) -> list[str]:
    """List what is wrong with the slices of a config whose numbers are in their ranges."""
    spec, found = cfg.data.slices, []
    if not spec.count:
        return []
    if (spec.column and not spec.file) or (spec.bounds and not spec.column):
        found.append("config.data.slices: bounds are of a column, and a column is of a file")
    if spec.bounds and len(spec.bounds) != spec.count - 1:
        found.append(
            f"config.data.slices.bounds: expected {spec.count - 1} values, where slices 1 to "
            f"{spec.count - 1} begin, got {len(spec.bounds)}"
        )
    if list(spec.bounds) != sorted(spec.bounds, key=_key(spec.bounds)):
        found.append(f"config.data.slices.bounds: expected them to rise, got {spec.bounds}")
    for name, stage in cfg.stages.items():
        if not stage.scratch:
            continue
        steps = sum(cfg.phases[phase].steps for phase in stage.phases)
        starts = entrances(spec.count, steps, spec.last)
        if len({*starts, steps}) <= spec.count:
            found.append(
                f"config.data.slices: {steps} steps of the stage {name!r} are too few for "
                f"{spec.count} segments of which the last has {spec.last:.0%}"
            )
        for phase in stage.phases:
            size = cfg.phases[phase].batch_size or cfg.batch_size
            if spec.newest and not 0 < round(size * spec.newest) < size:
                found.append(
                    f"config.data.slices.newest: {spec.newest} of a batch of {size} "
                    f"(phases.{phase}) is none or all; expected some of both, or 0"
                )
    return found


def assign(source: Source, rows: Rows, spec: ConfigDict) -> Int[np.ndarray, "_"]:
    """Return the slice of each row, in 0 .. spec.count - 1.

    Args:
      source: the data set.
      rows: of it.
      spec: `config.data.slices`.

    Raises:
      UserError: the table lacks an image, has it twice with different values, or a value that is
        no number of a slice.
    """
    ids = [source.ids[row] for row in rows.tolist()]
    if not spec.file:
        return (id_keys(ids) % np.uint64(spec.count)).astype(np.int64)
    value_of = _read(source, spec)
    missing = [id for id in ids if id not in value_of]
    if missing:
        raise UserError(
            f"data.slices.file: {spec.file} does not say the {spec.column} of {len(missing)} of "
            f"{len(ids)} training images, such as {missing[0]!r}. Add them."
        )
    return np.array([_slice(value_of[id], spec) for id in ids], np.int64)


def _read(source: Source, spec: ConfigDict) -> dict[str, str]:
    """Return the value of each image of the table, by id."""
    where, ids = "data.slices.file", names.ids_of(source)
    text = names.read_text(spec.file, where)
    images = names.read_names(text, spec.file, ids, where=where)
    values = names.read_names(text, spec.file, ids, column=spec.column, where=where)
    if len(images) != len(values):
        raise UserError(
            f"{where}: expected in {spec.file} a table of images with a column {spec.column!r}."
        )
    found: dict[str, str] = {}
    for image, value in zip(images, values, strict=True):
        row = ids.find(image.text)
        if row >= 0 and found.setdefault(source.ids[row], value.text) != value.text:
            raise UserError(
                f"{where}: {spec.file}, line {image.line}: {image.text!r} is there a second time, "
                f"with another {spec.column}. Keep one line."
            )
    return found


def _slice(value: str, spec: ConfigDict) -> int:
    if spec.bounds:
        key = _key(spec.bounds)
        try:
            return bisect_right([key(bound) for bound in spec.bounds], key(value))
        except ValueError as error:
            raise UserError(
                f"data.slices.column: expected numbers, as the bounds are, got {value!r}."
            ) from error
    if not value.isdecimal() or int(value) >= spec.count:
        raise UserError(
            f"data.slices.column: expected the number of a slice, 0..{spec.count - 1}, got "
            f"{value!r}. For other values say with data.slices.bounds where slices begin."
        )
    return int(value)


def _key(bounds: Sequence[Any]) -> Any:
    """Return how values are compared: as numbers if all bounds are numbers, else as texts."""
    try:
        [float(bound) for bound in bounds]
    except ValueError:
        return str
    return float


def segments(source: Source, rows: Rows, cfg: ConfigDict) -> list[Segment]:
    """Return the segments of a training of these rows; none if the config has no slices.

    Raises:
      UserError: a table that does not say all slices; slice 0 has no image.
    """
    spec = cfg.data.slices
    if not spec.count:
        return []
    of, steps = assign(source, rows, spec), steps_of(cfg)
    if not (of == 0).any():
        raise UserError(
            "data.slices: slice 0 has no image left, and training begins with it. Put images that "
            "will stay there, or retrain with other slices."
        )
    starts = [*entrances(spec.count, steps, spec.last), steps]
    found = []
    for s in range(spec.count):
        earlier, newest = rows[of < s], rows[of == s]
        if not spec.newest:
            earlier, newest = rows[of <= s], rows[:0]
        found.append(Segment(s, starts[s], starts[s + 1], earlier, newest))
    return found


def within(parts: Sequence[Segment], first: int, steps: int) -> list[Segment]:
    """Return the parts of segments that are in a phase, their steps counted from its first one."""
    cut = [
        part._replace(first=max(part.first - first, 0), last=min(part.last - first, steps))
        for part in parts
    ]
    return [part for part in cut if part.first < part.last]


def digests(
    source: Source, rows: Rows, spec: ConfigDict, pixels: UInt64[np.ndarray, "n 2"]
) -> list[dict[str, Any]]:
    """Return {"n", "sha256"} of each slice: a hash of its images' ids and pixels, in any order.

    Args:
      source: the data set.
      rows: n of it, that are trained on.
      spec: `config.data.slices`.
      pixels: a hash of each of these n images.
    """
    of = assign(source, rows, spec)
    ids = [source.ids[row].encode("utf-8", "surrogateescape") for row in rows.tolist()]
    each = [hashlib.sha256(id + b"\0" + hash.astype("<u8").tobytes()).digest()
            for id, hash in zip(ids, pixels, strict=True)]  # fmt: skip
    found = []
    for s in range(spec.count):
        inside = sorted(each[i] for i in np.flatnonzero(of == s))
        found.append({"n": len(inside), "sha256": hashlib.sha256(b"".join(inside)).hexdigest()})
    return found
