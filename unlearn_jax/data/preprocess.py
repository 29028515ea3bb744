"""Encoded images to pixels of one size: as a model is evaluated, or as random training views.

The arithmetic is that of torchvision's transforms on PIL images, whose resampling is antialiased.
Decoding (`photos`) is exact: PIL's `draft` mode, which decodes JPEG at a fraction of its size, is
not used. EXIF orientation is ignored unless a view asks for it, as in torchvision's image folders.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped, UInt8, UInt64
from PIL import Image

from unlearn_jax.data.sizes import Size, sides
from unlearn_jax.registry import UserError

RESIZE = ("none", "crop", "pad", "squash_bilinear", "squash_bicubic")
AUGMENT = ("", "random_resized_crop")
_ATTEMPTS = 10  # at a crop that fits, then the middle of the image is taken
_BICUBIC = Image.Resampling.BICUBIC
_FILTERS = {"squash_bilinear": Image.Resampling.BILINEAR}  # of the others: bicubic


@dataclass(frozen=True)
class Crops:
    """Random training views: a part of the image, resized (bicubic), mirrored half of the time.

    Attributes:
        scale: least and largest area of the part / area of the image, each in (0, 1].
        ratio: least and largest width / height of the part.
        flip: whether to mirror.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True


@dataclass(frozen=True)
class View:
    """How images become pixels.

    Attributes:
        size: one number, or (height, width).
        resize: of the evaluation view, see `fit`.
        crops: the random training views; None: training sees the evaluation view.
        exif: turn images as the camera says.
    """

    size: Size
    resize: str = "none"
    crops: Crops | None = None
    exif: bool = False

    @property
    def pixels(self) -> tuple[int, int]:
        """Return (width, height), as PIL has sizes."""
        return sides(self.size)[::-1]


def check_size(size: tuple[int, int], id: str, view: View) -> None:
    """Check that `fit` can take an image of this width and height; raise UserError if not."""
    if view.resize == "none" and view.crops is None and size != view.pixels:
        wanted, got = ("{} x {}".format(*of) for of in (view.pixels, size))
        raise UserError(
            f"{id}: expected {wanted} pixels (width x height; data.image_size), got {got}. Set "
            f"data.resize to one of {RESIZE[1:]}, or data.image_size."
        )


def fit(
    image: Image.Image, view: View, id: str, resample: Image.Resampling | None = None
) -> Shaped[np.ndarray, "h w *c"]:
    """Resize and crop an image to its evaluation view, of the height and width `view.size`.

    * "none": the image, which must have that size.
    * "crop": resized until it covers that size (bicubic; the side with more to spare rounded
      down), then the centre: for squares what torchvision's Resize and CenterCrop do. MAGE,
      protocol part 3.1.
    * "pad": resized until that size holds it (bicubic), centred on black.
    * "squash_bilinear", "squash_bicubic": resized to exactly that size, whatever its proportions.
      Palette (protocol part 3.2), MAE's demonstration (part 1.6).

    Args:
        image: RGB, or of another mode, which it keeps.
        view: the size, and how.
        id: of the image, for messages.
        resample: instead of the filters above.

    Raises:
        UserError: "none", and the image has another size.
    """
    size = width, height = view.pixels
    filter = resample or _FILTERS.get(view.resize, _BICUBIC)
    if view.resize == "crop":
        whole = cover(image.size, size)
        if whole != image.size:
            image = image.resize(whole, filter)
        left, top = (round((a - b) / 2) for a, b in zip(image.size, size, strict=True))
        image = image.crop((left, top, left + width, top + height))
    elif view.resize == "pad":
        by_width = image.width * height >= image.height * width
        scale = (width, image.width) if by_width else (height, image.height)
        whole = tuple(max(1, round(side * scale[0] / scale[1])) for side in image.size)
        part, image = image.resize(whole, filter), Image.new(image.mode, size)
        image.paste(part, tuple((a - b) // 2 for a, b in zip(size, whole, strict=True)))
    elif view.resize.startswith("squash"):
        image = image.resize(size, filter)
    else:
        check_size(image.size, id, View(view.size))
    return np.asarray(image)


def cover(size: tuple[int, int], least: tuple[int, int]) -> tuple[int, int]:
    """Compute the width and height, as those of `size`, of an image that just covers `least`.

    One side is that of `least`, the other rounded down; for squares as torchvision's Resize does.
    """
    (width, height), (least_width, least_height) = size, least
    if width * least_height <= height * least_width:
        return least_width, int(least_width * height / width)
    return int(least_height * width / height), least_height


def random_view(
    image: Image.Image, view: View, key: UInt64[np.ndarray, "2"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw a random training view of an RGB image; only the image and the Philox key decide it."""
    crops = view.crops
    rng = np.random.Generator(np.random.Philox(key=key))
    left, top, width, height = crop_box(*image.size, crops, rng)
    part = image.crop((left, top, left + width, top + height)).resize(view.pixels, _BICUBIC)
    if crops.flip and rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(part)


def crop_box(
    width: int, height: int, crops: Crops, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw left, top, width and height of a random part, distributed as in torchvision.

    Its area is uniform in `crops.scale`, the logarithm of its proportions in that of `crops.ratio`,
    its place in the image uniform. Parts that do not fit are drawn again, ten times; then it is the
    middle of the image, as much of it as the proportions permit (RandomResizedCrop).
    """
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*crops.scale)
        ratio = math.exp(rng.uniform(*np.log(crops.ratio)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    least, largest = crops.ratio
    w, h = width, height
    if width / height < least:
        h = round(width / least)
    elif width / height > largest:
        w = round(height * largest)
    return (width - w) // 2, (height - h) // 2, w, h
