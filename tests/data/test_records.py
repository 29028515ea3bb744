"""Prepared records against the files they come from; interruptions, damage, wrong layouts."""

import csv
import fcntl
import io
import json
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import binaries
from unlearn_jax import prepare
from unlearn_jax.data import index, layouts, preprocess, records, sources

WNIDS = ("n01440764", "n01443537", "n01484850")


def jpeg(seed, width=20, height=17, **options):
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8)).resize((width, height))
    data = io.BytesIO()
    image.save(data, "jpeg", **options)
    return data.getvalue()


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def imagenet(root, per_class=4, val=2, flat=False):
    """A small copy, and the class of every validation image."""
    class_of = {}
    for c, wnid in enumerate(WNIDS):
        for i in range(per_class):
            put(root / "train" / wnid / f"{wnid}_{i}.JPEG", jpeg(c * 100 + i, 20 + i))
        for i in range(val):
            name = f"ILSVRC2012_val_{i * 3 + 2 - c:08d}.JPEG"
            class_of[name] = wnid
            put(root / "val" / ("" if flat else wnid) / name, jpeg(1000 + c * 10 + i))
    return class_of


def places(root, flat=True, prefix=False):
    """Three classes, the validation images as distributed or as the release moves them."""
    known = ("b/badlands", "b/bakery/shop", "z/zen_garden")
    for c, name in enumerate(known):
        for i in range(3):
            put(root / "train_256" / name / f"{i + 1:08d}.jpg", jpeg(c * 10 + i, 16, 16))
    for i in range(6):
        name, file = known[i % 3], f"Places365_val_{i + 1:08d}.jpg"
        if not flat:
            file = f"{name}/{name.replace('/', '_') + '_' if prefix else ''}{file}"
        put(root / "val_256" / file, jpeg(50 + i, 16, 16))
    lines = "".join(f"Places365_val_{i + 1:08d}.jpg {i % 3}\n" for i in range(6))
    (root / "places365_val.txt").write_text(lines)


def run(source, out, layout="imagenet", **options):
    return prepare.run(layout, source, out, **{"images_per_shard": 5, "workers": 1, **options})


def opened(out, splits=("train", "validation"), **options):
    options = {"image_size": 16, "resize": "crop", "cache": False, **options}
    return sources.open_source(kind="records", path=str(out), splits=splits, **options)


def contents(folder):
    return {
        f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()
    }


# What is written.


def test_imagenet_is_stored_as_it_is(tmp_path):
    imagenet(tmp_path / "raw")
    manifest = run(tmp_path / "raw", tmp_path / "out")
    assert {s: f["count"] for s, f in manifest["splits"].items()} == {"train": 12, "validation": 6}
    assert [s["count"] for s in manifest["splits"]["train"]["shards"]] == [5, 5, 2]
    for shard in manifest["splits"]["train"]["shards"]:
        assert records.file_digest(tmp_path / "out" / shard["file"]) == shard["sha256"]
    assert set(contents(tmp_path / "out")) == {
        "manifest.json", "index.gz", "quarantine.csv", "validation-00000-of-00002.array_record",
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


def test_exact_sizes_are_checked_without_reading_an_image(tmp_path):
    imagenet(tmp_path / "raw")
    run(tmp_path / "raw", tmp_path / "out")
    with pytest.raises(ValueError, match=r"n01440764_0.JPEG: expected 17 x 17 .*got 20 x 17"):
        opened(tmp_path / "out", resize="none", image_size=17)


# Interruptions.


class Killed(BaseException):
    """Ends a preparation where it stands."""


def test_killed_at_any_change_of_the_folder_the_result_is_the_same(tmp_path, monkeypatch):
    imagenet(tmp_path / "raw")
    put(tmp_path / "raw" / "train" / WNIDS[1] / "bad.JPEG", b"bad")
    run(tmp_path / "raw", tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    real = {name: getattr(Path, name) for name in ("replace", "unlink", "mkdir", "rmdir")}
    left = [0]

    def patched(name, after):
        def change(self, *args, **kwargs):
            left[0] -= 1
            if left[0] == 0 and not after:
                raise Killed
            result = real[name](self, *args, **kwargs)
            if left[0] == 0:
                raise Killed
            return result

        return change

    kills = 0
    for at in range(1, 100):
        out = tmp_path / f"out{at}"
        for name in real:
            monkeypatch.setattr(Path, name, patched(name, after=at % 2))
        left[0] = (at + 1) // 2
        try:
            run(tmp_path / "raw", out)
            done = True
        except Killed:
            done = False
        monkeypatch.undo()
        if done:
            break
        kills += 1
        run(tmp_path / "raw", out)
        assert contents(out) == expected, at
    assert kills > 20


def test_a_second_kill_and_finished_shards_are_not_written_again(tmp_path, monkeypatch):
    imagenet(tmp_path / "raw")
    out, reads = tmp_path / "out", []
    kill_at = ["n01484850_0.JPEG", "n01443537_3.JPEG"]  # last first; in the second shard
    read_bytes = Path.read_bytes

    def counted(self):
        if self.suffix == ".JPEG":
            reads.append(self.name)
            if kill_at and self.name == kill_at[-1]:
                kill_at.pop()
                raise Killed
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", counted)
    for _ in range(2):
        with pytest.raises(Killed):
            run(tmp_path / "raw", out)
        with pytest.raises(ValueError, match="goes on with the same command"):
            opened(out)
    run(tmp_path / "raw", out)
    first_shard = [f"n01440764_{i}.JPEG" for i in range(4)] + ["n01443537_0.JPEG"]
    assert [reads.count(name) for name in first_shard] == [1] * 5
    assert reads.count("n01443537_3.JPEG") == 3
    monkeypatch.undo()
    run(tmp_path / "raw", tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_sigkill_with_threads_at_work(tmp_path):
    for c, wnid in enumerate(WNIDS):
        for i in range(80):
            put(tmp_path / "raw" / "train" / wnid / f"{wnid}_{i}.JPEG", jpeg(c * 100 + i, 700, 600))
    out = tmp_path / "out"
    flags = ("--layout=imagenet", f"--source={tmp_path / 'raw'}", "--images_per_shard=7")
    process = binaries.start("unlearn_jax.prepare", *flags, f"--out={out}", "--workers=2")
    finished = lambda: list(out.glob("unfinished/*.array_record.json"))  # noqa: E731
    while len(finished()) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (out / "manifest.json").exists()
    before = {f.name: f.stat().st_mtime_ns for f in out.glob("*.array_record")}
    shout, _ = binaries.run("unlearn_jax.prepare", *flags, f"--out={out}", "--verify")
    assert "train: 240 images of 3 classes, in 35 shards." in shout
    assert "Every shard has the sha256" in shout and "'kind': 'records'" in shout
    kept = [n for n, t in before.items() if (out / n).stat().st_mtime_ns == t]
    assert len(kept) >= 3
    run(tmp_path / "raw", tmp_path / "whole", images_per_shard=7)
    assert contents(out) == contents(tmp_path / "whole")


def test_other_options_or_files_do_not_mix(tmp_path, monkeypatch):
    imagenet(tmp_path / "raw")
    out = tmp_path / "out"
    monkeypatch.setattr(prepare, "_finish", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        run(tmp_path / "raw", out)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"unfinished preparation .*images_per_shard: 5 -> 6"):
        run(tmp_path / "raw", out, images_per_shard=6)
    with pytest.raises(ValueError, match=r"unfinished preparation .*resize: 0 -> 16"):
        run(tmp_path / "raw", out, storing=prepare.Storing(16))
    manifest = run(tmp_path / "raw", out)
    before = contents(out)
    assert run(tmp_path / "raw", out) == manifest and contents(out) == before
    put(tmp_path / "raw" / "train" / WNIDS[0] / "new.JPEG", jpeg(5))
    with pytest.raises(ValueError, match="holds records of other files or options"):
        run(tmp_path / "raw", out)
    put(tmp_path / "other" / "mine.txt", b"")
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        run(tmp_path / "raw", tmp_path / "other")
    assert contents(tmp_path / "other") == {"mine.txt": b""}


def test_one_preparation_at_a_time(tmp_path):
    imagenet(tmp_path / "raw")
    (tmp_path / "out").mkdir()
    with prepare._lock(tmp_path / "out", shared=False):
        with pytest.raises(ValueError, match="another preparation is at work"):
            run(tmp_path / "raw", tmp_path / "out")
    run(tmp_path / "raw", tmp_path / "out")


def test_processes_share_the_shards_and_wait_for_nobody(tmp_path):
    imagenet(tmp_path / "raw")
    run(tmp_path / "raw", tmp_path / "whole")
    out, last = tmp_path / "out", {"process_id": 1, "num_processes": 2}
    assert run(tmp_path / "raw", out, process_id=0, num_processes=2) is None
    written = {path.name for path in out.glob("*.array_record")}
    assert 0 < len(written) < len(list((tmp_path / "whole").glob("*.array_record")))
    with prepare._lock(out, shared=True):  # a process that is at work on a shard, then dies
        lock = next(n for n, _ in shards_of(tmp_path / "raw") if n not in written)
        with (out / "unfinished" / f"{lock}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert run(tmp_path / "raw", out, **last) is None and not (out / lock).exists()
        with pytest.raises(ValueError, match="another preparation is at work"):
            run(tmp_path / "raw", out)
    assert run(tmp_path / "raw", out, **last)
    assert contents(out) == contents(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"--process_id: expected 0\.\.1 .* got 2"):
        run(tmp_path / "raw", out, process_id=2, num_processes=2)


def shards_of(raw):
    return prepare._plan(layouts.find("imagenet", raw), 5)


def test_files_that_may_not_be_read_stop_it(tmp_path, monkeypatch):
    imagenet(tmp_path / "raw")
    file = tmp_path / "raw" / "train" / WNIDS[1] / f"{WNIDS[1]}_1.JPEG"
    read = Path.read_bytes

    def refuse(path):  # not by chmod: root may read every file
        if path == file:
            raise PermissionError(f"Permission denied: {path}")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(PermissionError, match=file.name):
        run(tmp_path / "raw", tmp_path / "out")
    monkeypatch.undo()
    assert run(tmp_path / "raw", tmp_path / "out")["quarantined"] == 0


def test_files_that_vanish_stop_it_and_are_not_quarantined(tmp_path, monkeypatch):
    imagenet(tmp_path / "raw")
    file = tmp_path / "raw" / "train" / WNIDS[1] / f"{WNIDS[1]}_1.JPEG"
    image, find = file.read_bytes(), layouts.find

    def vanish(*args, **kwargs):
        found = find(*args, **kwargs)
        file.unlink()
        return found

    monkeypatch.setattr(layouts, "find", vanish)
    with pytest.raises(FileNotFoundError, match="n01443537_1.JPEG"):
        run(tmp_path / "raw", tmp_path / "out", workers=3)
    monkeypatch.undo()
    file.write_bytes(image)
    assert run(tmp_path / "raw", tmp_path / "out")["quarantined"] == 0


# Damage.


@pytest.fixture
def prepared(tmp_path):
    imagenet(tmp_path / "raw")
    run(tmp_path / "raw", tmp_path / "out")
    return tmp_path / "out"


def edit_manifest(out, rehash=False, **changes):
    manifest = json.loads((out / "manifest.json").read_text()) | changes
    if rehash:
        manifest["hash"] = records.digest({k: v for k, v in manifest.items() if k != "hash"})
    (out / "manifest.json").write_text(json.dumps(manifest))


def test_a_changed_manifest_is_noticed(prepared):
    edit_manifest(prepared, class_names=["a", "b", "c"])
    with pytest.raises(ValueError, match="manifest was changed after it was written"):
        opened(prepared)
    edit_manifest(prepared, rehash=True, format="v0")
    with pytest.raises(ValueError, match="expected format unlearn_jax.records.v1, got 'v0'"):
        opened(prepared)
    for text in ("{", "[]", ""):
        (prepared / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match="python -m unlearn_jax.prepare"):
            opened(prepared)
    with pytest.raises(ValueError, match="expected a folder with prepared records"):
        opened(prepared / "nowhere")


def test_a_changed_index_is_noticed(prepared):
    found = index.read(prepared / "index.gz")
    index.write(prepared / "index.gz", found._replace(labels=found.labels[::-1].copy()))
    with pytest.raises(ValueError, match="not the index of this manifest"):
        opened(prepared)
    short = index.Index(found.ids[1:], found.labels[1:], found.sizes[1:])
    index.write(prepared / "index.gz", short)
    edit_manifest(prepared, rehash=True, index=records.file_digest(prepared / "index.gz"))
    with pytest.raises(ValueError, match="expected 18 images as in manifest.json, got 17"):
        opened(prepared)
    (prepared / "index.gz").unlink()
    with pytest.raises(ValueError, match="missing, or not the index"):
        opened(prepared)


def test_changed_shards_are_noticed(prepared):
    shards = sorted(prepared.glob("train*"))
    first = shards[0].read_bytes()
    shards[0].write_bytes(first[:-1])
    with pytest.raises(ValueError, match=rf"{shards[0].name} has {len(first) - 1} bytes, not"):
        opened(prepared)
    middle = bytearray(first)
    at = first.index(b"train/n01440764/n01440764_2.JPEG") + 200
    middle[at : at + 8] = bytes(255 - b for b in middle[at : at + 8])
    shards[0].write_bytes(middle)
    source = opened(prepared)
    source.fetch(np.array([0, 1, 3, 5]))
    with pytest.raises(ValueError, match="the record of train/n01440764/n01440764_2.JPEG is dam"):
        source.fetch(np.array([1, 2]))
    manifest = records.read_manifest(prepared)["splits"]["train"]["shards"]
    with pytest.raises(ValueError, match=f"1 shards are not .*\n.*{shards[0].name} has another"):
        records.check_shards(prepared, manifest, contents=True)
    shards[0].unlink()
    shards[1].rename(shards[0])
    with pytest.raises(ValueError, match=f"{shards[1].name} is missing"):
        opened(prepared)


def test_exchanged_shards_are_noticed(tmp_path):
    for wnid in WNIDS:
        for i in range(5):
            put(tmp_path / "raw" / "train" / wnid / f"{wnid}_{i}.JPEG", jpeg(7))
    run(tmp_path / "raw", tmp_path / "out")
    a, b, _ = sorted((tmp_path / "out").glob("train*"))
    assert a.stat().st_size == b.stat().st_size
    a.rename(tmp_path / "other")
    b.rename(a)
    (tmp_path / "other").rename(b)
    source = opened(tmp_path / "out", splits=("train",))
    with pytest.raises(ValueError, match="expected the record of train/n01440764/n01440764_0.JPEG"):
        source.fetch(np.arange(1))
    with pytest.raises(ValueError, match="2 shards are not as manifest.json"):
        shards = records.read_manifest(tmp_path / "out")["splits"]["train"]["shards"]
        records.check_shards(tmp_path / "out", shards, contents=True)


def test_missing_splits_say_what_is_there(prepared):
    with pytest.raises(ValueError, match=r"\('train', 'test'\), each once; found .*'validation'"):
        opened(prepared, splits=("train", "test"))


# Wrong layouts.


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        (
            "imagenet",
            lambda raw: (
                [shutil.move(raw / "train" / w, raw / w) for w in WNIDS]
                + [shutil.rmtree(raw / "train"), shutil.rmtree(raw / "val")]
            ),
            "not laid out like imagenet.*It has class folders itself: give the folder above it",
        ),
        ("imagenet", lambda raw: shutil.rmtree(raw), "--source: expected a folder"),
        (
            "imagenet",
            lambda raw: (raw / "train" / WNIDS[0]).rename(raw / "train" / "tench"),
            "class folders like n01440764, found 'tench'. .*--layout=folder",
        ),
        (
            "imagenet",
            lambda raw: put(raw / "train" / "n01440764.tar", b""),
            "files outside class folders: 'train/n01440764.tar'. Unpack",
        ),
        (
            "imagenet",
            lambda raw: shutil.rmtree(raw / "val" / WNIDS[1]),
            "validation split has no image of 1 of 3 classes: 'n01443537'. .*--classes=FILE",
        ),
        (
            "imagenet",
            lambda raw: shutil.rmtree(raw / "train" / WNIDS[2]),
            "train split has no image of 1 of 3 classes: 'n01484850'",
        ),
        (
            "imagenet",
            lambda raw: put(raw / "train" / WNIDS[1] / f"{WNIDS[0]}_1.JPEG", b""),
            "1 file names occur twice.*'train/n01440764/n01440764_1.JPEG and train/n01443537/n014",
        ),
        (
            "places365",
            lambda raw: [shutil.rmtree(raw / "train"), shutil.rmtree(raw / "val")],
            "not laid out like places365: expected one folder .*found nothing",
        ),
        (
            "folder",
            lambda raw: put(raw / "train" / WNIDS[0] / "a.txt", b""),
            "expected only images",
        ),
        ("imagnet", lambda raw: None, "--layout: expected one of"),
    ],
)
def test_wrong_layouts_are_refused(tmp_path, layout, change, message):
    imagenet(tmp_path / "raw")
    change(tmp_path / "raw")
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "raw", tmp_path / "out", layout)
    assert not (tmp_path / "out").exists()


def test_images_that_places_has_twice(tmp_path):
    places(tmp_path / "raw", flat=True)
    put(tmp_path / "raw" / "val_256" / "b/badlands" / "b_badlands_Places365_val_00000001.jpg", b"")
    with pytest.raises(ValueError, match="1 file names occur twice"):
        run(tmp_path / "raw", tmp_path / "out", "places365")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("{0} 0\n{1} 1", r"does not have 4 of 6 images, such as"),
        ("{0} 0\n{1} 1\n{2} 2\n{3} 0\n{4} 1\n{5} 3", r"labels 0\.\.3, but .* has 3 classes"),
        ("{0} 0\n{1} 1\n{2} 0\n{3} 0\n{4} 1\n{5} 1", r"labels 0\.\.1, but .* has 3 classes"),
        ("{0} n01440765\n{1} n01443537", r"does not have 4 of 6"),
        (
            "{0} n01440765\n{1} n01443537\n{2} n01443537\n{3} n01440764\n{4} n01484850\n"
            "{5} n01440764",
            "train split has no image of 1 of 4 classes: 'n01440765'",
        ),
        ("{0} 0\n{0} 1", "names .* more than once"),
        ("490\n361\n", "does not have 6 of 6 images"),
    ],
)
def test_bad_files_of_validation_labels(tmp_path, lines, message):
    class_of = imagenet(tmp_path / "raw", flat=True)
    (tmp_path / "labels.txt").write_text(lines.format(*class_of))
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "raw", tmp_path / "out", val_labels=str(tmp_path / "labels.txt"))


def test_lists_with_errors(tmp_path):
    imagenet(tmp_path / "raw")
    (tmp_path / "classes.txt").write_text("n01440764\nn01443573\n")
    with pytest.raises(ValueError, match=r"no class 'n01443573'. Did you mean 'n01443537'\?"):
        run(tmp_path / "raw", tmp_path / "out", classes=str(tmp_path / "classes.txt"))
    (tmp_path / "list.txt").write_text(f"train/{WNIDS[0]}/{WNIDS[0]}_99.JPEG\n")
    with pytest.raises(ValueError, match=r"--list: 1 of 1 are no .*Nearest: 'train/n01440764/n0"):
        run(tmp_path / "raw", tmp_path / "out", lists=(str(tmp_path / "list.txt"),))
    with pytest.raises(ValueError, match="--list: .*none.txt is no readable"):
        run(tmp_path / "raw", tmp_path / "out", lists=(str(tmp_path / "none.txt"),))


def test_a_split_of_bad_images_only(tmp_path):
    imagenet(tmp_path / "raw", val=1)
    for file in tmp_path.glob("raw/val/*/*"):
        file.write_bytes(b"bad")
    with pytest.raises(ValueError, match=r"no file of the splits \['validation'\] is an image"):
        run(tmp_path / "raw", tmp_path / "out")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resize": -1}, "--resize: expected pixels"),
        ({"resize": 16, "encode": "webp"}, "--encode one of"),
        ({"resize": 16, "encode": "jpeg", "quality": 90}, r"--quality: expected 95\.\.100, got 90"),
    ],
)
def test_bad_ways_to_store(values, message):
    with pytest.raises(ValueError, match=message):
        prepare.Storing(**values)


def test_the_binary_says_what_is_wrong(tmp_path):
    flags = ("--layout=imagenet", f"--source={tmp_path}", f"--out={tmp_path / 'out'}")
    _, err = binaries.run("unlearn_jax.prepare", *flags, code=1)
    assert err.startswith("error: --source:") and "not laid out like imagenet" in err


# The index.


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
    assert preprocess.short_side((500, 375), 256) == (341, 256)
    assert preprocess.short_side((375, 500), 256) == (256, 341)
    assert preprocess.short_side((256, 256), 256) == (256, 256)
