"""From a file in the published layout to an extractor: conversion, loading, names."""

import jax
import numpy as np
import pytest

from tests.evaluate.towers import test_towers as made
from unlearn_jax.convert import writing
from unlearn_jax.convert.__main__ import import_
from unlearn_jax.evaluate.towers import extractor as towers
from unlearn_jax.evaluate.towers import preprocessing


def test_a_published_file_becomes_an_extractor(tmp_path):
    family, tower = made.TOWERS["clip"]
    tensors = {k: made.tensor(k, shape) for k, shape in made.torch_shapes(family, tower).items()}
    file = tmp_path / "open_clip.safetensors"
    writing.write(file, tensors, family.wrapper)
    manifest = import_("clip", file, tmp_path / "tower", {"heads": 2, "quick_gelu": False})
    loaded, params, provenance = towers.load_tower(tmp_path / "tower")
    assert loaded == tower
    assert provenance["source"].items() <= manifest["source"].items()
    jax.tree.map(np.testing.assert_array_equal, params, made.fill(family, tower, tensors))
    recipe = dict(preprocessing.RECIPES["clip"]) | {"resize": 24, "crop": 24}
    extractor = towers.extractor(loaded, params, recipe, provenance)
    assert towers.metric_name("cosine", extractor) == "clip_width128_cosine"
    with pytest.raises(ValueError, match="makes images of 224 pixels, the tower Clip takes 24"):
        towers.require("clip_cosine", tmp_path / "tower")
