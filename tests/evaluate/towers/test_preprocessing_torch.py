"""Preprocessing against torch's own resampling."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

from tests.evaluate.towers.test_preprocessing import SHAPES, image
from unlearn_jax.evaluate.towers import preprocessing
from unlearn_jax.evaluate.towers.preprocessing import RECIPES


def as_torch(pixels):
    return torch.from_numpy(np.array(pixels)).movedim(-1, 0)[None].double()


def as_numpy(x):
    return x[0].movedim(0, -1).numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_fid_is_torch_s_antialiased_bicubic(shape):
    found = preprocessing.prepare(image(shape), RECIPES["fid"])
    expected = F.interpolate(as_torch(image(shape)), (299, 299), mode="bicubic", antialias=True)
    np.testing.assert_allclose(found, as_numpy(expected).clip(0, 255), atol=2e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("use", "side"), [("places365", 256), ("inception_score", 256)])
def test_images_are_resized_to_a_grey_level(shape, use, side):
    recipe = RECIPES[use] | {"crop": None}
    found = preprocessing.prepare(image(shape), recipe)
    expected = F.interpolate(as_torch(image(shape)), (side, side), mode="bilinear", antialias=True)
    # PIL rounds after each of its two passes.
    assert np.abs(found - as_numpy(expected)).max() <= 1.01


def test_upsampling_is_torch_s():
    recipe = RECIPES["inception_score"]
    pixels = preprocessing.prepare(image((256, 256)), recipe)
    mean, std = (torch.tensor(recipe[k]).view(3, 1, 1) for k in ("mean", "std"))
    normalised = (as_torch(pixels) / 255 - mean) / std
    expected = F.interpolate(normalised, (299, 299), mode="bilinear", align_corners=False)
    found = np.asarray(preprocessing.to_tower(jax.numpy.asarray(pixels[None]), recipe))[0]
    found = ((found + 1) / 2 - np.array(recipe["mean"])) / np.array(recipe["std"])
    np.testing.assert_allclose(found, as_numpy(expected), atol=1e-4)
    module = torch.nn.Upsample(size=(299, 299), mode="bilinear")  # as the Inception Score has it
    np.testing.assert_allclose(found, as_numpy(module(normalised)), atol=1e-4)
