"""Deletion by replay against training without the images from the beginning: the same bits."""

import jax
import numpy as np
import pytest

from tests.helpers import sliced, wide
from unlearn_jax import checkpoint, train
from unlearn_jax.exact import chain, delete
from unlearn_jax.models import MODELS


@pytest.fixture(scope="module", autouse=True)
def _wide_is_a_model():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "wide", wide.Wide)
        yield


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("exact") / "original"
    train.run(sliced.get_config(), workdir)
    return workdir


def from_the_beginning(tmp_path, ids, **changes):
    """The chain of a training without these images."""
    cfg = sliced.get_config(stage="retrained", **changes)
    cfg.request.update({"kind": "ids", "file": sliced.write_list(tmp_path / "all.txt", ids)})
    train.run(cfg, tmp_path / "without")
    return chain.read(tmp_path / "without")


def deleted(model, tmp_path, ids, name="deleted"):
    cfg = delete.config_of(model, sliced.write_list(tmp_path / f"{name}.txt", ids))
    delete.delete(cfg, model, tmp_path / name)
    return chain.read(tmp_path / name)


def params_of(workdir):
    like, _ = checkpoint.stored(workdir)
    return [np.asarray(x) for x in jax.tree.leaves(checkpoint.load_params(workdir, like)[0])]


@pytest.mark.parametrize("s", (3, 1, 0))
def test_the_same_bits_as_without_them_from_the_beginning(original, tmp_path, s):
    ids = sliced.ids_of(sliced.get_config(), s, 3)
    found, whole = deleted(original, tmp_path, ids), from_the_beginning(tmp_path, ids)
    assert found == whole  # states, slices, links: parameters and optimizer at every entrance
    before = chain.read(original)
    assert chain.unchanged(before, found) == s
    assert before["states"][: s + 1] == found["states"][: s + 1]
    after = zip(before["states"][s + 1 :], found["states"][s + 1 :], strict=True)
    assert all(x["params"] != y["params"] for x, y in after)
    a, b = (params_of(tmp_path / name) for name in ("deleted", "without"))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)
