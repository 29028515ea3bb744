"""The bundled CIFAR-10 classifier: its size, its accuracy, and how it was trained."""

import os
from importlib import resources

import jax
import numpy as np
import pytest

from tests.helpers.binaries import run
from unlearn_jax import files
from unlearn_jax.data import sources
from unlearn_jax.evaluate.towers import small_classifier
from unlearn_jax.evaluate.towers.small_classifier import SmallClassifier


@pytest.fixture(scope="module")
def sample():
    source = sources.open_source(kind="tfds", name="cifar10_sample", image_size=32)
    return {s: (source.fetch(np.array(r)), source.labels[r]) for s, r in source.splits.items()}


def test_the_bundled_weights_are_small_and_as_good_as_they_say(sample):
    path = resources.files("unlearn_jax.evaluate.towers") / small_classifier.WEIGHTS
    assert os.path.getsize(str(path)) < 700_000
    tower, params, provenance = small_classifier.load()
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) <= 300_000
    right = small_classifier.accuracy(tower, params, *sample["test"])  # 500 of the 10,000
    stated = provenance["test_accuracy"]
    assert stated > 0.8 and provenance["n_test"] == 10_000
    assert abs(right - stated) < 4 * (stated * (1 - stated) / 500) ** 0.5


def test_features():
    tower, params, _ = small_classifier.load()
    image = jax.random.uniform(jax.random.key(0), (3, 32, 32, 3), minval=-1)
    found = jax.jit(tower.features)(params, image)
    assert {k: v.shape for k, v in found.items()} == {"pool": (3, 128), "logits": (3, 10)}
    expected = found["pool"] @ params["fc"]["kernel"] + params["fc"]["bias"]
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"expects images \[b, 32, 32, 3\]"):
        tower.features(params, image[:, :16])


def test_folded_norms_are_the_norms():
    tower = SmallClassifier(width=2)
    rng = np.random.default_rng(0)
    net = tower._module.clone(train=True)
    image = rng.uniform(-1, 1, (4, 32, 32, 3)).astype(np.float32)
    variables = jax.jit(net.init)(jax.random.key(0), image)
    params, statistics = (
        jax.tree.map(lambda x: x + rng.uniform(0.1, 1, x.shape).astype(np.float32), variables[k])
        for k in ("params", "batch_stats")
    )
    # The norms of a batch that has these statistics: scale the batch's own ones to them.
    x = jax.lax.conv_general_dilated(
        image, params["conv0"]["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    norm, known = params["norm0"], statistics["norm0"]
    expected = (x - known["mean"]) / np.sqrt(known["var"] + 1e-5) * norm["scale"] + norm["bias"]
    folded = small_classifier._fold(params, statistics)["conv0"]
    found = jax.lax.conv_general_dilated(
        image, folded["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(found + folded["bias"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_training_learns_and_repeats(sample):
    tower = SmallClassifier(width=4)
    images, labels = (part[:640] for part in sample["train"])
    labels = (labels >= 1).astype(np.int64)  # of the first class or not; 250 of 640 are
    tower = SmallClassifier(width=4, classes=2)
    options = {"seed": 0, "epochs": 3, "tower": tower, "batch_size": 64}
    params = small_classifier.train(images, labels, **options)
    assert small_classifier.accuracy(tower, params, images, labels) > 0.7
    again = small_classifier.train(images, labels, **options)
    jax.tree.map(np.testing.assert_array_equal, params, again)
    with pytest.raises(ValueError, match="Expected 128 or more training images, got 9"):
        small_classifier.train(images[:9], labels[:9], seed=0, epochs=1, tower=tower)


def test_weights_survive_a_file_and_others_are_refused(tmp_path):
    tower = SmallClassifier(width=2)
    params = tower.init(jax.random.key(0))
    small_classifier.save(tmp_path / "w.npz", params, {"family": "cifar10_classifier"})
    loaded, read, provenance = small_classifier.load(tmp_path / "w.npz")
    assert loaded == tower and provenance == {"family": "cifar10_classifier"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), read, params)
    files.write_arrays(tmp_path / "x.npz", {"a/b": np.ones(3)}, {})
    with pytest.raises(ValueError, match=r"x.npz: expected weights .* found \['a/b'\]"):
        small_classifier.load(tmp_path / "x.npz")
    (tmp_path / "w.npz").write_bytes((tmp_path / "w.npz").read_bytes()[:300])
    with pytest.raises(ValueError, match="is damaged"):
        small_classifier.load(tmp_path / "w.npz")


def test_binary_says_what_is_missing():
    _, err = run("unlearn_jax.evaluate.towers.small_classifier", "--out=x.npz", code=1)
    assert "missing: ['--data_dir=…']" in err
