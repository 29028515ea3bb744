"""From a hole in pixels to what is generated and to how it is blended in.

The geometry is that of the released MAGE code (jpmorganchase/i2i_mage) for images of 256 pixels.
For other sizes, its 14 pixels of margin and its blur radius of 7 are scaled by size / 256.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, UInt32

GREY = (0.485, 0.456, 0.406)
"""ImageNet's mean colour in [0, 1]: what is in the hole when a tokenizer looks at the image."""
_SIZE, _MARGIN, _RADIUS = 256, 14, 7.0
_PASSES = 3  # of the box blur that stands for a Gaussian in PIL


def fill_hole(
    image: Float[Array, "b h w 3"], mask: Float[Array, "b h w 1"]
) -> Float[Array, "b h w 3"]:
    """Fill the hole of images in [-1, 1] with `GREY`, wherever the mask is 1."""
    return jnp.where(mask > 0.5, 2 * jnp.array(GREY) - 1, image)


def token_mask(mask: Float[Array, "b h w 1"], patch: int) -> Bool[Array, "b n"]:
    """Tell which tokens a hole makes unknown, row by row; a token is a patch of `patch` pixels.

    As released, a hole from pixel `lo` to before pixel `hi` masks the patches from lo // patch - 1
    to before hi // patch + 1, in each axis. Seen from patch j, there is a hole between the pixel
    before it and the end of the next patch: the margin is one patch, but on the lower side of a
    patch that a hole only ends in, none. A union of rectangles masks the union of their patches.
    """
    window = (1, 2 * patch + 1, 2 * patch + 1, 1)
    padding = ((0, 0), (1, patch), (1, patch), (0, 0))
    near = lax.reduce_window(mask, 0.0, lax.max, window, (1, patch, patch, 1), padding)
    return near.reshape(len(mask), -1) > 0.5


def blend_weight(mask: Float[Array, "b h w 1"]) -> Float[Array, "b h w 1"]:
    """Weight generated pixels in [0, 1]: the hole, 14 pixels wider on each side, blurred.

    Between are 8-bit numbers as in the release, which blurs with PIL: multiples of 1/255.
    """
    scale = mask.shape[1] / _SIZE
    margin = round(_MARGIN * scale)
    window = (1, 2 * margin + 1, 2 * margin + 1, 1)
    wide = lax.reduce_window(mask, 0.0, lax.max, window, (1, 1, 1, 1), "SAME")
    wide = (255 * wide).astype(jnp.uint32)
    return gaussian_blur(wide, _RADIUS * scale).astype(jnp.float32) / 255


def composite(
    generated: Float[Array, "b h w 3"],
    image: Float[Array, "b h w 3"],
    mask: Float[Array, "b h w 1"],
    base: str,
) -> Float[Array, "b h w 3"]:
    """Blend generated pixels in and around the hole into the image, by `blend_weight`.

    Args:
      generated: images in [-1, 1].
      image: what the visible part is taken from; its hole is not looked at.
      mask: 1 in the hole.
      base: "original" is the visible image with the generated one in the hole, so that the hole
        holds nothing but generated pixels. "filled", as released, is the image with the hole in
        `GREY`, of which 1.6 % shows in the first pixel of the hole (3.1 % in its corners).
    """
    filled = jnp.where(mask > 0.5, generated, image)
    under = {"original": filled, "filled": fill_hole(image, mask)}[base]
    weight = blend_weight(mask)
    return weight * generated + (1 - weight) * under


def gaussian_blur(image: UInt32[Array, "b h w c"], radius: float) -> UInt32[Array, "b h w c"]:
    """Blur images, uint32 in 0..255, to the bit as PIL's GaussianBlur(radius) does.

    Three passes of an extended box blur (Gwosdek et al., 2011) along rows, then three along
    columns, in fixed-point numbers of 24 bits, rounded to 8 bits after each; edges are repeated.
    """
    whole, box, side = _box(radius)
    x = image.astype(jnp.uint32)
    for axis in (2, 1):
        for _ in range(_PASSES):
            x = _box_blur(x, axis, whole, box, side)
    return x


def _box(radius: float) -> tuple[int, int, int]:
    """Return a box's whole radius, and the weights in 2^-24 of its inner and end pixels."""
    variance = radius**2 / _PASSES
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    part /= 6 * (variance - (whole + 1) ** 2)
    one = np.float32(1 << 24)
    box = int(one / (np.float32(whole + part) * 2 + 1))
    return whole, box, ((1 << 24) - (2 * whole + 1) * box) // 2


def _box_blur(x, axis, whole, box, side):
    size, reach = x.shape[axis], whole + 1
    pad = [(0, 0)] * x.ndim
    pad[axis] = (reach, reach)
    x = jnp.pad(x, pad, mode="edge")
    window = [1] * x.ndim
    window[axis] = 2 * whole + 1
    inner = lax.slice_in_dim(x, 1, size + 2 * reach - 1, axis=axis)
    inner = lax.reduce_window(inner, np.uint32(0), lax.add, window, [1] * x.ndim, "VALID")
    ends = lax.slice_in_dim(x, 0, size, axis=axis)
    ends += lax.slice_in_dim(x, 2 * reach, size + 2 * reach, axis=axis)
    # At most 255 * 2^24 + 2^23: it fits.
    return (inner * np.uint32(box) + ends * np.uint32(side) + np.uint32(1 << 23)) >> np.uint32(24)
