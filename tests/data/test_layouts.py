"""Folders that are not as they should be, and what is said of them."""

import shutil

import pytest

from tests.helpers import binaries
from tests.helpers.files import WNIDS, imagenet, places, put, run
from unlearn_jax.data import layouts, prepare
from unlearn_jax.registry import UserError


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
            lambda raw: put(raw / "train" / "a.JPEG", b""),
            "train: holds images, such as 'a.JPEG', and folders, so it may be a class or a split",
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
        ("{0} 1\n{1} 2\n{2} 3\n{3} 1\n{4} 2\n{5} 3", r"labels 1\.\.3, .*: they count from 1; exp"),
        (
            "{0} 1\n{1} 2\n{2} 2\n{3} 1\n{4} 2\n{5} 1",
            r"labels 1\.\.2, .* 3 classes; expected labels 0",
        ),
        (
            "{0} 0\n{1} 1\n{2} 2\n{3} 0\n{4} 1\n{5} n01484850",
            r"'n01484850', and numbers, such as 2",
        ),
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


@pytest.mark.parametrize("header", ["", "image class\n"])
def test_labels_are_said_with_examples(tmp_path, header):
    class_of = imagenet(tmp_path / "raw", flat=True)
    (tmp_path / "labels.txt").write_text(
        header + "".join(f"{name} {WNIDS.index(c)}\n" for name, c in class_of.items())
    )
    (tmp_path / "two.txt").write_text(f"{WNIDS[0]}\n{WNIDS[2]}\n")
    said = []
    options = {"val_labels": str(tmp_path / "labels.txt"), "classes": str(tmp_path / "two.txt")}
    run(tmp_path / "raw", tmp_path / "out", say=said.append, **options)
    assert len(said) == 1 and said[0].startswith(f"{options['val_labels']}: label 0 means class ")
    for label in (0, 2):
        (first, *_) = sorted(name for name, c in class_of.items() if c == WNIDS[label])
        assert f"label {label} means class {WNIDS[label]}, such as val/{first}" in said[0]
    assert "label 1" not in said[0] and "not in the order of a devkit" in said[0]


def test_names_of_classes_need_no_note(tmp_path):
    class_of = imagenet(tmp_path / "raw", flat=True)
    (tmp_path / "labels.txt").write_text("".join(f"{n} {c}\n" for n, c in class_of.items()))
    found = layouts.find("imagenet", tmp_path / "raw", val_labels=str(tmp_path / "labels.txt"))
    assert not found.notes
    places(tmp_path / "places")  # with its list of numbers
    (note,) = layouts.find("places365", tmp_path / "places").notes
    assert "label 2 means class z/zen_garden, such as val_256/Places365_val_00000003.jpg" in note
    train = tmp_path / "places" / "train_256"
    for i, name in enumerate(("b/badlands", "b/bakery/shop", "z/zen_garden")):
        (train / name).rename(train / str(i + 1))  # numbers that are names
    labels = "".join(f"Places365_val_{i + 1:08d}.jpg {i % 3 + 1}\n" for i in range(6))
    (tmp_path / "places" / "places365_val.txt").write_text(labels)
    found = layouts.find("places365", tmp_path / "places")
    assert found.class_names == ("1", "2", "3") and not found.notes
    assert [f.label for f in found.splits["validation"]] == [0, 0, 1, 1, 2, 2]


def test_lists_with_errors(tmp_path):
    imagenet(tmp_path / "raw")
    (tmp_path / "classes.txt").write_text("n01440764\nn01443573\n")
    with pytest.raises(ValueError, match=r"no class 'n01443573'. Did you mean 'n01443537'\?"):
        run(tmp_path / "raw", tmp_path / "out", classes=str(tmp_path / "classes.txt"))
    (tmp_path / "list.txt").write_text(f"train/{WNIDS[0]}/{WNIDS[0]}_99.JPEG\n")
    message = r"--list: 1 of the 1 names .* are no .*\n.*nearest: 'train/n01440764/n0"
    with pytest.raises(ValueError, match=message):
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
    _, err = binaries.run("unlearn_jax.prepare", *flags[:1], "--source=gs://a", flags[2], code=1)
    assert "--source: expected a path, got the URL" in err
    imagenet(tmp_path / "raw", flat=True)
    lines = [f"ILSVRC2012_val_{i * 3 + 2 - c:08d}.JPEG {c}" for i in (0, 1) for c in range(3)]
    put(tmp_path / "labels.txt", "\n".join(lines).encode())
    flags = (flags[0], f"--source={tmp_path / 'raw'}", flags[2])
    _, err = binaries.run("unlearn_jax.prepare", *flags, f"--val_labels={tmp_path / 'labels.txt'}")
    assert "label 2 means class n01484850, such as val/ILSVRC2012_val_00000000.JPEG" in err


def test_a_label_that_is_only_a_slash_is_no_class(tmp_path):
    class_of = imagenet(tmp_path / "raw", flat=True)
    lines = [f"{name} /\n" for name in class_of]
    (tmp_path / "labels.txt").write_text("".join(lines))
    with pytest.raises(UserError, match="has no image|no image of"):
        layouts.find("imagenet", tmp_path / "raw", val_labels=str(tmp_path / "labels.txt"))
