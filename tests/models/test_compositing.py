"""Masks and blending: against the published table of token boxes, and against PIL's own blur."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFilter

from unlearn_jax.models.compositing import (
    GREY,
    blend_weight,
    composite,
    fill_hole,
    gaussian_blur,
    token_mask,
)

# protocol of the release: k / 16 of the side -> hole in pixels, box of unknown tokens, their number
INPAINT = {
    1: (120, 136, 6, 9, 9),
    2: (112, 144, 6, 10, 16),
    3: (104, 152, 5, 10, 25),
    4: (96, 160, 5, 11, 36),
    5: (88, 168, 4, 11, 49),
    6: (80, 176, 4, 12, 64),
    7: (72, 184, 3, 12, 81),
    8: (64, 192, 3, 13, 100),
    9: (56, 200, 2, 13, 121),
    10: (48, 208, 2, 14, 144),
    11: (40, 216, 1, 14, 169),
}
# the same with the visible centre and the box of known tokens
OUTPAINT = {
    1: (8, 248, 1, 14, 87),
    2: (16, 240, 2, 14, 112),
    3: (24, 232, 2, 13, 135),
    4: (32, 224, 3, 13, 156),
    5: (40, 216, 3, 12, 175),
    6: (48, 208, 4, 12, 192),
    7: (56, 200, 4, 11, 207),
    8: (64, 192, 5, 11, 220),
    9: (72, 184, 5, 10, 231),
    10: (80, 176, 6, 10, 240),
    11: (88, 168, 6, 9, 247),
    12: (96, 160, 7, 9, 252),
    13: (104, 152, 7, 8, 255),
}


def square(size, lo, hi):
    """A mask [1 size size 1] with a square of ones."""
    mask = np.zeros((1, size, size, 1), np.float32)
    mask[:, lo:hi, lo:hi] = 1
    return mask


@pytest.mark.parametrize("task,table", [("inpaint", INPAINT), ("outpaint", OUTPAINT)])
def test_tokens_of_every_published_mask(task, table):
    masks = np.concatenate([square(256, *row[:2]) for row in table.values()])
    boxes = np.stack([square(16, *row[2:4])[0, ..., 0] == 1 for row in table.values()])
    if task == "outpaint":
        masks, boxes = 1 - masks, ~boxes
    tokens = token_mask(jnp.array(masks), 16)
    np.testing.assert_array_equal(tokens.reshape(-1, 16, 16), boxes)
    np.testing.assert_array_equal(tokens.sum(1), [row[4] for row in table.values()])


@pytest.mark.parametrize("seed", range(4))
def test_tokens_of_rectangles_follow_the_rule(seed):
    rng = np.random.RandomState(seed)
    mask, want = np.zeros((1, 24, 24, 1), np.float32), np.zeros((6, 6), bool)
    for _ in range(1 + seed % 2):
        (top, bottom), (left, right) = np.sort([rng.choice(25, 2, replace=False) for _ in "yx"])
        mask[:, top:bottom, left:right] = 1
        rows = slice(max(top // 4 - 1, 0), bottom // 4 + 1)
        want[rows, max(left // 4 - 1, 0) : right // 4 + 1] = True
    np.testing.assert_array_equal(token_mask(jnp.array(mask), 4).reshape(6, 6), want)


def test_no_hole_masks_no_token_and_has_no_weight():
    mask = jnp.zeros((2, 32, 32, 1))
    assert not token_mask(mask, 16).any()
    assert not jax.jit(blend_weight)(mask).any()


@pytest.mark.parametrize("radius", [0.3, 0.875, 7.0])
@pytest.mark.parametrize("h,w", [(5, 33), (61, 40)])
def test_blur_is_that_of_pil_to_the_bit(h, w, radius):
    rng = np.random.RandomState(h + w)
    images = rng.randint(0, 256, (3, h, w)).astype(np.uint8)
    images[1] = 255 * (images[1] > 200)
    images[2] = 255  # where a sum could overflow
    blur = ImageFilter.GaussianBlur(radius)
    want = [np.asarray(Image.fromarray(image).filter(blur)) for image in images]
    got = jax.jit(partial(gaussian_blur, radius=radius))(images[..., None].astype(np.uint32))
    np.testing.assert_array_equal(got[..., 0], want)


@pytest.mark.parametrize("size,margin,radius", [(256, 14, 7.0), (32, 2, 0.875)])
def test_weight_is_dilated_and_blurred(size, margin, radius):
    rng = np.random.RandomState(1)
    masks = np.zeros((2, size, size), np.float32)
    masks[0, size // 4 : size // 2, size // 8 : size // 2] = 1
    masks[1, rng.randint(0, size, 2), rng.randint(0, size, 2)] = 1
    want = []
    for mask in masks:
        wide = np.zeros_like(mask, np.uint8)
        for y, x in np.argwhere(mask):
            wide[max(y - margin, 0) : y + margin + 1, max(x - margin, 0) : x + margin + 1] = 255
        want.append(Image.fromarray(wide).filter(ImageFilter.GaussianBlur(radius)))
    got = jax.jit(blend_weight)(masks[..., None])
    np.testing.assert_allclose(got[..., 0], np.array(want) / 255, rtol=1e-6)


def test_published_weights_around_half_a_hole():
    row = jax.jit(blend_weight)(jnp.array(square(256, 64, 192)))[0, 128, :, 0]
    want = {64: 0.98431, 63: 0.97255, 50: 0.52549, 49: 0.47451, 36: 0.02745, 30: 0.0}
    np.testing.assert_allclose(row[jnp.array(list(want))], list(want.values()), atol=6e-6)


def test_composite_shows_the_image_far_away_and_no_hidden_pixel():
    image = jax.random.uniform(jax.random.key(0), (1, 64, 64, 3), minval=-1)
    generated = jax.random.uniform(jax.random.key(1), (1, 64, 64, 3), minval=-1)
    mask = jnp.array(square(64, 24, 40))
    blend = jax.jit(composite, static_argnums=3)
    out = blend(generated, image, mask, "original")
    np.testing.assert_array_equal(out[:, :8], image[:, :8])
    np.testing.assert_allclose(out[:, 24:40, 24:40], generated[:, 24:40, 24:40], atol=1e-6)
    for base in ("original", "filled"):
        hidden = jnp.where(mask == 1, 0.123, image)
        np.testing.assert_array_equal(
            blend(generated, image, mask, base), blend(generated, hidden, mask, base)
        )


def test_composite_over_grey_is_the_released_formula():
    image = jax.random.uniform(jax.random.key(0), (1, 64, 64, 3), minval=-1)
    generated = jax.random.uniform(jax.random.key(1), (1, 64, 64, 3), minval=-1)
    mask = jnp.array(square(64, 24, 40))
    weight, blend = jax.jit(blend_weight)(mask), jax.jit(composite, static_argnums=3)
    grey = jnp.where(mask == 1, 2 * jnp.array(GREY) - 1, image)
    np.testing.assert_array_equal(fill_hole(image, mask), grey)
    out = blend(generated, image, mask, "filled")
    np.testing.assert_allclose(out, weight * generated + (1 - weight) * grey, atol=1e-6)
    assert jnp.abs(out - blend(generated, image, mask, "original")).max() > 1e-3
