"""Towers with their weights: loading, what is missing, and what metrics may be called."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from unlearn_jax import checkpoint, sharding
from unlearn_jax.evaluate.towers import extractor as towers
from unlearn_jax.evaluate.towers import preprocessing, small_classifier
from unlearn_jax.evaluate.towers.clip_tower import Clip
from unlearn_jax.evaluate.towers.inception import Inception
from unlearn_jax.evaluate.towers.resnet50 import ResNet50

CLIP = Clip(image_size=16, patch=8, width=16, layers=1, heads=1, mlp_width=16, embed_dim=8)


def convert(workdir, tower=CLIP, family="clip", seed=0, sha256="ab" * 32):
    """A workdir as unlearn_jax.convert leaves it."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(tower.init, jax.random.key(0))
    params = jax.tree.map(lambda x: np.float32(rng.standard_normal(x.shape)), shapes)
    workdir.mkdir(parents=True)
    source = {"file": "f.safetensors", "bytes": 9, "sha256": sha256}
    manifest = {"family": family, "model": dataclasses.asdict(tower), "source": source}
    (workdir / "conversion.json").write_text(json.dumps(manifest))
    checkpoint.save_params(workdir, params)
    return params


@pytest.mark.long
def test_a_converted_tower_is_loaded(tmp_path):
    params = convert(tmp_path / "a")
    tower, loaded, provenance = towers.load_tower(tmp_path / "a")
    assert tower == CLIP
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert provenance["source"]["sha256"] == "ab" * 32 and provenance["family"] == "clip"
    convert(tmp_path / "b")
    convert(tmp_path / "c", seed=1)
    others = [towers.load_tower(tmp_path / name)[2]["parameters_sha256"] for name in "bc"]
    assert others[0] == provenance["parameters_sha256"] != others[1]
    assert json.loads(json.dumps(provenance))["model"]["patch"] == 8
    on_mesh = towers.load_tower(tmp_path / "a", sharding.make_mesh())[1]
    assert jax.tree.leaves(on_mesh)[0].sharding.mesh.size == 8


@pytest.mark.parametrize("metric", towers.NEEDS)
def test_missing_weights_are_named_with_the_command(metric):
    needs = towers.NEEDS[metric]
    command = rf"{metric} needs .*{needs['file']} .*\n.*--family={needs['family']} --checkpoint="
    for nothing in ("", None):
        with pytest.raises(ValueError, match=command):
            towers.require(metric, nothing)


def test_damaged_and_wrong_workdirs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="found no conversion.json"):
        towers.load_tower(tmp_path / "none")
    convert(tmp_path / "a")
    path = tmp_path / "a" / "conversion.json"
    whole = path.read_text()
    for text, message in (
        (whole[:50], "expected what convert writes; JSONDecodeError.*Convert the file again"),
        ("[]", "expected what convert writes; not a JSON object"),
        (whole.replace('"clip"', '"mage"'), "expected one of .* got a 'mage'"),
        (whole.replace('"patch"', '"tile"'), "fields are not a clip's"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            towers.load_tower(tmp_path / "a")
    path.write_text(whole)
    with pytest.raises(ValueError, match=r"fid: expected .*inception.* got .*clip.*\n.*--family="):
        towers.require("fid", tmp_path / "a")


def test_the_variant_is_checked(tmp_path):
    convert(tmp_path / "a")
    path = tmp_path / "a" / "conversion.json"
    manifest = json.loads(path.read_text())
    manifest |= {"family": "inception", "model": dataclasses.asdict(Inception(width=2))}
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="got {'variant': 'fid'}"):
        towers.require("inception_score", tmp_path / "a")


def test_the_recipe_normalises_and_the_published_file_is_known(tmp_path, monkeypatch):
    convert(tmp_path / "a", dataclasses.replace(CLIP, image_size=224, patch=32, mean=(0.5,) * 3))
    recipe = preprocessing.RECIPES["clip"]
    for known, published in (("", None), ("abab", True), ("6726825d", False)):
        needs = towers.NEEDS["clip_cosine"] | {"sha256": known}
        monkeypatch.setitem(towers.NEEDS, "clip_cosine", needs)
        found = towers.require("clip_cosine", tmp_path / "a")
        assert found.provenance["published"] is published
        assert found.tower.mean == recipe["mean"] and found.recipe == recipe


def made(tower, family):
    return towers.Extractor(tower, {}, {}, {"family": family})


@pytest.mark.parametrize(
    ("extractor", "names"),
    [
        (
            made(Inception(), "inception"),
            ("fid", "kid", "inception_score", "inception_fid_cosine"),
        ),
        (
            made(Inception("torchvision"), "inception"),
            (
                "inception_torchvision_frechet",
                "inception_torchvision_kernel",
                "inception_score",
                "inception_torchvision_cosine",
            ),
        ),
        (
            made(ResNet50(), "resnet50"),
            ("places365_frechet", "places365_kernel", "places365_score", "places365_cosine"),
        ),
        (
            made(ResNet50(classes=1000), "resnet50"),
            ("resnet50_frechet", "resnet50_kernel", "resnet50_score", "resnet50_cosine"),
        ),
        (made(Clip(), "clip"), ("clip_frechet", "clip_kernel", "clip_score", "clip_cosine")),
        (
            towers.small(),
            tuple(f"cifar10_classifier_{k}" for k in ("frechet", "kernel", "score", "cosine")),
        ),
        (
            made(Inception(width=2), "inception"),
            tuple(f"inception_fid_width2_{k}" for k in ("frechet", "kernel", "score", "cosine")),
        ),
    ],
)
def test_only_the_fid_tower_makes_a_fid(extractor, names):
    found = tuple(towers.metric_name(kind, extractor) for kind in towers.KINDS)
    assert found == names
    is_fid = extractor.tower == Inception()
    assert ("fid" in found) == ("kid" in found) == is_fid
    with pytest.raises(ValueError, match="got 'fid'"):
        towers.metric_name("fid", extractor)


def test_everything_that_matters_is_in_the_fingerprint():
    tower, params, provenance = small_classifier.load()
    recipe = dict(preprocessing.RECIPES["cifar10_classifier"])
    base = towers.extractor(tower, params, recipe, provenance)
    assert towers.fingerprint(base) == towers.fingerprint(
        towers.extractor(tower, params, dict(reversed(recipe.items())), provenance)
    )
    rough = dataclasses.replace(tower, dtype="bfloat16")
    others = [
        towers.extractor(rough, params, recipe, provenance),
        towers.extractor(tower, params, recipe | {"filter": "bilinear"}, provenance),
        towers.extractor(tower, params, recipe, provenance | {"parameters_sha256": "1"}),
        towers.flipped(base),
    ]
    prints = {towers.fingerprint(found) for found in [base, *others]}
    assert len(prints) == 1 + len(others)
    with pytest.raises(ValueError, match="makes images of 299 pixels, .* takes 32"):
        towers.extractor(tower, params, preprocessing.RECIPES["fid"], provenance)
