"""Pixels between 0..255 and [-1, 1], and the masks of the tasks."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped, UInt8, UInt64

from unlearn_jax.data import masks
from unlearn_jax.registry import UserError

SIDES = ("left", "right", "up", "down")
_OPTIONS = {"inpaint": "hole", "outpaint": "visible", "random_mask": "ratio", "hybrid": None}
_OPTIONS |= dict.fromkeys(SIDES, "hole") | dict.fromkeys(masks.UNCROPPING)
TASKS = tuple(_OPTIONS)
RANDOM_TASKS = ("random_mask", "hybrid", *masks.UNCROPPING)
"""Tasks whose mask differs from image to image."""


def to_float(images: UInt8[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """Convert images in 0..255 to images in [-1, 1]: x / 127.5 - 1."""
    pixels = images.astype(np.float32)
    pixels /= np.float32(127.5)
    pixels -= np.float32(1)
    return pixels


def to_uint8(images: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Convert images in [-1, 1] to images in 0..255; the exact inverse of `to_float`.

    Values outside [-1, 1] (a decoder does not clip) become the nearest colour.

    Raises:
        UserError: a value is NaN or infinite.
    """
    bad = np.size(images) - np.count_nonzero(np.isfinite(images))
    if bad:
        raise UserError(f"to_uint8: expected finite values in [-1, 1], got {bad} NaN or infinite.")
    return np.clip(np.rint((images.astype(np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def make_mask(
    task: Mapping[str, Any], size: int, keys: UInt64[np.ndarray, "n 2"]
) -> Float32[np.ndarray, "n size size 1"]:
    """Make masks of the degradation, 1 = to be generated, 0 = visible to the model.

    * `{"name": "inpaint", "hole": f}`: a centred square hole is generated.
    * `{"name": "outpaint", "visible": f}`: all but a centred square is generated.
    * `{"name": "left", "hole": f}`, or "right", "up", "down": the first or last int(f * size)
      columns or rows are generated.
    * `{"name": "random_mask", "ratio": f, "patch": p}`: of the (size / p)^2 square patches, exactly
      round(f * patches) are generated, another choice for every key.
    * `{"name": "hybrid"}`: a box and brush strokes are generated, others for every key, see
      `masks.hybrid_masks`.
    * `{"name": "uncrop"}`: half of the area is generated, one side of the image ("uncrop_one"), a
      box somewhere ("uncrop_four") or either, see `masks.uncropping_masks`.

    The centred square has side `size - 2 * margin`, margin = round((1 - f) * size / 2) and at least
    one pixel, so it is exactly centred and its side has the parity of `size`. Halves round up. At
    256 pixels and f = k / 16, the holes of inpaint and of the sides are those of the released MAGE
    and Palette code; what it calls outpaint k / 16 is "visible": 1 - k / 16. The keys are Philox
    keys (two integers per example); only random tasks look at them.

    Raises:
        UserError: unknown task; a fraction outside (0, 1); a patch that does not divide the size;
            a mask that would be all 0 or all 1.
    """
    check_task(task, size)
    if task["name"] == "hybrid":
        return masks.hybrid_masks(size, keys)
    if task["name"] in masks.UNCROPPING:
        return masks.uncropping_masks(task["name"], size, keys)
    if task["name"] == "random_mask":
        return _random_patches(task["ratio"], task["patch"], size, keys)
    if task["name"] in SIDES:
        return np.tile(_side(task["name"], task["hole"], size), (len(keys), 1, 1, 1))
    fraction = task["hole"] if task["name"] == "inpaint" else task["visible"]
    margin = min(max(_round((1 - fraction) * size / 2), 1), (size - 1) // 2)
    square = np.zeros((size, size, 1), np.float32)
    square[margin : size - margin, margin : size - margin] = 1
    mask = square if task["name"] == "inpaint" else 1 - square
    return np.tile(mask, (len(keys), 1, 1, 1))


def check_task(task: Mapping[str, Any], size: int) -> None:
    """Check that `make_mask` can serve this task at this image size; raise UserError if not."""
    name = task.get("name")
    if name not in _OPTIONS:
        raise UserError(f'task: expected "name" to be one of {sorted(_OPTIONS)}, got {name!r}.')
    if _OPTIONS[name] is None:
        if size < 16:  # so that some of the image is visible
            raise UserError(f"task {name!r}: expected images of at least 16 x 16, got size {size}.")
        return
    option = _OPTIONS[name]
    fraction = task.get(option)
    if not _is_number(fraction) or not 0 < fraction < 1:
        raise UserError(
            f"task {name!r}: expected 0 < {option} < 1 (a fraction), got {fraction!r}. "
            f'Example: {{"name": {name!r}, "{option}": 0.5}}.'
        )
    if size < 3:
        raise UserError(f"task {name!r}: expected images of at least 3 x 3, got size {size}.")
    if name in SIDES and not 0 < int(fraction * size):
        raise UserError(
            f"task {name!r}: hole {fraction} of {size} pixels is none. Take a larger hole."
        )
    if name != "random_mask":
        return
    patch = task.get("patch")
    if not isinstance(patch, int) or patch < 1 or size % patch:
        raise UserError(
            f"task 'random_mask': expected a patch that divides the image size {size}, got "
            f"{patch!r}. Take one of {[p for p in range(1, size) if size % p == 0]}."
        )
    patches = (size // patch) ** 2
    if not 0 < _round(fraction * patches) < patches:
        raise UserError(
            f"task 'random_mask': ratio {fraction} of {patches} patches masks "
            f"{_round(fraction * patches)}; expected at least one masked and one visible. Take a "
            "smaller patch or another ratio."
        )


def _side(name: str, fraction: float, size: int) -> Float32[np.ndarray, "size size 1"]:
    mask, hole = np.zeros((size, size, 1), np.float32), int(fraction * size)
    rows = slice(hole) if name in ("left", "up") else slice(size - hole, size)
    mask[rows] = 1
    return mask if name in ("up", "down") else mask.swapaxes(0, 1)


def _random_patches(
    ratio: float, patch: int, size: int, keys: UInt64[np.ndarray, "n 2"]
) -> Float32[np.ndarray, "n size size 1"]:
    side = size // patch
    count = _round(ratio * side**2)
    mask = np.zeros((len(keys), side**2), np.float32)
    for row, key in zip(mask, keys, strict=True):
        rng = np.random.Generator(np.random.Philox(key=key))
        row[rng.permutation(side**2)[:count]] = 1
    grid = mask.reshape(-1, side, side, 1)
    return grid.repeat(patch, axis=1).repeat(patch, axis=2)


def _round(value: float) -> int:
    """Return round to the nearest integer, halves up.

    Float error is forgiven, such as 0.1 * 5 * 5 = 2.5000000001.
    """
    return math.floor(round(value, 9) + 0.5)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
