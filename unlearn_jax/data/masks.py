"""Random holes of Palette: a box and brush strokes ("hybrid"), and half of the image ("uncrop")."""

import math

import numpy as np
from jaxtyping import Float32, UInt64
from PIL import Image, ImageDraw

from unlearn_jax.data.sizes import Size, sides

_CANVAS = 256  # every number here is in pixels of this canvas
_BOX, _MARGIN, _SHRINK = 128, 20, 20
_REACH = math.hypot(_CANVAS, _CANVAS) / 8  # mean length of a segment of a stroke
_REACH_STD = _REACH // 2
UNCROPPING = ("uncrop", "uncrop_one", "uncrop_four")


def hybrid_masks(size: Size, keys: UInt64[np.ndarray, "n 2"]) -> Float32[np.ndarray, "n h w 1"]:
    """Draw masks of one box and one to three strokes each, 1 = to be generated; they may overlap.

    The box has its top and left in 20 … 107, sides of 128, and loses up to 20 rows at its top and
    columns at its left. A stroke is a zigzag of 4 … 11 segments, 12 … 39 wide, with round corners.
    These are pixels of a 256 x 256 canvas; of it, images of another size take the pixels nearest to
    theirs. As Janspiry's Palette (MIT) draws them, after "Free-Form Image Inpainting with Gated
    Convolution", except that it computes flips and does not use them.

    Args:
      size: of the images.
      keys: Philox keys; the mask depends on nothing else.
    """
    height, width = sides(size)
    masks = np.empty((len(keys), height, width, 1), np.float32)
    for mask, key in zip(masks, keys, strict=True):
        canvas = _draw(np.random.Generator(np.random.Philox(key=key)))
        mask[..., 0] = canvas.resize((width, height), Image.Resampling.NEAREST)
    return masks


def uncropping_masks(
    name: str, size: Size, keys: UInt64[np.ndarray, "n 2"]
) -> Float32[np.ndarray, "n h w 1"]:
    """Draw masks of half of the area, 1 = to be generated, as Janspiry's Palette (MIT) draws them.

    "uncrop_one" is the left, upper, lower or right half of the image ("onedirection" there);
    "uncrop_four" a box between half as wide and all but one pixel as wide as the image, as high as
    half of the area allows, anywhere ("fourdirection", of which one might think that the box is
    what stays visible); "uncrop" is either ("hybrid" there).

    Args:
      name: one of `UNCROPPING`.
      size: of the images.
      keys: Philox keys; the mask depends on nothing else.
    """
    both = sides(size)
    masks = np.zeros((len(keys), *both, 1), np.float32)
    for mask, key in zip(masks, keys, strict=True):
        rng = np.random.Generator(np.random.Philox(key=key))
        if name == "uncrop_one" or (name == "uncrop" and rng.integers(2) == 0):
            first, rows = rng.integers(2, size=2)
            side = both[0] if rows else both[1]
            half = slice(side // 2) if first else slice(side - side // 2, side)
            mask[(half, slice(None)) if rows else (slice(None), half)] = 1
        else:
            area = both[0] * both[1] // 2
            width = int(rng.integers(area // both[0], both[1]))
            box = area // width, width
            top, left = (int(rng.integers(max(a - b, 1))) for a, b in zip(both, box, strict=True))
            mask[top : top + box[0], left : left + width] = 1
    return masks


def _draw(rng: np.random.Generator) -> Image.Image:
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    draw = ImageDraw.Draw(canvas)
    left, top = rng.integers(_MARGIN, _CANVAS - _BOX - _MARGIN, 2).tolist()
    right, bottom = left + _BOX - 1, top + _BOX - 1  # inclusive
    shrink_x, shrink_y = rng.integers(0, _SHRINK, 2, endpoint=True).tolist()
    draw.rectangle((left + shrink_x, top + shrink_y, right, bottom), fill=1)
    for _ in range(rng.integers(1, 3, endpoint=True)):
        _stroke(draw, rng)
    return canvas


def _stroke(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    segments = rng.integers(4, 11, endpoint=True)
    low, high = 2 * math.pi / 5 + np.array([-1, 1]) * rng.uniform(0, 2 * math.pi / 15, 2)
    angles = rng.uniform(low, high, segments)
    angles[::2] *= -1  # up, then down again
    lengths = np.clip(rng.normal(_REACH, _REACH_STD, segments), 0, 2 * _REACH)
    points = [rng.integers(0, _CANVAS, 2)]
    for angle, length in zip(angles, lengths, strict=True):
        step = length * np.array([math.cos(angle), math.sin(angle)])
        points.append(np.clip(points[-1] + step, 0, _CANVAS).astype(int))
    width = int(rng.integers(12, 39, endpoint=True))
    corners = [tuple(point.tolist()) for point in points]
    draw.line(corners, fill=1, width=width)
    radius = width // 2
    for x, y in corners:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
