"""Sources against files written by hand, and against each other; damage must be named."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unlearn_jax.data import joining, sources

SAMPLE = Path(sources.__file__).parent / "sample" / "cifar10_sample" / "1.0.0"
CIFAR = "airplane automobile bird cat deer dog frog horse ship truck".split()


def sample(**options):
    return sources.open_source(kind="tfds", name="cifar10_sample", image_size=32, **options)


def pixels(seed, n=None, size=8):
    shape = (size, size, 3) if n is None else (n, size, size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def image_folder(root, splits=("train", "test"), per_class=3, size=8):
    """Random images of two classes, by relative path."""
    images = {}
    for split in splits:
        for label in ("dog", "cat"):
            for i in range(per_class):
                file = root / split / label / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                images[file.relative_to(root).as_posix()] = pixels(len(images), size=size)
                Image.fromarray(images[file.relative_to(root).as_posix()]).save(file)
    return images


# The bundled sample and tfds.


def test_the_bundled_sample_is_balanced_and_named():
    source = sample(cache=False)
    assert source.class_names == tuple(CIFAR)
    assert source.splits == {"train": range(2500), "test": range(2500, 3000)}
    assert np.bincount(source.labels[:2500]).tolist() == [250] * 10
    assert np.bincount(source.labels[2500:]).tolist() == [50] * 10
    assert all(id.startswith("train_") for id in source.ids[:2500])
    assert sum(f.stat().st_size for f in SAMPLE.rglob("*")) < 8e6


def test_tfds_itself_reads_the_same_from_the_sample():
    import tensorflow_datasets as tfds

    data = tfds.builder_from_directory(SAMPLE).as_data_source("test")
    source = sample(splits=("test", "train"))
    assert list(source.splits) == ["test", "train"] and len(source) == 3000
    for row in (0, 77, 499):
        np.testing.assert_array_equal(source.fetch(np.array([row]))[0], data[row]["image"])
        assert source.ids[row] == data[row]["id"].decode()
        assert source.labels[row] == data[row]["label"]


def test_with_and_without_cache_are_the_same():
    cached, lazy = sample(), sample(cache=False)
    rows = np.array([2999, 0, 5, 2500, 5, 2499])
    images = cached.fetch(rows)
    assert images.shape == (6, 32, 32, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(images, lazy.fetch(rows))
    np.testing.assert_array_equal(images[2], images[4])
    assert cached.ids == lazy.ids
    for source in (cached, lazy):
        for row in (-1, 3000):
            with pytest.raises(IndexError, match=r"rows in 0\.\.2999"):
                source.fetch(np.array([0, row]))


def test_no_tensorflow_and_no_chatter():
    code = (
        "import sys; from unlearn_jax.data import sources; import numpy as np\n"
        "s = sources.open_source(kind='tfds', name='cifar10_sample', image_size=32)\n"
        "s.fetch(np.arange(3)); print('tensorflow' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "False\n" and run.stderr == ""


def test_missing_datasets_say_how_to_prepare_them_and_what_is_there(tmp_path):
    with pytest.raises(ValueError, match=r"'cifar11'.*found \['cifar10_sample/1.0.0'\]") as error:
        sources.open_source(kind="tfds", name="cifar11", image_size=32)
    assert "download_and_prepare" in str(error.value)
    options = {"kind": "tfds", "name": "cifar10_sample", "image_size": 32}
    with pytest.raises(ValueError, match=r"found \[\]"):
        sources.open_source(**options, data_dir=str(tmp_path))
    for version in ("1.0.0", "2.0.0"):
        shutil.copytree(SAMPLE, tmp_path / "cifar10_sample" / version)
    with pytest.raises(ValueError, match="several versions.*cifar10_sample/2.0.0"):
        sources.open_source(**options, data_dir=str(tmp_path))
    exact = sources.open_source(
        **{**options, "name": "cifar10_sample/1.0.0"}, data_dir=str(tmp_path), cache=False
    )
    assert exact.name == "cifar10_sample/1.0.0"
    with pytest.raises(ValueError, match=r"\('train', 'val'\), each once; found .*'test'"):
        sample(splits=("train", "val"))


def broken_sample(tmp_path, damage, split="test"):
    folder = tmp_path / "cifar10_sample" / "1.0.0"
    shutil.copytree(SAMPLE, folder)
    file = next(folder.glob(f"*-{split}.array_record*"))
    data = bytearray(file.read_bytes())
    file.write_bytes(damage(data))
    return {"data_dir": str(tmp_path)}


@pytest.mark.parametrize("cache", [True, False])
def test_truncated_records_are_named(tmp_path, cache):
    where = broken_sample(tmp_path, lambda data: data[: len(data) // 2])
    with pytest.raises(ValueError, match="cifar10_sample/1.0.0: split 'test' cannot be opened"):
        sample(**where, cache=cache)


def test_corrupt_records_are_named(tmp_path):
    def flip(data):
        data[600_000:600_064] = bytes(255 - byte for byte in data[600_000:600_064])
        return data

    where = broken_sample(tmp_path, flip)
    message = r"cifar10_sample/1.0.0: split 'test', record (\d+) is damaged"
    with pytest.raises(ValueError, match=message) as error:
        sample(**where)
    # The record named is the damaged one: reading only that one fails, its neighbours are good.
    import re

    import tensorflow_datasets as tfds

    record = int(re.search(message, str(error.value))[1])
    folder = tmp_path / "cifar10_sample" / "1.0.0"
    data = tfds.builder_from_directory(folder).as_data_source("test")
    assert len([data[i] for i in (record - 1, record + 1)]) == 2
    with pytest.raises(Exception):  # noqa: B017
        data[record]


def test_damaged_and_missing_files_of_a_dataset_are_named(tmp_path):
    where = broken_sample(tmp_path, lambda data: data)
    folder = tmp_path / "cifar10_sample" / "1.0.0"
    (folder / "label.labels.txt").unlink()
    assert sample(**where, cache=False).class_names[3] == "3"  # nothing else is known
    next(folder.glob("*test*")).unlink()
    with pytest.raises(ValueError, match="split 'test' cannot be opened"):
        sample(**where)
    assert len(sample(**where, splits=("train",), cache=False)) == 2500
    (folder / "features.json").write_text("{")
    with pytest.raises(ValueError, match="features.json cannot be read"):
        sample(**where)


def test_wrong_image_size_says_got_and_expected():
    with pytest.raises(ValueError, match="3000 of 3000") as error:
        sources.open_source(kind="tfds", name="cifar10_sample", image_size=64)
    assert "expected 64 x 64 pixels (width x height; data.image_size), got 32 x 32" in str(
        error.value
    )
    assert "and 2990 more" in str(error.value) and "train_" in str(error.value)


# Folders.


@pytest.mark.parametrize("cache", [True, False])
def test_folders_with_and_without_splits(tmp_path, cache):
    options = {"kind": "folder", "image_size": 8, "cache": cache}
    images = image_folder(tmp_path)
    source = sources.open_source(path=str(tmp_path), **options)
    assert source.class_names == ("cat", "dog")
    assert source.splits == {"train": range(6), "test": range(6, 12)}
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1] * 2
    assert source.ids[0] == "train/cat/0.png" and source.ids[-1] == "test/dog/2.png"
    for row, image in enumerate(source.fetch(np.arange(12))):
        np.testing.assert_array_equal(image, images[source.ids[row]])
    (tmp_path / "train" / "cat" / ".hidden").write_text("no image")
    (tmp_path / "train" / "owl").mkdir()
    one = sources.open_source(path=str(tmp_path / "train"), splits=("train",), **options)
    assert one.ids == [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(3)]
    assert one.class_names == ("cat", "dog", "owl")
    with pytest.raises(ValueError, match=r"found \('train',\). Set data.splits"):
        sources.open_source(path=str(tmp_path / "train"), **options)


@pytest.mark.parametrize("cache", [True, False])
def test_a_folder_of_images_only_is_one_class(tmp_path, cache):
    (tmp_path / "train2017").mkdir()
    for i in range(3):
        Image.fromarray(pixels(i)).save(tmp_path / "train2017" / f"{i}.png")
    where = {"kind": "folder", "path": str(tmp_path / "train2017"), "image_size": 8}
    source = sources.open_source(**where, splits=("train",), cache=cache)
    assert source.class_names == ("train2017",) and source.ids == ["0.png", "1.png", "2.png"]
    np.testing.assert_array_equal(source.fetch(np.array([2, 0])), [pixels(2), pixels(0)])


def test_all_formats_become_rgb(tmp_path):
    folder = tmp_path / "cat"
    folder.mkdir()
    grey = np.full((8, 8), 77, np.uint8)
    Image.fromarray(grey).save(folder / "a.JPEG", quality=100)
    Image.fromarray(grey).save(folder / "b.png")
    Image.fromarray(np.dstack([grey] * 3 + [grey * 0])).save(folder / "c.webp", lossless=True)
    Image.fromarray(grey).convert("P").save(folder / "d.png")
    Image.fromarray(np.dstack([grey] * 3)).convert("CMYK").save(folder / "e.jpg", quality=100)
    Image.fromarray(grey.astype(np.uint16) * 257 + 100).save(folder / "f.png")  # not saturated
    source = sources.open_source(kind="folder", path=str(tmp_path), image_size=8, splits=("train",))
    images = source.fetch(np.arange(6))
    assert images.shape == (6, 8, 8, 3)
    assert np.abs(images[[0, 1, 3, 4]].astype(int) - 77).max() <= 2
    np.testing.assert_array_equal(images[5], np.dstack([grey] * 3))


@pytest.mark.parametrize("cache", [True, False])
def test_images_of_another_size_are_an_error_with_its_remedy(tmp_path, cache):
    image_folder(tmp_path)
    Image.new("RGB", (8, 9)).save(tmp_path / "test" / "dog" / "1.png")
    with pytest.raises(ValueError, match=r"dog/1.png: expected 8 x 8 .* got 8 x 9. Set data.resi"):
        sources.open_source(kind="folder", path=str(tmp_path), image_size=8, cache=cache)


def test_folders_that_are_none(tmp_path):
    options = {"kind": "folder", "image_size": 8, "splits": ("train",)}
    with pytest.raises(ValueError, match="expected a folder"):
        sources.open_source(path=str(tmp_path / "nowhere"), **options)
    with pytest.raises(ValueError, match="no images of split 'train'"):
        sources.open_source(path=str(tmp_path), **options)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"no file of split 'train' can be read.*\n  cat/notes"):
        sources.open_source(path=str(tmp_path), **options)
    with pytest.raises(ValueError, match="unknown 'hdf5', expected one of .*'tfds'\\]"):
        sources.open_source(**{**options, "kind": "hdf5"})
    with pytest.raises(ValueError, match="at least one split"):
        sources.open_source(**{**options, "splits": ()})


# Arrays.


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "set.npz", **arrays)
    return {"kind": "arrays", "path": str(tmp_path / "set.npz"), "image_size": 8}


def test_npz_rows_are_ordered_by_split(tmp_path):
    images = pixels(0, n=4)
    where = npz(
        tmp_path,
        image=images,
        label=np.array([0, 1, 1, 0]),
        id=np.array(["a", "b", "c", "d"]),
        split=np.array(["test", "train", "test", "train"]),
        class_names=np.array([b"cat", b"dog"]),
    )
    source = sources.open_source(**where)
    assert source.ids == ["b", "d", "a", "c"]
    assert source.labels.tolist() == [1, 0, 0, 1]
    assert source.class_names == ("cat", "dog")
    assert source.splits == {"train": range(2), "test": range(2, 4)}
    np.testing.assert_array_equal(source.fetch(np.arange(4)), images[[1, 3, 0, 2]])
    test = sources.open_source(**where, splits=("test",))
    assert test.ids == ["a", "c"] and test.splits == {"test": range(2)}


def test_float_images_become_the_nearest_colour(tmp_path):
    images = pixels(1, n=3)
    where = npz(tmp_path, image=(images / 255).astype(np.float32), label=np.array([2, 0, 2]))
    source = sources.open_source(**where, splits=("train",))
    np.testing.assert_array_equal(source.fetch(np.arange(3)), images)
    assert source.ids == ["train_0", "train_1", "train_2"]
    assert source.class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("value", "found"), [(np.nan, "nan"), (np.inf, "inf"), (-1.0, "-1.0"), (255.0, "255.0")]
)
def test_bad_floats_are_counted_and_located(value, found):
    images = np.full((5, 8, 8, 3), 0.5)
    images[[2, 4], 3, 1, 0] = value
    with pytest.raises(ValueError, match=f"in 2 images, the first at index 2: range.*{found}"):
        sources.from_arrays(images, np.zeros(5, np.int64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": np.zeros(4)}, "integer labels .*got float64"),
        ({"label": np.eye(4, dtype=int)}, r"labels \[n\], got int64 \[4, 4\]"),
        ({"label": np.zeros(3, int)}, "got 4, 3 and 3"),
        pytest.param({"label": np.array([0, 0, -1, 0])}, "got -1 at index 2"),
        (
            {"label": np.array([0, 5, 1, 9]), "class_names": np.array(["a", "b"])},
            "2 class names, got 5 at index 1",
        ),
        (
            {"label": np.array([0, 1, 2, 0]), "class_names": np.array(["a", "b"])},
            "got 2 at index 2",
        ),
        ({"label": np.array([0, 2**32 + 1, 1, 0])}, "got 4294967297 at index 1"),
        ({"label": np.array([0, 2**32, 1, 0]), "class_names": np.array(["a"])}, "got 4294967296"),
        ({"label": np.array([0, 0, -1, 0])}, "labels from 0 for at most 100000 classes, got"),
        pytest.param({"label": np.array([0, 1, -(2**32), 0])}, "got -4294967296 at"),
        (
            {"label": np.array([0, 2**63 + 1, 1, 0], np.uint64)},
            "got 9223372036854775809 at index 1",
        ),
        ({"label": np.array([10**8, 0, 0, 0])}, "at most 100000 classes, got 100000000 at index 0"),
        ({"label": np.array([0, 0, 0, 100_000])}, "got 100000 at index 3.*or give class_names"),
        (
            {"class_names": np.array("ab")},
            "expected class_names as a list of names, got one .*'ab'",
        ),
        ({"id": np.array("abcd")}, "expected id as a list of names, got one value, 'abcd'"),
        ({"split": np.array("train")}, "expected split as a list of names, got one value, 'train'"),
        ({"class_names": np.array([["a", "b"]])}, "expected class_names as a list"),
        ({"id": np.array(["a", "b", "a", "c"])}, "unique; 'a' occur"),
        ({"id": np.array(["a", "b"])}, "expected 4 ids, got 2"),
        ({"class_names": np.array(["a", "a"])}, "class names must be unique"),
        ({"image": np.zeros((4, 8, 8, 1), np.uint8)}, r"\[n, 8, 8, 3\], got \(4, 8, 8, 1\)"),
        ({"image": np.zeros((4, 8, 8, 3), int)}, "uint8 images or floats in .*got int64"),
        ({"label": np.array([None] * 4)}, "without Python objects.*ValueError"),
    ],
)
def test_bad_arrays_are_refused(tmp_path, change, message):
    arrays = {"image": pixels(0, n=4), "label": np.zeros(4, int), **change}
    with pytest.raises(ValueError, match=message):
        sources.open_source(**npz(tmp_path, **arrays), splits=("train",))


def test_labels_just_inside_their_range_are_good(tmp_path):
    where = npz(tmp_path, image=pixels(0, n=2), label=np.array([99_999, 0], np.uint64))
    source = sources.open_source(**where, splits=("train",))
    assert source.labels.tolist() == [99_999, 0] and len(source.class_names) == 100_000
    names = np.array(["a", "b"])
    where = npz(tmp_path, image=pixels(0, n=2), label=np.array([1, 0], np.int8), class_names=names)
    assert sources.open_source(**where, splits=("train",)).labels.tolist() == [1, 0]


def test_sources_know_the_folder_of_their_ids(tmp_path):
    image_folder(tmp_path / "photos")
    for cache in (True, False):
        where = {"kind": "folder", "path": str(tmp_path / "photos"), "cache": cache}
        source = sources.open_source(**where, image_size=8)
        assert source.root == str(tmp_path / "photos") and source.proxy == ""
        assert (Path(source.root) / source.ids[3]).is_file()
        few = joining.subset(source, 4, 0)
        assert few.root == source.root
        other = sources.from_arrays(pixels(0, n=2), np.array([0, 1]), name="b")
        assert joining.concat(few, other).root == source.root
        assert joining.concat(few, other).proxy == "b"
    assert sources.from_arrays(pixels(0, n=2), np.array([0, 1])).root == ""


def test_files_that_are_no_npz(tmp_path):
    where = npz(tmp_path, images=pixels(0, n=2), labels=np.zeros(2, int))
    with pytest.raises(ValueError, match=r"image and label, found \['images', 'labels'\]"):
        sources.open_source(**where)
    file = tmp_path / "set.npz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="expected an .npz file"):
        sources.open_source(**where)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match="expected an .npz file"):
        sources.open_source(kind="arrays", path=str(tmp_path / "one.npy"), image_size=8)
    with pytest.raises(ValueError, match=r"FileNotFoundError"):
        sources.open_source(kind="arrays", path=str(tmp_path / "none.npz"), image_size=8)


def test_arrays_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"\[n, h, w, 3\], got \[4, 8, 8\]"):
        sources.from_arrays(np.zeros((4, 8, 8), np.uint8), np.zeros(4, int))


# Proxy data.


def test_concat_keeps_every_label_with_its_name():
    a = sources.from_arrays(
        pixels(0, n=3), np.array([0, 1, 1]), class_names=["cat", "dog"], name="a"
    )
    b = sources.from_arrays(
        pixels(1, n=4), np.array([0, 1, 2, 2]), class_names=["owl", "cat", "2"], name="b"
    )
    both = joining.concat(a, b)
    assert both.class_names == ("cat", "dog", "owl", "proxy/2")
    names = [both.class_names[label] for label in both.labels]
    assert names == ["cat", "dog", "dog", "owl", "cat", "proxy/2", "proxy/2"]
    assert both.ids == [*a.ids, *(f"proxy/{id}" for id in b.ids)]
    assert both.splits == {"train": range(3), "proxy": range(3, 7)}
    rows = np.array([5, 0, 3, 2])
    expected = [b.fetch(np.array([2])), a.fetch(np.array([0]))]
    expected += [b.fetch(np.array([0])), a.fetch(np.array([2]))]
    np.testing.assert_array_equal(both.fetch(rows), np.concatenate(expected))
    np.testing.assert_array_equal(both.fetch(np.arange(3, 7)), b.fetch(np.arange(4)))
    for wrong in (lambda: joining.concat(a, a), lambda: joining.concat(both, b)):
        with pytest.raises(ValueError, match="another dataset"):
            wrong()


def test_numbers_are_no_names_to_merge_by():
    a = sources.from_arrays(pixels(0, n=2), np.array([0, 1]), name="a")
    b = sources.from_arrays(pixels(1, n=2), np.array([0, 1]), name="b")
    both = joining.concat(a, b)
    assert both.labels.tolist() == [0, 1, 2, 3]
    assert both.class_names == ("0", "1", "proxy/0", "proxy/1")


def test_sources_of_different_sizes_do_not_mix():
    a = sources.from_arrays(pixels(0, n=2), np.array([0, 1]), name="a")
    b = sources.from_arrays(pixels(1, n=2, size=4), np.array([0, 1]), name="b")
    with pytest.raises(ValueError, match="expected one shape"):
        joining.concat(a, b).fetch(np.arange(4))
