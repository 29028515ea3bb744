"""From a file in the published layout to an extractor: conversion, loading, names."""

import dataclasses

import jax
import numpy as np
import pytest

pytest.importorskip("torch")

from tests.evaluate import test_towers as made
from unlearn_jax.convert import writing
from unlearn_jax.convert.__main__ import import_
from unlearn_jax.evaluate import preprocessing, towers


def test_a_published_file_becomes_an_extractor(tmp_path):
    family, tower = made.TOWERS["resnet50"]
    tensors = {k: made.tensor(k, shape) for k, shape in made.torch_shapes(family, tower).items()}
    file = tmp_path / "resnet50_places365.pth.tar.pth"
    writing.write(file, tensors, family.wrapper)
    manifest = import_("resnet50", file, tmp_path / "tower", {"image_size": 64})
    loaded, params, provenance = towers.load_tower(tmp_path / "tower")
    assert loaded == dataclasses.replace(tower, image_size=64)
    assert provenance["source"] == manifest["source"]
    jax.tree.map(np.testing.assert_array_equal, params, made.fill(family, tower, tensors))
    recipe = dict(preprocessing.RECIPES["places365"]) | {"crop": 64}
    extractor = towers.extractor(loaded, params, recipe, provenance)
    assert towers.metric_name("score", extractor) == "resnet50_score"  # not Places365's classes
    with pytest.raises(ValueError, match="makes images of 224 pixels, the tower ResNet50 takes 64"):
        towers.require("places365_score", tmp_path / "tower")
