"""Preprocessing against PIL and closed forms; against torch in test_preprocessing_torch."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from unlearn_jax.evaluate.towers import preprocessing
from unlearn_jax.evaluate.towers.preprocessing import RECIPES

SHAPES = [(256, 256), (300, 411), (411, 300), (130, 90), (299, 299), (224, 224), (32, 32)]


def image(shape, seed=0):
    """Smooth colours with sharp edges, so that bicubic filters overshoot."""
    rng = np.random.default_rng(seed)
    tiles = rng.integers(0, 256, (shape[0] // 8 + 1, shape[1] // 8 + 1, 3), np.uint8)
    pixels = tiles.repeat(8, 0).repeat(8, 1)[: shape[0], : shape[1]]
    return np.where(rng.random((*shape, 1)) < 0.5, pixels, rng.integers(0, 256, 3, np.uint8))


@pytest.mark.parametrize("shape", SHAPES)
def test_fid_is_clean_fid(shape):
    pixels = image(shape)
    found = preprocessing.prepare(pixels, RECIPES["fid"])
    for channel in range(3):
        one = Image.fromarray(pixels[:, :, channel].astype(np.float32), mode="F")
        expected = np.asarray(one.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255)
        np.testing.assert_array_equal(found[:, :, channel], expected)
    assert found.dtype == np.float32
    if shape != (299, 299):
        assert np.abs(found - np.rint(found)).max() > 0.4  # not rounded
        assert (found == 0).any() and (found == 255).any()  # clipped


@pytest.mark.parametrize("shape", SHAPES)
def test_places365_is_resize_and_centre_crop(shape):
    found = preprocessing.prepare(image(shape), RECIPES["places365"])
    square = Image.fromarray(image(shape)).resize((256, 256), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found, np.asarray(square.crop((16, 16, 240, 240))))
    assert found.dtype == np.uint8 and found.shape == (224, 224, 3)


@pytest.mark.parametrize(
    ("shape", "resized", "corner"),
    [
        ((256, 256), (224, 224), (0, 0)),
        ((300, 411), (224, 306), (0, 41)),  # 224 * 411 / 300 = 306.88 is truncated
        ((411, 300), (306, 224), (41, 0)),
        ((90, 131), (224, 326), (0, 51)),  # enlarged
        ((224, 227), (224, 227), (0, 2)),  # (227 - 224) / 2 = 1.5 rounds to even
        ((224, 229), (224, 229), (0, 2)),  # 2.5, too
    ],
)
def test_clip_is_short_side_and_centre_crop(shape, resized, corner):
    found = preprocessing.prepare(image(shape), RECIPES["clip"])
    whole = Image.fromarray(image(shape)).resize(resized[::-1], Image.Resampling.BICUBIC)
    top, left = corner
    expected = np.asarray(whole)[top : top + 224, left : left + 224]
    np.testing.assert_array_equal(found, expected)


def upsampled(x, side):
    """Bilinear with half-pixel centres, clamped at the edges: torch's align_corners=False."""
    for axis in (0, 1):
        n = x.shape[axis]
        at = np.maximum((np.arange(side) + 0.5) * n / side - 0.5, 0)
        low = np.floor(at).astype(int)
        high, share = np.minimum(low + 1, n - 1), at - low
        share = share.reshape([-1 if a == axis else 1 for a in range(3)])
        x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    return x


def test_inception_score_is_normalised_then_upsampled():
    recipe = RECIPES["inception_score"]
    found = preprocessing.prepare(image((300, 411)), recipe)
    square = Image.fromarray(image((300, 411))).resize((256, 256), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found, np.asarray(square))
    mean, std = (np.array(recipe[k]) for k in ("mean", "std"))
    expected = upsampled((np.float64(square) / 255 - mean) / std, 299)
    images = np.asarray(preprocessing.to_tower(jax.numpy.asarray(found[None]), recipe))[0]
    np.testing.assert_allclose(
        ((images + 1) / 2 - mean) / std, expected, atol=1e-4
    )  # float32 positions


def test_a_tower_gets_images_in_its_range():
    recipe = RECIPES["places365"]
    pixels = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    found = preprocessing.to_tower(jax.numpy.asarray(pixels), recipe)
    np.testing.assert_allclose(np.ravel(found), [-1, -0.6, 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("use", "side"),
    [
        ("fid", 299),
        ("inception_score", 299),
        ("places365", 224),
        ("clip", 224),
        ("cifar10_classifier", 32),
    ],
)
def test_sizes(use, side):
    assert preprocessing.size(RECIPES[use]) == side
    pixels = preprocessing.prepare(image((256, 256)), RECIPES[use])
    assert preprocessing.to_tower(jax.numpy.asarray(pixels[None]), RECIPES[use]).shape[1:] == (
        side,
        side,
        3,
    )


def test_norm_then_flip_is_what_the_saved_files_got():
    recipe = RECIPES["clip"]
    colours = np.random.default_rng(0).uniform(0, 1, (5, 3))  # red, green, blue
    mean, std = (np.array(recipe[k]) for k in ("mean", "std"))
    in_file = colours[:, ::-1]  # saved with red and blue exchanged
    expected = ((in_file - mean) / std)[:, ::-1]
    other = preprocessing.norm_then_flip(recipe)
    found = (colours - np.array(other["mean"])) / np.array(other["std"])
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found - (colours - mean) / std).max() > 0.01
    assert {k for k in recipe if recipe[k] != other[k]} == {"mean", "std"}


def test_resaved_is_a_jpeg_of_quality_75():
    pixels, file = image((64, 80)), io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg")  # PIL's quality is 75
    saved = preprocessing.resaved(pixels)
    np.testing.assert_array_equal(saved, np.asarray(Image.open(file)))
    assert 0 < np.abs(np.int32(saved) - pixels).mean() < 60
