"""Encoded images to size x size pixels: as a model is evaluated, or as random training views.

The arithmetic is that of torchvision's transforms on PIL images, whose resampling is antialiased.
Decoding (`photos`) is exact: PIL's `draft` mode, which decodes JPEG at a fraction of its size, is
not used. EXIF orientation is ignored unless a view asks for it, as in torchvision's image folders.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8, UInt64
from PIL import Image

from unlearn_jax.registry import UserError

RESIZE = ("none", "crop", "pad", "squash_bilinear", "squash_bicubic")
AUGMENT = ("", "random_resized_crop")
_ATTEMPTS = 10  # at a crop that fits, then the middle of the image is taken
_BICUBIC = Image.Resampling.BICUBIC


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
        size: height and width.
        resize: of the evaluation view, see `fit`.
        crops: the random training views; None: training sees the evaluation view.
        exif: turn images as the camera says.
    """

    size: int
    resize: str = "none"
    crops: Crops | None = None
    exif: bool = False


def check_size(size: tuple[int, int], id: str, view: View) -> None:
    """Check that `fit` can take an image of this width and height; raise UserError if not."""
    if view.resize == "none" and view.crops is None and size != (view.size, view.size):
        raise UserError(
            f"{id}: expected {view.size} x {view.size} pixels (data.image_size), got "
            f"{size[0]} x {size[1]}. Set data.resize to one of {RESIZE[1:]}, or data.image_size."
        )


def fit(image: Image.Image, view: View, id: str) -> UInt8[np.ndarray, "h w 3"]:
    """Resize and crop an RGB image to its evaluation view, `view.size` pixels high and wide.

    * "none": the image, which must have that size.
    * "crop": its shorter side resized to that size (bicubic; the other side rounded down), then
      the centre, as torchvision's Resize and CenterCrop do. MAGE, protocol part 3.1.
    * "pad": its longer side resized to that size (bicubic), centred on black.
    * "squash_bilinear", "squash_bicubic": resized to exactly that size, whatever its proportions.
      Palette (protocol part 3.2), MAE's demonstration (part 1.6).

    Raises:
        UserError: "none", and the image has another size.
    """
    size = view.size
    if view.resize == "crop":
        whole = short_side(image.size, size)
        if whole != image.size:
            image = image.resize(whole, _BICUBIC)
        left, top = (round((side - size) / 2) for side in image.size)
        image = image.crop((left, top, left + size, top + size))
    elif view.resize == "pad":
        whole = tuple(max(1, round(side * size / max(image.size))) for side in image.size)
        part, image = image.resize(whole, _BICUBIC), Image.new("RGB", (size, size))
        image.paste(part, tuple((size - side) // 2 for side in whole))
    elif view.resize.startswith("squash"):
        bilinear = view.resize == "squash_bilinear"
        image = image.resize((size, size), Image.Resampling.BILINEAR if bilinear else _BICUBIC)
    elif image.size != (size, size):
        check_size(image.size, id, View(size))
    return np.asarray(image)


def short_side(size: tuple[int, int], short: int) -> tuple[int, int]:
    """Compute width and height after torchvision's Resize(short): the longer side rounded down."""
    width, height = size
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def random_view(
    image: Image.Image, size: int, crops: Crops, key: UInt64[np.ndarray, "2"]
) -> UInt8[np.ndarray, "size size 3"]:
    """Draw a random training view of an RGB image; only the image and the Philox key decide it."""
    rng = np.random.Generator(np.random.Philox(key=key))
    left, top, width, height = crop_box(*image.size, crops, rng)
    part = image.crop((left, top, left + width, top + height)).resize((size, size), _BICUBIC)
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
