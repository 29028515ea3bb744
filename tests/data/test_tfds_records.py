"""Prepared tfds datasets whose ids are file names, and the index that is kept of them."""

import io
import json
import os
import re
import shutil
import sys
from importlib import resources

import numpy as np
import pytest
from PIL import Image

from unlearn_jax.data import sources, tfds_records
from unlearn_jax.data.names import ids_of, label_of
from unlearn_jax.registry import UserError

WNIDS = ["n01440764", "n01443537"]
PLACES = ["attic", "bakery/shop"]


def png(value):
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(data, "png")
    data.seek(0)
    return data


def examples(name, split):
    """(file name, label, red), in another order than the labels."""
    for i in range(6):
        label, red = i % 2, 100 * (split == "train") + i
        if name == "imagenet2012":
            validation = f"ILSVRC2012_val_{i:08d}.JPEG"
            yield f"{WNIDS[label]}_{i}.JPEG" if split == "train" else validation, label, red
        elif split == "train":
            yield f"data_256/{PLACES[label][0]}/{PLACES[label]}/{i:08d}.jpg", label, red
        else:
            yield f"val_256/Places365_val_{i:08d}.jpg", label, red


def prepare(folder, dataset):
    import tensorflow_datasets as tfds

    feature = {"imagenet2012": "file_name", "places365_small": "filename"}[dataset]

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = dataset
        code_path = None  # else tfds wants to look for checksums beside this file
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            names = WNIDS if dataset == "imagenet2012" else PLACES
            features = {
                "image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=names),
                feature: tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, _):
            return {s: self._generate_examples(s) for s in ("train", "validation")}

        def _generate_examples(self, split):
            for file, label, red in examples(dataset, split):
                yield file, {"image": png(red), "label": label, feature: file}

    Builder(data_dir=folder, file_format="array_record").download_and_prepare()


def opened(folder, name, **options):
    options = {"splits": ("train", "validation"), "cache": False, "image_size": 8, **options}
    return sources.open_source(kind="tfds", name=name, data_dir=str(folder), **options)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder of kept indices, for datasets of any size."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tfds_records, "_WORTH_CACHING", 1)
    return tmp_path / "cache" / "unlearn_jax"


def test_imagenet_is_found_by_published_paths(tmp_path):
    prepare(tmp_path, "imagenet2012")
    source = opened(tmp_path, "imagenet2012")
    assert source.class_names == tuple(WNIDS)
    assert set(source.ids) == {
        f"{WNIDS[label]}/{file}"
        for split in ("train", "validation")
        for file, label, _ in examples("imagenet2012", split)
    }
    names = [
        "../dataset/imagenet1k/train/n01443537/n01443537_3.JPEG",
        "val/n01440764/ILSVRC2012_val_00000004.JPEG",
    ]
    rows = np.array([ids_of(source).find(name) for name in names])
    assert source.fetch(rows)[:, 0, 0, 0].tolist() == [103, 4]


def test_places_has_its_paths_as_ids_and_class_names(tmp_path):
    prepare(tmp_path, "places365_small")
    source = opened(tmp_path, "places365_small")
    assert source.class_names == ("a/attic", "b/bakery/shop")
    assert "data_256/b/bakery/shop/00000003.jpg" in source.ids
    rows = np.array([ids_of(source).find("train_256/b/bakery/shop/00000003.jpg")])
    assert source.fetch(rows)[0, 0, 0, 0] == 103
    assert label_of(source, "/a/attic", "") == 0


def test_a_dataset_is_listed_once(tmp_path, kept, monkeypatch):
    prepare(tmp_path / "data", "imagenet2012")
    first = opened(tmp_path / "data", "imagenet2012")
    (file,) = kept.iterdir()
    monkeypatch.setattr(tfds_records, "_id", lambda *_: pytest.fail("read again"))
    again = opened(tmp_path / "data", "imagenet2012")
    assert again.ids == first.ids and again.labels.tolist() == first.labels.tolist()
    rows = np.arange(12)
    np.testing.assert_array_equal(again.fetch(rows), first.fetch(rows))
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept.parent))
    monkeypatch.setattr(tfds_records, "_WORTH_CACHING", 1)
    one = opened(tmp_path / "data", "imagenet2012", splits=("validation",))
    assert one.ids == first.ids[6:] and len(list(kept.iterdir())) == 2
    opened(tmp_path / "data", "imagenet2012", cache=True)  # reads everything anyway
    assert len(list(kept.iterdir())) == 2
    # Damaged, or of another number of records: made again, with the same bytes.
    whole = file.read_bytes()
    for damaged in (whole[:-5], b"", max(kept.iterdir(), key=lambda f: f != file).read_bytes()):
        file.write_bytes(damaged)
        assert opened(tmp_path / "data", "imagenet2012").ids == first.ids
        assert file.read_bytes() == whole


def test_a_dataset_prepared_again_is_listed_again(tmp_path, kept):
    import os

    prepare(tmp_path / "data", "imagenet2012")
    opened(tmp_path / "data", "imagenet2012")
    (before,) = kept.iterdir()
    shard = next((tmp_path / "data").rglob("*train*"))
    os.utime(shard, (1, 1))
    opened(tmp_path / "data", "imagenet2012")
    assert len(list(kept.iterdir())) == 2 and before.exists()


def test_small_datasets_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prepare(tmp_path / "data", "imagenet2012")
    opened(tmp_path / "data", "imagenet2012")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("tensorflow_datasets.core.features.text_feature", "evil"),
         "got 'evil.Text', which would be imported"),
        (lambda text: "[" * 100_000, "features.json cannot be read"),
        (lambda text: text + " " * 2**20, "more than 1048576 bytes"),
    ],
    ids=["a class of its own", "deep", "large"],
)  # fmt: skip
def test_metadata_import_and_exhaust_nothing(tmp_path, monkeypatch, change, message):
    sample = resources.files("unlearn_jax.data") / "sample" / "cifar10_sample"
    shutil.copytree(sample, tmp_path / "data" / "cifar10")
    (features,) = (tmp_path / "data").glob("*/*/features.json")
    features.write_text(change(features.read_text()))
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=re.escape(message)):
        opened(tmp_path / "data", "cifar10", image_size=32, splits=("train",))
    assert "evil" not in sys.modules


def test_a_label_that_no_class_has_is_said(tmp_path):
    prepare(tmp_path, "imagenet2012")
    (features,) = tmp_path.glob("*/*/features.json")
    features.write_text(features.read_text().replace('"numClasses": "2"', '"numClasses": "1"'))
    (names,) = tmp_path.glob("*/*/label.labels.txt")
    names.write_text(f"{WNIDS[0]}\n")
    with pytest.raises(UserError, match=r"imagenet2012/1.0.0: expected labels in 0\.\.0"):
        opened(tmp_path, "imagenet2012")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda of: of["featuresDict"]["features"].pop("label"), "an image and a label of a class"),
        (lambda of: of["featuresDict"]["features"].update(
            label=of["featuresDict"]["features"]["file_name"]), "an image and a label of a class"),
        (lambda of: of.update(of["featuresDict"]["features"]["file_name"]), "cannot be read"),
    ],
)  # fmt: skip
def test_features_of_other_kinds_are_said(tmp_path, change, message):
    prepare(tmp_path, "imagenet2012")
    (path,) = tmp_path.glob("*/*/features.json")
    features = json.loads(path.read_text())
    change(features)
    path.write_text(json.dumps(features))
    with pytest.raises(UserError, match=f"imagenet2012/1.0.0: .*{message}"):
        opened(tmp_path, "imagenet2012")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "label.labels.txt"])
def test_nobody_waits_for_a_pipe_beside_the_records(tmp_path, name):
    prepare(tmp_path, "imagenet2012")
    (path,) = tmp_path.glob(f"*/*/{name}")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=f"cannot be read .*a pipe.*{name}"):
        opened(tmp_path, "imagenet2012")
