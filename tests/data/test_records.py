"""Prepared records against the files they come from."""

import csv
import gzip
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from tests.helpers.files import WNIDS, contents, imagenet, jpeg, opened, places, put, run
from unlearn_jax import data
from unlearn_jax.config import default
from unlearn_jax.data import copies, index, layouts, prepare, preprocess, records, served, sources
from unlearn_jax.files import file_digest
from unlearn_jax.registry import UserError


def test_imagenet_is_stored_as_it_is(tmp_path):
    imagenet(tmp_path / "raw")
    manifest = run(tmp_path / "raw", tmp_path / "out")
    assert {s: f["count"] for s, f in manifest["splits"].items()} == {"train": 12, "validation": 6}
    assert [s["count"] for s in manifest["splits"]["train"]["shards"]] == [5, 5, 2]
    for shard in manifest["splits"]["train"]["shards"]:
        assert file_digest(tmp_path / "out" / shard["file"]) == shard["sha256"]
    assert set(contents(tmp_path / "out")) == {
        "manifest.json", "index.gz", "quarantine.csv", "copies.npz",
        "validation-00000-of-00002.array_record",
        "validation-00001-of-00002.array_record",
        *(f"train-{i:05d}-of-00003.array_record" for i in range(3)),
    }  # fmt: skip
    listing = records.list_records(tmp_path / "out", ("train", "validation"))
    assert listing.class_names == WNIDS and listing.name == "imagenet"
    assert listing.splits == {"train": range(12), "validation": range(12, 18)}
    for row, id in enumerate(listing.ids):
        assert listing.encoded([row]) == [(tmp_path / "raw" / id).read_bytes()]
        assert WNIDS[listing.labels[row]] == id.split("/")[1]
        assert Image.open(tmp_path / "raw" / id).size == tuple(listing.sizes[row])
    assert list(listing.ids[:12]) == sorted(listing.ids[:12])


def test_records_and_folders_are_the_same_source(tmp_path):
    imagenet(tmp_path / "raw")
    run(tmp_path / "raw", tmp_path / "out")
    folder = sources.open_source(
        kind="folder", path=str(tmp_path / "raw"), image_size=16, splits=("train", "val"),
        resize="crop", cache=False,
    )  # fmt: skip
    for cache in (True, False):
        source = opened(tmp_path / "out", cache=cache)
        assert source.ids == folder.ids and source.class_names == folder.class_names
        rows = np.array([17, 0, 3, 12, 3])
        np.testing.assert_array_equal(source.fetch(rows), folder.fetch(rows))
    other = opened(tmp_path / "out", splits=("validation",))
    assert other.ids == folder.ids[12:]
    np.testing.assert_array_equal(other.fetch(np.arange(6)), folder.fetch(np.arange(12, 18)))


def test_reading_is_safe_in_threads(tmp_path):
    imagenet(tmp_path / "raw", per_class=30)
    run(tmp_path / "raw", tmp_path / "out")
    source = opened(tmp_path / "out", splits=("train",))
    expected = opened(tmp_path / "out", splits=("train",)).fetch(np.arange(90))
    failures = []

    def read(seed):
        rows = np.random.default_rng(seed).permutation(90)
        if not np.array_equal(source.fetch(rows), expected[rows]):
            failures.append(seed)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize(("flat", "prefix"), [(True, False), (False, False), (False, True)])
def test_places_in_its_layouts(tmp_path, flat, prefix):
    places(tmp_path / "raw", flat, prefix)
    manifest = run(tmp_path / "raw", tmp_path / "out", "places365")
    assert manifest["class_names"] == ["b/badlands", "b/bakery/shop", "z/zen_garden"]
    source = opened(tmp_path / "out")
    assert source.ids[:4] == [
        *(f"train_256/b/badlands/{i:08d}.jpg" for i in (1, 2, 3)),
        "train_256/b/bakery/shop/00000001.jpg",
    ]
    between = "b_badlands_" if prefix else ""
    assert source.ids[9] == f"val_256/b/badlands/{between}Places365_val_00000001.jpg"
    assert source.labels[9:].tolist() == [0, 0, 1, 1, 2, 2]
    listing = records.list_records(tmp_path / "out", ("validation",))
    assert listing.encoded([2]) == [jpeg(51, 16, 16)]  # image 2, of the second class


@pytest.mark.parametrize("name", ["data_256", "data_256_standard", "train_large", "train"])
def test_other_names_of_the_folders_of_places(tmp_path, name):
    places(tmp_path / "raw")
    (tmp_path / "raw" / "train_256").rename(tmp_path / "raw" / name)
    found = layouts.find("places365", tmp_path / "raw")
    assert found.splits["train"][0].id == f"{name}/b/badlands/00000001.jpg"
    shutil.copytree(tmp_path / "raw" / name, tmp_path / "raw" / "train_256", dirs_exist_ok=True)
    with pytest.raises(ValueError, match=f"expected one folder of each .*'train_256', '{name}'"):
        layouts.find("places365", tmp_path / "raw")


@pytest.mark.parametrize("separator", [" ", ","])
@pytest.mark.parametrize("kind", ["wnid", "label", "kaggle", "folder"])
def test_flat_validation_images_need_their_classes(tmp_path, kind, separator):
    class_of = imagenet(tmp_path / "raw", flat=True)
    with pytest.raises(ValueError, match=r"6 images lie outside .* --val_labels=FILE") as error:
        run(tmp_path / "raw", tmp_path / "out")
    assert "LOC_val_solution.csv" in str(error.value)
    lines = {
        "wnid": [f"{name}{separator}{c}" for name, c in class_of.items()],
        "label": [f"{name}{separator}{WNIDS.index(c)}" for name, c in class_of.items()],
        "folder": [f"val/{name}{separator}{c}" for name, c in class_of.items()],
        "kaggle": ["ImageId,PredictionString"]
        + [f"{Path(name).stem},{c} 10 20 30 40 " for name, c in class_of.items()],
    }[kind]
    (tmp_path / "labels.txt").write_text("\n".join(lines))
    run(tmp_path / "raw", tmp_path / "out", val_labels=str(tmp_path / "labels.txt"))
    imagenet(tmp_path / "foldered")
    run(tmp_path / "foldered", tmp_path / "other")
    flat, foldered = opened(tmp_path / "out"), opened(tmp_path / "other")
    assert flat.ids == foldered.ids and flat.labels.tolist() == foldered.labels.tolist()
    rows = np.arange(len(flat))
    np.testing.assert_array_equal(flat.fetch(rows), foldered.fetch(rows))


def test_folders_lists_and_classes(tmp_path):
    imagenet(tmp_path / "raw")
    manifest = run(tmp_path / "raw", tmp_path / "folder", "folder")
    assert tuple(manifest["splits"]) == ("train", "val") and manifest["name"] == "raw"
    for i in range(3):
        put(tmp_path / "train2017" / f"{i}.jpg", jpeg(i))
    manifest = run(tmp_path / "train2017", tmp_path / "coco", "folder")
    assert manifest["class_names"] == ["train2017"] and manifest["splits"]["train"]["count"] == 3

    train = [f"../data/imagenet1k/train/{WNIDS[0]}/{WNIDS[0]}_{i}.JPEG" for i in (2, 0)]
    (tmp_path / "train.csv").write_text("imgs,labels\n" + "".join(f"{p},-100.0\n" for p in train))
    val = sorted(f.relative_to(tmp_path / "raw").as_posix() for f in tmp_path.glob("raw/val/*/*"))
    (tmp_path / "val.csv").write_text("\n".join(val[:2]))
    lists = (str(tmp_path / "train.csv"), str(tmp_path / "val.csv"))
    run(tmp_path / "raw", tmp_path / "listed", lists=lists)
    source = opened(tmp_path / "listed")
    assert source.ids == [*sorted(p[19:] for p in train), *val[:2]]
    assert source.class_names == WNIDS

    (tmp_path / "classes.json").write_text(json.dumps({WNIDS[2]: 0, WNIDS[0]: 100}))
    run(tmp_path / "raw", tmp_path / "two", classes=str(tmp_path / "classes.json"))
    source = opened(tmp_path / "two")
    assert source.class_names == (WNIDS[0], WNIDS[2])
    assert np.bincount(source.labels).tolist() == [6, 6]


def test_unreadable_files_are_quarantined_and_odd_ones_kept(tmp_path):
    imagenet(tmp_path / "raw")
    folder = tmp_path / "raw" / "train" / WNIDS[0]
    put(folder / "truncated.JPEG", jpeg(1, 200, 200)[:-300])
    put(folder / "empty.JPEG", b"")
    put(folder / "notes.txt", b"no image")
    grey = np.full((9, 30), 77, np.uint8)
    odd = {
        "grey.JPEG": Image.fromarray(grey),
        "cmyk.JPEG": Image.fromarray(np.dstack([grey] * 4), mode="CMYK"),
        "sixteen.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "one_by_one.png": Image.new("RGB", (1, 1)),
        "palette.gif": Image.fromarray(grey).convert("P"),
    }
    for name, image in odd.items():
        image.save(folder / name)
    Image.new("RGB", (5, 5)).save(folder / "png_named.JPEG", "png")
    manifest = run(tmp_path / "raw", tmp_path / "out")
    assert manifest["quarantined"] == 3 and manifest["splits"]["train"]["count"] == 18
    with (tmp_path / "out" / "quarantine.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "reason"]
    reasons = {Path(path).name: reason for path, reason in rows}
    assert set(reasons) == {"truncated.JPEG", "empty.JPEG", "notes.txt"}
    assert "truncated" in reasons["truncated.JPEG"]
    assert "no known format" in reasons["notes.txt"]
    source = opened(tmp_path / "out")
    row = {Path(id).name: i for i, id in enumerate(source.ids)}
    images = source.fetch(np.array([row["grey.JPEG"], row["sixteen.png"]]))
    assert np.abs(images.astype(int) - 77).max() <= 2
    assert len(source) == 24 and (source.fetch(np.arange(24)).shape == (24, 16, 16, 3))


@pytest.mark.parametrize(
    ("how", "encode"),
    [("short_bicubic", "png"), ("squash_bilinear", "png"), ("squash_bicubic", "jpeg")],
)
def test_resizing_is_recorded_and_exact_as_png(tmp_path, how, encode):
    imagenet(tmp_path / "raw")
    storing = prepare.Storing(16, how, encode, 98)
    manifest = run(tmp_path / "raw", tmp_path / "out", storing=storing)
    assert manifest["source"]["stored"] == {
        "resize": 16, "resize_how": how, "encode": encode, "quality": 98,
    }  # fmt: skip
    resize = {"short_bicubic": "crop"}.get(how, how)
    raw = sources.open_source(
        kind="folder", path=str(tmp_path / "raw"), image_size=16, splits=("train", "val"),
        resize=resize, cache=False,
    )  # fmt: skip
    rows = np.arange(18)
    found = opened(tmp_path / "out", resize="crop").fetch(rows)
    difference = np.abs(found.astype(int) - raw.fetch(rows)).max()
    assert difference == 0 if encode == "png" else 0 < difference < 12
    if how != "short_bicubic":  # every image has the size already
        opened(tmp_path / "out", resize="none")


@pytest.mark.parametrize("storing", [{}, {"resize": 16, "encode": "jpeg"}, {"resize": 17}])
def test_hashes_are_those_of_the_images_as_stored(tmp_path, storing):
    imagenet(tmp_path / "raw")
    put(tmp_path / "raw" / "train" / WNIDS[1] / "bad.JPEG", b"bad")
    run(tmp_path / "raw", tmp_path / "out", storing=prepare.Storing(**storing), workers=2)
    source = opened(tmp_path / "out")
    found = copies.load(tmp_path / "out" / copies.FILE, source.ids)
    for kept, new in zip(found, copies.hash_source(source), strict=True):
        np.testing.assert_array_equal(kept, new)
    assert len(np.unique(found.pixels, axis=0)) == 18
    before = (tmp_path / "out" / copies.FILE).stat().st_mtime_ns
    copies.hash_source(source, tmp_path / "out" / copies.FILE)
    assert (tmp_path / "out" / copies.FILE).stat().st_mtime_ns == before


def test_what_was_forgotten_of_the_source_stays_forgotten(tmp_path):
    imagenet(tmp_path / "raw")
    config = ConfigDict({"kind": "folder", "path": str(tmp_path / "raw")})
    folder = sources.open_source(
        kind="folder", path=str(tmp_path / "raw"), image_size=16, splits=("train", "val"),
        resize="crop",
    )  # fmt: skip
    hashes = copies.hash_source(folder)
    made = [
        served.entry(f"hash{i}", "text", folder, np.array(rows), hashes.pixels)
        for i, rows in enumerate(([3, 16], [5]))
    ]
    for entry in made:
        served.remember(served.place(config), entry)
    served.remember((tmp_path / served.FILE, "other"), made[0] | {"hash": "of other data"})
    for name, storing in (("out", prepare.Storing()), ("small", prepare.Storing(16))):
        run(tmp_path / "raw", tmp_path / name, storing=storing)
        config = ConfigDict({"kind": "records", "path": str(tmp_path / name)})
        entries = served.of_data(served.place(config))
        assert [e["hash"] for e in entries] == ["hash0", "hash1"]
        source = opened(tmp_path / name)
        pixels = copies.hash_source(source, tmp_path / name / copies.FILE).pixels
        assert [served.rows_of(e, source, pixels).tolist() for e in entries] == [[3, 16], [5]]
    (tmp_path / served.FILE).write_text("{}")
    with pytest.raises(ValueError, match="expected the list of what was forgotten"):
        run(tmp_path / "raw", tmp_path / "third")
    assert not (tmp_path / "third" / "manifest.json").exists()


def test_exact_sizes_are_checked_without_reading_an_image(tmp_path):
    imagenet(tmp_path / "raw")
    run(tmp_path / "raw", tmp_path / "out")
    with pytest.raises(ValueError, match=r"n01440764_0.JPEG: expected 17 x 17 .*got 20 x 17"):
        opened(tmp_path / "out", resize="none", image_size=17)


def test_an_index_survives_its_file_and_damage_is_noticed(tmp_path):
    ids = ["a/1.jpg", "ü/2, 3.jpg", '"x"']
    made = index.Index(
        ids, np.array([1, 0, 2], np.int32), np.arange(6, dtype=np.int32).reshape(3, 2)
    )
    path = tmp_path / "index.gz"
    index.write(path, made)
    found = index.read(path)
    assert found.ids == ids and found.sizes.tolist() == made.sizes.tolist()
    assert found.labels.tolist() == [1, 0, 2]
    whole = path.read_bytes()
    for damaged in (whole[:-9], b"", b"x" * 50, whole[:20] + b"\0" + whole[21:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="expected an index"):
            index.read(path)
    with pytest.raises(ValueError, match="without line breaks"):
        index.write(path, made._replace(ids=["a\nb", "c", "d"]))


def test_the_shorter_side_is_torchvisions():
    assert preprocess.cover((500, 375), (256, 256)) == (341, 256)
    assert preprocess.cover((375, 500), (256, 256)) == (256, 341)
    assert preprocess.cover((256, 256), (256, 256)) == (256, 256)


@pytest.mark.parametrize("wanted", [("train",), ("validation", "train")])
def test_a_part_of_the_records_has_its_part_of_the_hashes(tmp_path, wanted):
    """And the file beside them stays as it is: another config wants the other part."""
    imagenet(tmp_path / "raw")
    run(tmp_path / "raw", tmp_path / "out")
    every = opened(tmp_path / "out")
    whole = copies.load(tmp_path / "out" / copies.FILE, every.ids)
    before = (tmp_path / "out" / copies.FILE).read_bytes()
    cfg = default()
    cfg.data.update({"kind": "records", "path": str(tmp_path / "out"), "splits": wanted})
    cfg.data.update({"resize": "crop", "image_size": 16, "cache": False})
    source, hashes = data.open_data(cfg)
    rows = [every.ids.index(id) for id in source.ids]
    for found, expected in zip(hashes, whole, strict=True):
        np.testing.assert_array_equal(found, expected[rows])
    assert (tmp_path / "out" / copies.FILE).read_bytes() == before


def reseal(folder, change):
    """The manifest with other values and a hash that fits."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    records.write_manifest(folder, manifest)


def shard(manifest):
    return manifest["splits"]["train"]["shards"][0]


MANIFESTS = {
    "a path": lambda m: shard(m).update(file="../secret/shard.array_record"),
    "an absolute path": lambda m: shard(m).update(file="/etc/hostname"),
    "a long name": lambda m: shard(m).update(file="x" * 5000),
    "no name": lambda m: shard(m).update(file=None),
    "the index elsewhere": lambda m: m.update(index_file="../index.gz"),
    "a negative count": lambda m: shard(m).update(count=-5),
    "another count": lambda m: m["splits"]["train"].update(count=2**70),
    "no shards": lambda m: m["splits"]["train"].pop("shards"),
    "a name of two lines": lambda m: m.update(name="a\nb"),
    "no splits": lambda m: m.pop("splits"),
    "no names of classes": lambda m: m.update(class_names=None),
}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_that_is_sealed_and_means_nothing_is_refused(tmp_path, change):
    imagenet(tmp_path / "raw")
    run(tmp_path / "raw", tmp_path / "out")
    reseal(tmp_path / "out", change)
    with pytest.raises(UserError, match=r"manifest.json(: expected| is no) .*manifest of records"):
        records.list_records(tmp_path / "out", ("train",))


def test_an_index_is_a_regular_file_of_a_size_that_can_be_unpacked(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.gz")
    with pytest.raises(OSError, match="a pipe"):
        index.read(tmp_path / "pipe.gz")
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(10**6)))
    monkeypatch.setattr(index, "_LARGEST", 10**5)
    with pytest.raises(UserError, match="bomb.gz: expected an index .*more than 100000 bytes"):
        index.read(tmp_path / "bomb.gz")
