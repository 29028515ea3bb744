"""Preprocessing of images for each tower, as data, and the one function that does it."""

import io
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8
from PIL import Image

FID_REFERENCES = ("original_fullsize", "center_crop", "resaved_gt")
"""What completed images are compared with: the image as it is stored, which the recipe then
squashes to a square (Li et al. do so for MAGE, where it makes the FID of perfect reconstructions
positive); what the model saw of it; that, saved as JPEG, as their test run of Palette writes it."""

# resize: height and width, or the length of the shorter side; PIL's filters are antialiased.
# rounded: to 0..255 after that, as PIL does to images; otherwise clipped only, in float32.
# crop: the centre. upsample: bilinear, in the tower, as torch's with align_corners=False.
# mean, std: of colours in [0, 1].
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "fid": {  # clean-fid, mode "clean"
        "resize": (299, 299),
        "filter": "bicubic",
        "rounded": False,
        "crop": None,
        "upsample": None,
        "mean": (128 / 255, 128 / 255, 128 / 255),
        "std": (128 / 255, 128 / 255, 128 / 255),
    },
    "inception_score": {  # MAGE of Li et al.: CIFAR's numbers before ImageNet's network
        "resize": (256, 256),
        "filter": "bilinear",
        "rounded": True,
        "crop": None,
        "upsample": 299,
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2023, 0.1994, 0.2010),
    },
    "places365": {  # Palette of Li et al.
        "resize": (256, 256),
        "filter": "bilinear",
        "rounded": True,
        "crop": 224,
        "upsample": None,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    },
    "clip": {  # open_clip, evaluation
        "resize": 224,
        "filter": "bicubic",
        "rounded": True,
        "crop": 224,
        "upsample": None,
        "mean": (0.48145466, 0.4578275, 0.40821073),
        "std": (0.26862954, 0.26130258, 0.27577711),
    },
    "cifar10_classifier": {
        "resize": (32, 32),
        "filter": "bicubic",
        "rounded": True,
        "crop": None,
        "upsample": None,
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.247, 0.2435, 0.2616),
    },
}
"""One recipe for each use."""


def prepare(
    image: UInt8[np.ndarray, "h w 3"], recipe: Mapping[str, Any]
) -> Shaped[np.ndarray, "h2 w2 3"]:
    """Resize and crop an image, 0 to 255: uint8 if the recipe rounds, else float32."""
    resample = Image.Resampling[recipe["filter"].upper()]
    height, width = _target(image.shape, recipe["resize"])
    if recipe["rounded"]:
        pixels = np.asarray(Image.fromarray(image).resize((width, height), resample))
    else:  # PIL rounds images of three channels, not single ones of floats
        channels = np.moveaxis(image.astype(np.float32), 2, 0)
        resized = [Image.fromarray(c).resize((width, height), resample) for c in channels]
        pixels = np.stack(resized, axis=2).clip(0, 255)
    return _centre(pixels, recipe["crop"]) if recipe["crop"] else pixels


def to_tower(
    pixels: Shaped[Array, "b h w 3"], recipe: Mapping[str, Any]
) -> Float[Array, "b h2 w2 3"]:
    """Turn a batch of `prepare`d images into what a tower takes, in [-1, 1]; on the device.

    The tower's own mean and std must be the recipe's. They are applied after the upsampling here
    and before it in the originals, which is the same but for rounding: bilinear weights sum to 1.
    """
    images = pixels.astype(jnp.float32) / 127.5 - 1
    if not recipe["upsample"]:
        return images
    shape = (len(images), recipe["upsample"], recipe["upsample"], 3)
    return jax.image.resize(images, shape, "bilinear", antialias=False)


def size(recipe: Mapping[str, Any]) -> int:
    """Return the side of the images that the tower gets, in pixels."""
    resize = recipe["resize"]
    return (
        recipe["upsample"] or recipe["crop"] or (resize if isinstance(resize, int) else resize[0])
    )


def norm_then_flip(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Exchange red's and blue's mean and std in a recipe.

    Li et al. saved MAGE's images with red and blue exchanged, normalised what they read from those
    files for the Inception Score and CLIP, and exchanged the channels back only then (protocol
    5.3, 5.4). On images in their right colours, that is this.
    """
    return {**recipe, "mean": recipe["mean"][::-1], "std": recipe["std"][::-1]}


def resaved(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Save the image as a JPEG of PIL's default quality, 75, and decode it again."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=75)
    return np.asarray(Image.open(file))


def _target(shape: tuple[int, ...], resize: int | tuple[int, int]) -> tuple[int, int]:
    if not isinstance(resize, int):
        return resize
    height, width = shape[:2]
    if height <= width:  # truncated, as in torchvision
        return resize, resize * width // height
    return resize * height // width, resize


def _centre(pixels: Shaped[np.ndarray, "h w 3"], side: int) -> Shaped[np.ndarray, "side side 3"]:
    # Halves are rounded to even, as in torchvision.
    top, left = (round((length - side) / 2) for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]
