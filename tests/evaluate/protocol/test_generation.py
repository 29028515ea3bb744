"""Completed images as files: named, resumed and refused as they should be."""

import jax
import numpy as np
import pytest
from PIL import Image

from tests.helpers.toy import Toy
from unlearn_jax import data, sharding
from unlearn_jax.data import transforms
from unlearn_jax.evaluate.protocol import generation

TASK = {"name": "inpaint", "hole": 0.5}
IDS = [f"val/{name}/x_{i}.JPEG" for i in range(5) for name in ("cat", "dog")]


def source():
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)
    return data.from_arrays(images, np.arange(10) % 2, ids=IDS, class_names=("cat", "dog"))


def noisy(params, batch, key):
    """Fills the hole with noise that depends on the key and the image's index, as models do."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
    noise = jax.vmap(lambda k: jax.random.uniform(k, (8, 8, 3), minval=-1))(keys)
    return batch["image"] * (1 - batch["mask"]) + noise * batch["mask"]


def complete(folder, generate=None, rows=None, **changes):
    settings = {"facts": {"model": "toy"}, "seed": 3, "batch_size": 8, "shard_size": 4}
    seen = []
    files = generation.complete(
        generate or jax.jit(noisy), {}, source(), np.arange(10) if rows is None else rows, TASK,
        folder, mesh=sharding.make_mesh(), seen=seen.append, **(settings | changes),
    )  # fmt: skip
    assert sum(seen) == len(files)
    return files


def pixels(files):
    return np.stack([np.asarray(Image.open(file)) for file in files])


def test_files_hold_what_the_model_generates(tmp_path):
    model, rows = Toy(), np.array([7, 2, 4])
    params = model.init(jax.random.key(1))
    files = complete(
        tmp_path, lambda _, batch, key: model.generate(params, batch, key), rows=rows
    )  # fmt: skip
    assert files == [tmp_path / IDS[i].replace("JPEG", "png") for i in rows]
    (batch,) = data.make_eval(source(), rows, batch_size=8, task=TASK, seed=3)
    wanted = transforms.to_uint8(np.asarray(model.generate(params, batch, jax.random.key(0))))[:3]
    np.testing.assert_array_equal(pixels(files), wanted)
    assert Image.open(files[0]).mode == "RGB"


def test_images_depend_on_neither_batches_nor_shards_and_visible_pixels_stay(tmp_path):
    found = pixels(complete(tmp_path / "a"))
    other = pixels(complete(tmp_path / "b", batch_size=16, shard_size=100))
    np.testing.assert_array_equal(found, other)
    assert (pixels(complete(tmp_path / "c", seed=4)) != found).any()
    visible = transforms.make_mask(TASK, 8, np.zeros((1, 2), np.uint64))[0, ..., 0] == 0
    np.testing.assert_array_equal(found[:, visible], source().fetch(np.arange(10))[:, visible])


def test_an_interrupted_run_continues_with_the_unfinished_shard(tmp_path):
    whole = pixels(complete(tmp_path / "whole"))
    calls, generate = [], jax.jit(noisy)

    def failing(params, batch, key):
        calls.append(np.asarray(batch["index"]))
        if len(calls) == 2:
            raise OSError("interrupted")
        return generate(params, batch, key)

    with pytest.raises(OSError, match="interrupted"):
        complete(tmp_path / "x", failing)
    files = complete(tmp_path / "x", failing)
    assert [c[0] for c in calls] == [0, 4, 4, 8]  # the first shard is not done again
    np.testing.assert_array_equal(pixels(files), whole)
    complete(tmp_path / "x", failing)
    assert len(calls) == 4


def test_a_folder_of_other_images_is_refused(tmp_path):
    complete(tmp_path)
    with pytest.raises(ValueError, match=r"images.model: 'toy' -> 'other'"):
        complete(tmp_path, facts={"model": "other"})
    with pytest.raises(ValueError, match=r"images.ids"):
        complete(tmp_path, rows=np.arange(9))
    (tmp_path / generation.RECORD).write_text("{")
    with pytest.raises(ValueError, match=r"shards.json is damaged"):
        complete(tmp_path)


def test_files_can_be_as_released(tmp_path):
    def generate(params, batch, key):
        colours = np.float32([0.999, 0.0, -0.5])  # orange; 254.9, 127.5, 63.75 of 255
        return np.broadcast_to(colours, batch["image"].shape)

    (file, *_) = complete(tmp_path / "png", generate)
    assert generation.read(file, "png")[0, 0].tolist() == [255, 128, 64]
    (file, *_) = complete(tmp_path / "bgr", generate, format="jpeg_bgr_compat")
    assert file.suffix == ".JPEG"
    stored = np.asarray(Image.open(file))[0, 0].astype(int)
    assert np.abs(stored - [63, 127, 254]).max() <= 2  # red and blue exchanged, cut; lossy
    np.testing.assert_array_equal(generation.read(file, "jpeg_bgr_compat")[0, 0], stored[::-1])
    (file, *_) = complete(tmp_path / "75", generate, format="jpeg_75_compat")
    assert file.suffix == ".jpg"
    assert np.abs(generation.read(file, "jpeg_75_compat")[0, 0] - [255, 128, 64.0]).max() <= 4
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match="cannot be read"):
        generation.read(file, "jpeg_75_compat")


def test_names_stay_in_the_folder_and_are_unique():
    assert generation.names(["/a/b.JPEG", "c.d.jpg"], ".png") == ["a/b.png", "c.d.png"]
    for ids in (["../x.png"], ["a/../../x.png"], ["a.jpg", "a.png"], ["/"]):
        with pytest.raises(ValueError, match="Cannot name the completed images"):
            generation.names(ids, ".png")
