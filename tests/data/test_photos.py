"""Photos as people have them, against PIL used by hand; what cannot be read stops nothing."""

import csv
import io
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import EpsImagePlugin, Image

from tests.helpers import photos as made
from unlearn_jax import data
from unlearn_jax.config import default
from unlearn_jax.data import photos, prepare, preprocess, readers, sources, splits
from unlearn_jax.registry import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    folder = tmp_path_factory.mktemp("album") / "photos"
    return folder, made.make(folder, 300)


def opened(folder, **options):
    options = {"image_size": 16, "resize": "squash_bicubic", "splits": ("train",)} | options
    return sources.open_source(kind="folder", path=str(folder), **options)


def encoded(image, format="png", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def config(folder, **changes):
    cfg = default()
    cfg.data.update({"kind": "folder", "path": str(folder), "splits": ("train",)})
    cfg.data.update({"image_size": 16, "resize": "squash_bicubic", "exif": True})
    cfg.holdout.split = ""
    cfg.update_from_flattened_dict(changes)
    return cfg


@pytest.mark.parametrize("cache", [True, False])
def test_300_mixed_photos_are_read_and_the_rest_is_quarantined(album, cache):
    folder, n = album
    source = opened(folder, cache=cache, exif=True)
    assert len(source) == n and source.class_names == ("holiday", "zoo")
    assert {Path(id).name for id in source.survey.bad} == {*made.BAD}
    assert source.survey.composed == sum(1 for i in range(300) if i % 12 == 5)
    images = source.fetch(np.arange(n))
    assert images.shape == (n, 16, 16, 3)
    odd = "holiday/" + os.fsdecode(made.ODD)
    assert odd in source.ids and "zoo/edited/one.png" in source.ids
    assert source.labels[source.ids.index("zoo/edited/one.png")] == 1


def test_a_request_for_photos_says_and_records_what_could_not_be_read(album, tmp_path):
    folder, n = album
    odd = os.fsencode("holiday/") + made.ODD
    (tmp_path / "list").write_bytes(odd + b"\nzoo/IMG_0000.jpg\n")
    asked = {"request.kind": "ids", "request.file": str(tmp_path / "list")}
    source, split = data.load(config(folder, **asked))
    assert {source.ids[row] for row in split.asked} == {os.fsdecode(odd), "zoo/IMG_0000.jpg"}
    said = " ".join(split.said)
    assert f"5 of {n + 5} files cannot be read and are left out" in said
    assert "25 images have transparency: they are seen on white" in said
    splits.save(split, tmp_path / "split.json")
    manifest = splits.load(tmp_path / "split.json", source).manifest
    assert [Path(id).name for id, _ in manifest["photos"]["bad"]] == sorted(made.BAD)
    assert manifest["photos"]["exif"] is True and manifest["photos"]["composed"] == 25
    with (tmp_path / "quarantine.csv").open() as file:
        rows = list(csv.reader(file))
    assert len(rows) == 6 and all(len(row) == 2 and row[1] for row in rows)


@pytest.mark.parametrize("kind", ["folder", "records"])
def test_a_photo_that_cannot_be_read_cannot_be_requested(album, tmp_path, kind):
    folder, _ = album
    (tmp_path / "list").write_text(f"zoo/IMG_0000.jpg\n{folder}/holiday/broken.jpg\n")
    cfg = config(folder, **{"request.kind": "ids", "request.file": str(tmp_path / "list")})
    if kind == "records":
        few = tmp_path / "photos"
        made.make(few, 8)
        prepare.run("folder", few, tmp_path / "records")
        cfg.data.update({"kind": "records", "path": str(tmp_path / "records")})
        (tmp_path / "list").write_text("zoo/IMG_0000.jpg\nholiday/broken.jpg\n")
    with pytest.raises(UserError) as error:
        data.load(cfg)
    assert "request.file: 1 of the images in" in str(error.value)
    assert "broken.jpg: cannot be read as an image (OSError: image file is truncated" in (
        str(error.value).replace("'", "")
    )
    assert "or remove them from the list" in str(error.value)


def test_files_are_decoded_once_and_again_when_they_change(album, tmp_path, monkeypatch):
    few = tmp_path / "photos"
    made.make(few, 12)
    opened(few, cache=False)
    decoded, decode = [], photos.decode
    monkeypatch.setattr(photos, "decode", lambda *a: decoded.append(a[1]) or decode(*a))
    assert len(opened(few, cache=False).survey.bad) == 5 and not decoded
    good = few / "zoo" / "edited" / "one.png"
    good.write_bytes(good.read_bytes()[:-30])  # a long run would end there
    assert "zoo/edited/one.png" in opened(few, cache=False).survey.bad and len(decoded) == 19
    assert not (few / "photos.json").exists()


# Pixels.


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_photos_are_turned_as_the_camera_says_if_asked():
    pixels = np.zeros((8, 4, 3), np.uint8)
    pixels[:2] = 255  # the camera's top is the photo's right
    for format in ("png", "tiff", "webp"):
        more = {"lossless": True} if format == "webp" else {}
        file = encoded(Image.fromarray(pixels), format, exif=turned(), **more)
        np.testing.assert_array_equal(photos.decode(file, "x", True), np.rot90(pixels, -1))
        if format != "tiff":  # PIL turns these itself
            np.testing.assert_array_equal(photos.decode(file, "x"), pixels)


def test_transparency_shows_white_and_not_what_it_hides():
    hidden = np.dstack([np.full((2, 2, 3), 9, np.uint8), [[[0], [255]], [[128], [0]]]])
    file = encoded(Image.fromarray(hidden.astype(np.uint8)))
    image = photos.decode(file, "x")
    assert np.asarray(image)[..., 0].tolist() == [[255, 9], [132, 255]]  # 255 - 246 * 128 / 255
    assert image.info[photos.COMPOSED]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    for format in ("gif", "png"):
        file = encoded(palette, format, transparency=int(palette.getpixel((0, 0))))
        assert np.asarray(photos.decode(file, "x"))[0, 0].tolist() == [255] * 3
    opaque = encoded(Image.new("RGBA", (2, 2), (9, 9, 9, 255)))
    assert photos.COMPOSED not in photos.decode(opaque, "x").info


@pytest.mark.parametrize("format", ["png", "tiff", "ppm"])
def test_sixteen_bits_become_the_nearest_of_256(format):
    wide = np.array([[0, 100, 128, 129, 257 * 77 + 100, 65535]], np.uint16)
    image = Image.fromarray(wide)
    found = photos.decode(encoded(image.convert("I") if format == "ppm" else image, format), "x")
    expected = [0, 0, 0, 1, 77, 255]
    assert np.asarray(found)[0, :, 0].tolist() == expected and found.mode == "RGB"


def test_animations_are_their_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for format in ("gif", "webp", "avif"):
        file = encoded(frames[0], format, save_all=True, append_images=frames[1:])
        r, g, b = np.asarray(photos.decode(file, "x"))[0, 0].tolist()
        assert r > 250 and g < 5 and b < 5


def test_pad_keeps_the_whole_photo():
    view = preprocess.View(16, "pad")
    wide = preprocess.fit(Image.new("RGB", (64, 20), "white"), view, "x")
    assert (wide[5:10] == 255).all()
    assert (wide[:5] == 0).all() and (wide[10:] == 0).all()
    tall = preprocess.fit(Image.new("RGB", (1, 150), "white"), view, "x")
    assert (tall[:, 7] == 255).all() and tall.sum() == 16 * 3 * 255
    square = Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))
    np.testing.assert_array_equal(preprocess.fit(square, view, "x"), np.asarray(square))


# What is no photo.


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n", "of no known"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC needs: pip install pillow-heif"),
        (encoded(Image.new("1", (20_000, 20_000))), "at most 179 megapixels, got more. Make it"),
        (encoded(Image.new("1", (4, 1000))), "sides that differ 200 times at most, got 4 x 1000"),
        (encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "tiff"), "8 or 16 bits .* 'F'"),
        (encoded(Image.fromarray(np.zeros((2, 2), np.int32)), "tiff"), "8 or 16 bits .* 'I'"),
    ],
    ids=["eps", "heic", "bomb", "strip", "floats", "integers"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_each_kind_has_a_reason_of_its_own(file, reason):
    with pytest.raises(UserError, match=f"^a/b.png: .*{reason}"):
        photos.decode(file, "a/b.png")


def test_sizes_are_bounded_whatever_others_told_pil(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(UserError, match="at most 179 megapixels, got more: 14000 x 13000. Make"):
        photos.decode(encoded(Image.new("1", (14_000, 13_000))), "x")


def test_an_eps_never_starts_ghostscript(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # look again
    folder = tmp_path / "photos"
    made.make(folder, 4)
    (folder / "zoo" / "z.png").write_bytes(encoded(Image.new("RGB", (9, 9)), "eps"))
    assert "zoo/z.png" in opened(folder).survey.bad
    prepare.run("folder", folder, tmp_path / "records")
    assert not (tmp_path / "started").exists()


def test_pipes_devices_and_dead_links_are_not_waited_for(tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    made.make(folder, 4)
    os.mkfifo(folder / "zoo" / "pipe.png")
    for name, to in (("zero", "/dev/zero"), ("dead", "nowhere"), ("dir", str(tmp_path))):
        (folder / "zoo" / f"{name}.png").symlink_to(to)
    monkeypatch.setattr(readers, "MAX_BYTES", 60_000)
    (folder / "zoo" / "large.png").write_bytes(bytes(60_001))
    start = time.monotonic()
    bad = opened(folder).survey.bad
    for name in ("pipe", "zero", "dir"):
        assert "got a folder, a pipe or a device" in bad[f"zoo/{name}.png"]
    assert "No such file" in bad["zoo/dead.png"]
    assert "60000 bytes at most, got 60001" in bad["zoo/large.png"]
    os.mkfifo(tmp_path / "set.npz")
    with pytest.raises(UserError, match="expected an .npz file.*a pipe or a device"):
        sources.open_source(kind="arrays", path=str(tmp_path / "set.npz"), image_size=8)
    assert time.monotonic() - start < 20


def test_names_of_any_bytes_go_through_prepare(tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "records"
    made.make(folder, 12)
    (folder / "zoo" / "two\nlines.png").write_bytes(encoded(Image.new("RGB", (9, 9))))
    manifest = prepare.run("folder", folder, out)
    assert manifest["quarantined"] == 6
    where = {"kind": "records", "path": str(out), "splits": ("train",)}
    source = sources.open_source(**where, image_size=16, resize="pad")
    assert "holiday/" + os.fsdecode(made.ODD) in source.ids and len(source) == 14
    assert source.fetch(np.arange(14)).shape == (14, 16, 16, 3)
    text = (out / "quarantine.csv").read_bytes().decode()
    assert "\n'=1+1" not in text and "'=1" not in text  # it is in a folder, so no formula
    assert "holiday/=1+1 bad.png" in source.survey.bad
    assert "without a line break" in source.survey.bad["zoo/two\nlines.png"]


def test_no_cell_of_a_quarantine_list_is_a_formula(tmp_path):
    bad = {"=1+1/bad.png": "-2", "+a.png": "b", "@c": "d", "-e": "f", "\tg": "h", "ok.png": "i"}
    file = tmp_path / "quarantine.csv"
    file.write_bytes(photos.quarantine(bad.items()))
    cells = [cell for row in csv.reader(io.StringIO(file.read_text())) for cell in row]
    assert "'=1+1/bad.png" in cells and "'-2" in cells and "ok.png" in cells
    assert not [cell for cell in cells if cell[:1] in "=+-@\t\r"]
    assert photos.quarantined(file) == bad


def test_resized_records_can_still_be_turned(tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    pixels = np.zeros((64, 32, 3), np.uint8)
    pixels[:32] = 255
    Image.fromarray(pixels).save(tmp_path / "photos" / "cat" / "a.png", exif=turned())
    storing = prepare.Storing(16, "squash_bicubic")
    prepare.run("folder", tmp_path / "photos", tmp_path / "records", storing=storing)
    where = {"kind": "records", "path": str(tmp_path / "records"), "splits": ("train",)}
    for exif, axis in ((False, 0), (True, 1)):
        image = sources.open_source(**where, image_size=16, exif=exif).fetch(np.array([0]))[0]
        assert image.mean(axis=(1 - axis, 2))[[1, -2]].tolist() == [[255, 0], [0, 255]][axis]


# Folders.


def files(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


@pytest.mark.parametrize(
    ("names", "listed", "classes"),
    [
        ("cat/1.png cat/raw/2.png dog/3.png", "cat/1.png cat/raw/2.png dog/3.png", "cat dog"),
        ("cat/raw/1.png dog/3.png", "cat/raw/1.png dog/3.png", "cat dog"),
        ("2023/01/1.jpg 2024/02/2.jpg", "2023/01/1.jpg 2024/02/2.jpg", "2023 2024"),
        ("1.jpg list.txt best/3.jpg", "best/3.jpg 1.jpg list.txt", "best root"),
        ("1.jpg 2.jpg", "1.jpg 2.jpg", "root"),
        (
            "valley/1/1.jpg trainspotting/2.jpg",
            "trainspotting/2.jpg valley/1/1.jpg",
            "trainspotting valley",
        ),
        ("README cat/1.png", "cat/1.png", "cat"),
        ("train/cat/1.png train/a.txt test/cat/2.png raw/3.png", "train/cat/1.png", "cat"),
    ],
)
def test_what_is_a_split_and_what_a_class(tmp_path, names, listed, classes):
    files(tmp_path / "root", *names.split())
    listing = readers.list_folder(tmp_path / "root", ("train",))
    assert " ".join(listing.ids) == listed and listing.splits == {"train": range(len(listing.ids))}
    assert " ".join(listing.class_names) == classes


def test_what_may_be_a_split_or_a_class_is_asked(tmp_path):
    files(tmp_path, "train/cat/1.png", "train/stray.png", "test/cat/2.png")
    with pytest.raises(UserError, match="train: holds images, such as 'stray.png', and folders"):
        readers.list_folder(tmp_path, ("train",))
    files(tmp_path / "b", "training/cat/1.png", "testing/cat/2.png")
    with pytest.raises(UserError, match=r"found \('testing', 'training'\). Set data.splits"):
        readers.list_folder(tmp_path / "b", ("train",))


def test_a_run_without_the_key_exif_is_the_same_run():
    from unlearn_jax.config import identity

    cfg = config("x", **{"phases": ConfigDict({})})
    cfg.stages.original.phases = ()
    assert identity.relevant(cfg)["data"]["exif"] is True
    cfg.data.exif = False
    assert "exif" not in json.dumps(identity.relevant(cfg))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_composed_may_have_a_third_of_the_pixels():
    """It is three times in memory."""
    clear = encoded(Image.new("LA", (8_000, 8_000)))
    with pytest.raises(UserError, match="at most 60 megapixels with transparency, got more: 8000"):
        photos.decode(clear, "a.png")


def test_greys_of_16_bits_become_the_nearest_of_8():
    levels = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    found = np.asarray(photos.decode(encoded(Image.fromarray(levels)), "a.png"))[..., 0]
    exact = np.array([(2 * v + 257) // 514 for v in range(2**16)]).reshape(256, 256)
    np.testing.assert_array_equal(found, exact)


def test_a_table_that_is_none_is_named(tmp_path):
    path = tmp_path / photos.QUARANTINE
    path.write_bytes(b"path,reason\n" + b"x" * 200_000)
    with pytest.raises(UserError, match=r"quarantine\.csv: expected a table of paths"):
        photos.quarantined(path)
    path.write_bytes(photos.quarantine([("=1.png", "@bad"), ("a\nb", "c")]))
    assert photos.quarantined(path) == {"=1.png": "@bad", "a\nb": "c"}
