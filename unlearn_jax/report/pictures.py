"""Grids of images, as pictures."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from unlearn_jax.data.transforms import to_uint8

_GAP = 2  # pixels between images
_SIDE = 96  # pixels that small images are enlarged to, by a whole factor


def show(batch: Mapping[str, Any], *images: Any) -> Image.Image:
    """Draw images below each other: what the model sees, the truth, and completions of it.

    Args:
      batch: as of `Request.batch`: `image` [n h w 3] in [-1, 1] and `mask` [n h w 1].
      images: rows of completions [n h w 3], in [-1, 1] or uint8.

    Returns:
      A picture, which notebooks show; `.save("FILE.png")` keeps it.

    >>> batch = {"image": np.zeros((5, 32, 32, 3)), "mask": np.ones((5, 32, 32, 1))}
    >>> show(batch, batch["image"]).size
    (490, 294)
    """
    image, mask = np.asarray(batch["image"]), np.asarray(batch["mask"])
    rows = [image * (1 - mask), image, *(np.asarray(row) for row in images)]
    rows = [row if row.dtype == np.uint8 else to_uint8(row) for row in rows]
    times = max(1, _SIDE // image.shape[1])
    rows = [row.repeat(times, 1).repeat(times, 2) for row in rows]
    n, h, w, _ = rows[0].shape
    grid = np.full((len(rows) * (h + _GAP), n * (w + _GAP), 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row[:n]):
            y, x = i * (h + _GAP), j * (w + _GAP)
            grid[y : y + h, x : x + w] = tile
    return Image.fromarray(grid)
