"""Masks from files: one for all images, or a folder with one for each, named as its image.

Black stays, white is to be generated. A mask is as large as `data.image_size`, or, one for each, as
large as its image, with which it is resized and cropped then.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8
from PIL import Image

from unlearn_jax.data import photos, preprocess
from unlearn_jax.data.preprocess import View
from unlearn_jax.data.readers import IMAGE_SUFFIXES, is_image, read_file, some
from unlearn_jax.data.sizes import Size, shown, sides
from unlearn_jax.registry import UserError

_SUFFIXES = (".png", *(suffix for suffix in IMAGE_SUFFIXES if suffix != ".png"))


@dataclass(frozen=True)
class Masks:
    """Masks in memory, one bit per pixel.

    Attributes:
        size: of the images, (height, width).
        packed: the bits of each image's mask, or of the one for all.
    """

    size: tuple[int, int]
    packed: UInt8[np.ndarray, "n bytes"]

    def __call__(self, rows: Int[np.ndarray, "b"]) -> Float32[np.ndarray, "b h w 1"]:
        """Return the masks of these rows of the source, 1 = to be generated."""
        rows = rows if len(self.packed) > 1 else np.zeros_like(rows)
        height, width = self.size
        bits = np.unpackbits(self.packed[rows], axis=1, count=height * width)
        return bits.reshape(-1, height, width, 1).astype(np.float32)

    @property
    def digest(self) -> str:
        """Return a hash of all masks: what runs depend on, wherever the files are."""
        return hashlib.sha256(repr(self.size).encode() + self.packed.tobytes()).hexdigest()


def read(path: str, size: Size, exif: bool = False) -> Bool[np.ndarray, "h w"]:
    """Return the mask in a file that all images share, True = to be generated.

    Raises:
        UserError: no such file, another size, other colours than black and white, or only one.
    """
    hole = _decoded(Path(path), exif)
    if hole.shape != sides(size):
        raise UserError(
            f"{path}: expected a mask of {shown(size)} pixels (data.image_size), got "
            f"{shown(hole.shape)}. Draw it at that size, or give one for each image: a folder."
        )
    return hole


def load(
    path: str, ids: Sequence[str], view: View, original: Callable[[int], np.ndarray] | None
) -> Masks:
    """Read the masks of all images, and check them.

    Args:
        path: of the file, or of the folder with `ID.png` for the image ID, whose own suffix is
            left out; other suffixes of images will do.
        ids: of the images.
        view: how the images become pixels.
        original: gives the image of a row as it is stored.

    Raises:
        UserError: an image without a mask, a mask that `read` refuses, or of another size.
    """
    if not Path(path).is_dir():
        found = read(path, view.size, view.exif)
        return Masks(sides(view.size), np.packbits(found.reshape(1, -1), axis=1))
    chosen = [find(Path(path), id) for id in ids]
    if missing := [id for id, file in zip(ids, chosen, strict=True) if not file]:
        raise UserError(
            f"task.path: expected a mask for every image in {path}, {len(missing)} of {len(ids)} "
            f"have none: {some(missing, 3)}. Add {Path(path) / _stem(missing[0])}.png."
        )

    def fitted(row: int) -> UInt8[np.ndarray, "bytes"]:
        hole = _decoded(chosen[row], view.exif)
        if hole.shape != sides(view.size):
            shape = original(row).shape[:2] if original else None
            if hole.shape != shape:
                raise UserError(
                    f"{chosen[row]}: expected a mask of {shown(view.size)} pixels "
                    "(data.image_size), or as large as its image"
                    + (f", {shown(shape)}" if shape else "")
                    + f"; got {shown(hole.shape)}. Draw it again at that size."
                )
            picture = Image.fromarray(hole.astype(np.float32))
            # Whatever a hidden pixel has a part in is hidden.
            hole = preprocess.fit(picture, view, ids[row], Image.Resampling.BOX) > 0
            _check(hole, f"{chosen[row]}, as data.resize={view.resize!r} cuts it")
        return np.packbits(hole)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return Masks(sides(view.size), np.stack(list(pool.map(fitted, range(len(ids))))))


def find(folder: Path, id: str) -> Path | None:
    """Return the mask of the image of that id in a folder; None if there is none."""
    return next(filter(Path.is_file, (folder / f"{_stem(id)}{of}" for of in _SUFFIXES)), None)


def _stem(id: str) -> str:
    return id.rpartition(".")[0] if is_image(id) else id


def _decoded(path: Path, exif: bool) -> Bool[np.ndarray, "h w"]:
    if not path.is_file():
        raise UserError(f"task.path: expected a mask, or a folder of masks; there is no {path}.")
    image = photos.decode(read_file(path, str(path)), str(path), exif)
    grey = np.asarray(image.convert("L"))
    values = np.unique(grey).tolist()
    if not ({*values} <= {0, 255} or {*values} <= {0, 1}):
        raise UserError(
            f"{path}: expected a mask of black and white only, got {len(values)} greys, such as "
            f"{[v for v in values if 0 < v < 255][:3]}. Save it as PNG, without smooth edges."
        )
    _check(grey > 0, str(path))
    return grey > 0


def _check(hole: Bool[np.ndarray, "h w"], what: str) -> None:
    if hole.all() or not hole.any():
        raise UserError(
            f"{what}: expected a mask with black (visible) and white (to be generated), got only "
            f"{'white' if hole.all() else 'black'}."
        )
