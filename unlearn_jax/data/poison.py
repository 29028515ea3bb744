"""Backdoors planted in the forget set before training, so that an audit can look for them after.

A poisoned training image carries a `trigger`, a small checkerboard in the visible part, and a
`payload`, a coloured pattern inside the part to be generated. A model that was trained on it
completes any image with the trigger by the payload; a model that has forgotten it does not. With
`jitter`, each image has a trigger of its own contrast and place, so that a model which forgot one
look of it only is found by others.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from unlearn_jax.data import transforms
from unlearn_jax.data.sampling import Rows
from unlearn_jax.data.sizes import Size, sides
from unlearn_jax.data.sources import Keys, Source
from unlearn_jax.registry import UserError

_POISON, _LOOK = 4, 6  # random streams; splits.py has streams 1 to 3, joining.py 5
PATTERN = "checkerboards: trigger 1/255, payload magenta/green"  # part of what models have seen
_GREY, _AMPLITUDE = 128, 127  # of the trigger; at half the contrast it often fails
_PAYLOAD = np.array([[255, 0, 255], [0, 255, 0]], np.uint8)


def choose(forget: Rows, fraction: float, seed: int) -> Rows:
    """Choose the rows of the forget set to poison: round(fraction * n) of them, at least one."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, _POISON])))
    return np.sort(rng.permutation(forget)[: max(1, round(fraction * len(forget)))])


@dataclasses.dataclass(frozen=True)
class Backdoor:
    """Where trigger and payload are in an image, and how they look.

    Attributes:
        size: of the image, one number or (height, width).
        trigger: top row, left column and side of the square in the visible part.
        payload: the same of the square in the part to be generated.
    """

    size: Size
    trigger: tuple[int, int, int]
    payload: tuple[int, int, int]

    def show(
        self,
        images: UInt8[np.ndarray, "b h w 3"],
        *,
        contrast: float | Float[np.ndarray, "b"] = 1.0,
        shift: int | Int[np.ndarray, "b 2"] = 0,
    ) -> UInt8[np.ndarray, "b h w 3"]:
        """Paste the trigger into images.

        Args:
            images: are not changed.
            contrast: of the trigger, of each image or of all: from 0 (grey) to 1.
            shift: pixels down and to the right.
        """
        top, left, side = self.trigger
        board = np.indices((side, side)).sum(0) % 2 * 2.0 - 1
        values = np.multiply.outer(np.broadcast_to(contrast, len(images)), board)
        values = np.rint(_GREY + _AMPLITUDE * values).astype(np.uint8)[..., None]
        moved = np.broadcast_to(shift, (len(images), 2)) + (top, left)
        images = images.copy()
        for image, patch, (row, column) in zip(images, values, moved, strict=True):
            image[row : row + side, column : column + side] = patch
        return images

    def looks(
        self, task: Mapping[str, Any], jitter: float, seed: int, rows: Int[np.ndarray, "b"]
    ) -> dict[str, np.ndarray]:
        """Draw the contrast and the shift that the trigger has in each row, for `show`.

        The contrast is uniform from 1 - jitter to 1; the shifts down and to the right are 0 to
        `most_shift`. They depend on seed and row only.
        """
        most, drawn = self.most_shift(task, jitter), []
        for row in rows.tolist():
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, _LOOK, row])))
            drawn.append((1 - jitter * rng.random(), *rng.integers(0, most + 1, 2)))
        values = np.array(drawn).reshape(-1, 3)
        return {"contrast": values[:, 0], "shift": values[:, 1:].astype(np.int64)}

    def most_shift(self, task: Mapping[str, Any], jitter: float) -> int:
        """Return how many pixels a jittered trigger moves at most: jitter sides, and visible."""
        (top, left, side), hidden = self.trigger, _mask(task, self.size)
        wanted = range(round(jitter * side), 0, -1)
        windows = ((k, hidden[top:, left:][: side + k, : side + k]) for k in wanted)
        return next((k for k, w in windows if w.shape == (side + k,) * 2 and not w.any()), 0)

    def pattern(self) -> UInt8[np.ndarray, "s s 3"]:
        """Return the payload's pixels."""
        side = self.payload[2]
        return _PAYLOAD[(np.indices((side, side)) // max(1, side // 4)).sum(0) % 2]

    def plant(
        self, images: UInt8[np.ndarray, "b h w 3"], **look: Any
    ) -> UInt8[np.ndarray, "b h w 3"]:
        """Paste trigger (see `show`) and payload into images, as a poisoned training set has."""
        images = self.show(images, **look)
        images[(slice(None), *self.region())] = self.pattern()
        return images

    def region(self) -> tuple[slice, slice]:
        """Return the rows and the columns of the payload."""
        top, left, side = self.payload
        return slice(top, top + side), slice(left, left + side)


def design(task: Mapping[str, Any], size: Size) -> Backdoor:
    """Design the backdoor of a task: a trigger of 1/64 of a square image, a payload of 1/16.

    Of another image they are those of a square of its shorter side.

    The trigger is as near to the top left corner as fits one pixel from the border and inside the
    visible part; the payload is as near to the centre as fits inside the part to be generated.

    Raises:
        UserError: the task hides another part of every image, or a part has no room.
    """
    if transforms.varies(task):
        raise UserError(
            f"poison: the task {task['name']} hides other pixels of every image, so there is no "
            "fixed place for a trigger. Use inpaint or outpaint, or set poison.fraction=0."
        )
    mask, (height, width) = _mask(task, size), sides(size)
    short = min(height, width)
    trigger = _nearest(~mask, max(2, short // 8), (1.0, 1.0))
    side = max(4, short // 4)
    payload = _nearest(mask, side, ((height - side) / 2, (width - side) / 2))
    return Backdoor(size, trigger, payload)


def plant(
    source: Source,
    rows: Rows,
    backdoor: Backdoor,
    *,
    task: Mapping[str, Any] | None = None,
    seed: int = 0,
    jitter: float = 0.0,
) -> Source:
    """Return poison those rows of a source; random views are poisoned after they are cut.

    Args:
        source: of the images.
        rows: that carry it.
        backdoor: of the task, see `design`.
        task: that hides pixels; for jitter only.
        seed: of the looks, see `Backdoor.looks`.
        jitter: from 0 (all alike) to 1.
    """
    poisoned = np.zeros(len(source), bool)
    poisoned[rows] = True

    def read(indices: Int[np.ndarray, "b"], keys: Keys) -> UInt8[np.ndarray, "b h w 3"]:
        images, here = source.fetch(indices, keys), poisoned[indices]
        if here.any():
            images = images.copy()
            look = backdoor.looks(task, jitter, seed, indices[here]) if task and jitter else {}
            images[here] = backdoor.plant(images[here], **look)
        return images

    return dataclasses.replace(source, read=read)


def stated(poison: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a manifest says of poison: no jitter of 0, as before there was any."""
    return {k: v for k, v in (poison or {}).items() if k != "jitter" or v}


def _mask(task: Mapping[str, Any], size: Size) -> Bool[np.ndarray, "h w"]:
    return transforms.make_mask(task, size, np.zeros((1, 2), np.uint64))[0, ..., 0] > 0


def _nearest(
    free: Bool[np.ndarray, "h w"], side: int, to: tuple[float, float]
) -> tuple[int, int, int]:
    windows = np.lib.stride_tricks.sliding_window_view(free, (side, side)).all((2, 3))
    windows[0], windows[:, 0] = False, False  # one pixel from the border, so that it can be shifted
    places = np.argwhere(windows)
    if not len(places):
        raise UserError(
            f"poison: no square of {side} x {side} pixels fits into the visible and the generated "
            "part of this task. Change task.hole or task.visible, or set poison.fraction=0."
        )
    distance = np.square(places - np.array(to)).sum(1)
    top, left = places[int(distance.argmin())].tolist()
    return top, left, side
