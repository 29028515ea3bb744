"""Deletion by replay against training without the images from the beginning: the same bits."""

import shutil

import jax
import numpy as np
import pytest

from tests.helpers import sliced
from unlearn_jax import checkpoint, train
from unlearn_jax.certify.exact import chain, delete
from unlearn_jax.registry import UserError
from unlearn_jax.training.run import Run

FULL = pytest.mark.full


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


def what(values):
    """The chain but for what computed it."""
    return {key: values[key] for key in ("config", "entrances", "slices", "states")}


@pytest.mark.long
@pytest.mark.parametrize("s", (pytest.param(3, marks=FULL), 1, pytest.param(0, marks=FULL)))
def test_the_same_bits_as_without_them_from_the_beginning(original, tmp_path, s):
    ids = sliced.ids_of(sliced.get_config(), s, 3)
    found, whole = deleted(original, tmp_path, ids), from_the_beginning(tmp_path, ids)
    assert what(found) == what(whole)  # states, slices, parameters and optimizer at every entrance
    before = chain.read(original)
    assert chain.unchanged(before, found) == s
    assert before["states"][: s + 1] == found["states"][: s + 1]
    after = zip(before["states"][s + 1 :], found["states"][s + 1 :], strict=True)
    assert all(x["params"] != y["params"] for x, y in after)
    a, b = (params_of(tmp_path / name) for name in ("deleted", "without"))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


@FULL
def test_several_requests_in_a_row_are_as_one(original, tmp_path):
    cfg = sliced.get_config()
    newest, early = sliced.ids_of(cfg, 3, 2), sliced.ids_of(cfg, 1, 2)
    deleted(original, tmp_path, newest, "first")
    found = deleted(tmp_path / "first", tmp_path, early, "second")
    assert what(found) == what(from_the_beginning(tmp_path, newest + early))


@FULL
def test_killed_and_resumed_it_has_the_same_bits(original, tmp_path, monkeypatch):
    ids = sliced.ids_of(sliced.get_config(), 2, 2)
    whole, after_step = deleted(original, tmp_path, ids), Run.after_step

    def killed(self, *args):
        reason = after_step(self, *args)
        if self.record.step == 21:
            raise RuntimeError("killed")
        return reason

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(Run, "after_step", killed)
        deleted(original, tmp_path, ids, "again")
    assert what(deleted(original, tmp_path, ids, "again")) == what(whole)


@FULL
def test_split_parameters_have_the_same_bits(tmp_path):
    changes = {"mesh.fsdp": 4, "sharding.min_bytes": 0, "accumulate": 2, "batch_size": 64}
    ids = sliced.ids_of(sliced.get_config(), 2, 2)
    train.run(sliced.get_config(**changes), tmp_path / "original")
    found = deleted(tmp_path / "original", tmp_path, ids)
    assert what(found) == what(from_the_beginning(tmp_path, ids, **changes))


@FULL
def test_a_lost_checkpoint_costs_steps_and_no_bits(original, tmp_path):
    ids = sliced.ids_of(sliced.get_config(), 3, 2)
    whole = deleted(original, tmp_path, ids)
    poor = shutil.copytree(original, tmp_path / "poor")
    shutil.rmtree(poor / "slices" / "checkpoints" / "20")
    assert what(deleted(poor, tmp_path, ids, "again")) == what(whole)


@pytest.mark.long
def test_the_price_is_that_of_the_steps_left(original, tmp_path):
    ids = sliced.ids_of(sliced.get_config(), 3, 2)
    cfg = delete.config_of(original, sliced.write_list(tmp_path / "ids.txt", ids))
    assert delete.price(cfg, 3, sliced.ENTRANCES).exact == 4 * 16
    assert delete.price(cfg, 2, sliced.ENTRANCES).exact == 2 * 32 + 8 * 16
    assert delete.price(cfg, 0, sliced.ENTRANCES) == (0, 0, 640, 6 * 32, 640)


def test_what_cannot_be_deleted_exactly_is_refused(original, tmp_path):
    listed = sliced.write_list(tmp_path / "ids.txt", sliced.ids_of(sliced.get_config(), 3, 1))
    with pytest.raises(UserError, match="trained by slices"):
        delete.config_of(tmp_path, listed)
    with pytest.raises(UserError, match="slice 0 has no image left"):
        everything = sliced.ids_of(sliced.get_config(), 0, 10**6)
        deleted(original, tmp_path, everything, "everything")
