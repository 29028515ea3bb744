"""Pixels between 0..255 and [-1, 1], and the masks of the tasks."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped, UInt8, UInt64

from unlearn_jax.data import mask_files, masks
from unlearn_jax.data.sizes import Size, shown, sides
from unlearn_jax.registry import UserError

SIDES = ("left", "right", "up", "down")
_OPTIONS = {"inpaint": "hole", "outpaint": "visible", "random_mask": "ratio", "hybrid": None}
_OPTIONS |= dict.fromkeys(SIDES, "hole") | dict.fromkeys(masks.UNCROPPING) | {"masks": "path"}
TASKS = tuple(_OPTIONS)
RANDOM_TASKS = ("random_mask", "hybrid", *masks.UNCROPPING)
"""Tasks whose mask is drawn for each image."""


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
    task: Mapping[str, Any], size: Size, keys: UInt64[np.ndarray, "n 2"]
) -> Float32[np.ndarray, "n h w 1"]:
    """Make masks of the degradation, 1 = to be generated, 0 = visible to the model.

    * `{"name": "inpaint", "hole": f}`: a centred hole, with the image's proportions, is generated.
    * `{"name": "outpaint", "visible": f}`: all but such a centre is generated.
    * `{"name": "left", "hole": f}`, or "right", "up", "down": the first or last int(f * side)
      columns or rows are generated.
    * `{"name": "random_mask", "ratio": f, "patch": p}`: of the h / p * w / p square patches,
      exactly round(f * patches) are generated, another choice for every key.
    * `{"name": "hybrid"}`: a box and brush strokes are generated, others for every key, see
      `masks.hybrid_masks`.
    * `{"name": "uncrop"}`: half of the area is generated, one side of the image ("uncrop_one"), a
      box somewhere ("uncrop_four") or either, see `masks.uncropping_masks`.
    * `{"name": "masks", "path": FILE}`: what the file shows in white, see `mask_files.read`.

    The centre has sides `side - 2 * margin`, margin = round((1 - f) * side / 2) and at least one
    pixel, so it is exactly centred and its sides have the parity of the image's. Halves round up.
    At 256 pixels and f = k / 16, the holes of inpaint and of the sides are those of the released
    MAGE and Palette code; what it calls outpaint k / 16 is "visible": 1 - k / 16. Keys are Philox
    keys (two integers per example); only random tasks look at them.

    Raises:
        UserError: unknown task; a fraction outside (0, 1); a patch that does not divide the size;
            a mask that would be all 0 or all 1; a folder of masks, which are those of a source.
    """
    check_task(task, size)
    if task["name"] == "masks":
        if varies(task):
            raise UserError(
                f"task 'masks': {task['path']} is a folder, with masks for certain images. Give "
                "one file for all, or a mask with each image."
            )
        hole = mask_files.read(task["path"], size)[..., None].astype(np.float32)
        return np.tile(hole, (len(keys), 1, 1, 1))
    if task["name"] == "hybrid":
        return masks.hybrid_masks(size, keys)
    if task["name"] in masks.UNCROPPING:
        return masks.uncropping_masks(task["name"], size, keys)
    if task["name"] == "random_mask":
        return _random_patches(task["ratio"], task["patch"], size, keys)
    if task["name"] in SIDES:
        return np.tile(_side(task["name"], task["hole"], size), (len(keys), 1, 1, 1))
    fraction = task["hole"] if task["name"] == "inpaint" else task["visible"]
    height, width = sides(size)
    y, x = (min(max(_round((1 - fraction) * n / 2), 1), (n - 1) // 2) for n in (height, width))
    centre = np.zeros((height, width, 1), np.float32)
    centre[y : height - y, x : width - x] = 1
    mask = centre if task["name"] == "inpaint" else 1 - centre
    return np.tile(mask, (len(keys), 1, 1, 1))


def varies(task: Mapping[str, Any]) -> bool:
    """Tell whether a task hides other pixels of every image."""
    of_files = task["name"] == "masks" and Path(task["path"]).is_dir()
    return of_files or task["name"] in RANDOM_TASKS


def check_task(task: Mapping[str, Any], size: Size) -> None:
    """Check that `make_mask` can serve this task at this image size; raise UserError if not."""
    name = task.get("name")
    if name not in _OPTIONS:
        raise UserError(f'task: expected "name" to be one of {sorted(_OPTIONS)}, got {name!r}.')
    height, width = sides(size)
    if _OPTIONS[name] is None:
        if min(height, width) < 16:  # so that some of the image is visible
            raise UserError(f"task {name!r}: expected images of at least 16 x 16, got size "
                            f"{shown(size)}.")  # fmt: skip
        return
    option = _OPTIONS[name]
    if name == "masks":
        if not task.get(option):
            raise UserError(
                "task 'masks': expected task.path, a mask for all images or a folder with one for "
                "each, got ''."
            )
        return
    fraction = task.get(option)
    if not _is_number(fraction) or not 0 < fraction < 1:
        raise UserError(
            f"task {name!r}: expected 0 < {option} < 1 (a fraction), got {fraction!r}. "
            f'Example: {{"name": {name!r}, "{option}": 0.5}}.'
        )
    if min(height, width) < 3:
        raise UserError(
            f"task {name!r}: expected images of at least 3 x 3, got size {shown(size)}."
        )
    side = height if name in ("up", "down") else width
    if name in SIDES and not 0 < int(fraction * side):
        raise UserError(
            f"task {name!r}: hole {fraction} of {side} pixels is none. Take a larger hole."
        )
    if name != "random_mask":
        return
    patch = task.get("patch")
    common = math.gcd(height, width)
    if not isinstance(patch, int) or patch < 1 or common % patch:
        fit = [p for p in range(1, common + 1) if common % p == 0 and p < max(height, width)]
        raise UserError(
            f"task 'random_mask': expected a patch that divides the image size {shown(size)}, got "
            f"{patch!r}. Take one of {fit}."
        )
    patches = (height // patch) * (width // patch)
    if not 0 < _round(fraction * patches) < patches:
        raise UserError(
            f"task 'random_mask': ratio {fraction} of {patches} patches masks "
            f"{_round(fraction * patches)}; expected at least one masked and one visible. Take a "
            "smaller patch or another ratio."
        )


def _side(name: str, fraction: float, size: Size) -> Float32[np.ndarray, "h w 1"]:
    mask = np.zeros((*sides(size), 1), np.float32)
    lines = mask if name in ("up", "down") else mask.swapaxes(0, 1)  # views of the same numbers
    side = len(lines)
    hole = int(fraction * side)
    lines[slice(hole) if name in ("left", "up") else slice(side - hole, side)] = 1
    return mask


def _random_patches(
    ratio: float, patch: int, size: Size, keys: UInt64[np.ndarray, "n 2"]
) -> Float32[np.ndarray, "n h w 1"]:
    rows, columns = (side // patch for side in sides(size))
    count = _round(ratio * (rows * columns))
    mask = np.zeros((len(keys), rows * columns), np.float32)
    for row, key in zip(mask, keys, strict=True):
        rng = np.random.Generator(np.random.Philox(key=key))
        row[rng.permutation(rows * columns)[:count]] = 1
    grid = mask.reshape(-1, rows, columns, 1)
    return grid.repeat(patch, axis=1).repeat(patch, axis=2)


def _round(value: float) -> int:
    """Return round to the nearest integer, halves up.

    Float error is forgiven, such as 0.1 * 5 * 5 = 2.5000000001.
    """
    return math.floor(round(value, 9) + 0.5)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
