"""The released lists in small, the sets they lead to, and the evaluation set, counted by hand."""

import json

import numpy as np
import pytest

from unlearn_jax import config, data
from unlearn_jax.data import joining, published, sources, splits
from unlearn_jax.data import select as requests

NAMES = ["n01", "n02", "n03", "n04", "n05"]  # forget: n01, n02; retain: n03, n04
TEST = {"split": "validation"}


def make_source(train=6, val=3, names=NAMES, prefix="train/"):
    """Rows of a split in another order than their classes."""
    ids, labels, of_split = [], [], []
    for split, n in (("train", train), ("validation", val)):
        for i in range(n):
            for label, name in enumerate(names):
                folder = prefix if split == "train" else "val/"
                ids.append(f"{folder}{name}/{name}_{split}_{i}.JPEG")
                labels.append(label)
                of_split.append(split)
    return sources.from_arrays(
        np.zeros((len(ids), 4, 4, 3), np.uint8), np.array(labels), ids=ids, split=of_split,
        splits=("train", "validation"), class_names=names, name="small",
    )  # fmt: skip


SOURCE = make_source()


def by_class(rows, source=SOURCE):
    return np.bincount(source.labels[rows], minlength=len(source.class_names)).tolist()


def resolve(request, retain, source=SOURCE, holdout=TEST):
    return splits.resolve(source, request=request, retain=retain, holdout=holdout, seed=0)


# Lists of classes.


def test_json_lists_are_split_at_100(tmp_path):
    file = tmp_path / "classes.json"
    file.write_text(json.dumps({"n04": 103, "n02": 1, "n01": 0, "n03": 100, "n99": 99}))
    assert published.read_classes(file, "forget") == ("n01", "n02", "n99")
    assert published.read_classes(file, "retain") == ("n03", "n04")
    assert published.read_classes(file) == ("n01", "n02", "n99", "n03", "n04")


def test_the_order_of_places_is_sliced_and_other_lists_are_not(tmp_path):
    names = [f"/c/class{i:03d}" for i in range(365)]
    file = tmp_path / "class.txt"
    file.write_text("\n".join(names))
    assert published.read_classes(file, "forget") == tuple(n[1:] for n in names[50:100])
    assert published.read_classes(file, "retain") == tuple(n[1:] for n in names[:50])
    assert len(published.read_classes(file)) == 365
    file.write_text("# mine\n\nn01\r\n n02 \n")
    for role in ("", "forget", "retain"):
        assert published.read_classes(file, role) == ("n01", "n02")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n01\nn02\nn01", "every class once, got 'n01'"),
        ("\n# nothing", "every class once, got none"),
        ('{"n01": 0', "expected JSON like"),
        ('{"n01": "a", "n02": 3}', "expected JSON like"),
        ('{"n01": ' + "[" * 100_000, "expected JSON like"),
    ],
)
def test_bad_lists_of_classes(tmp_path, text, message):
    (tmp_path / "list").write_text(text)
    with pytest.raises(ValueError, match=message):
        published.read_classes(tmp_path / "list")
    with pytest.raises(ValueError, match="no readable UTF-8 file"):
        published.read_classes(tmp_path / "none")


def test_the_configs_lists_are_disjoint_and_complete():
    from configs import imagenet_mage, places365_palette

    for module, n in ((imagenet_mage, 100), (places365_palette, 50)):
        cfg = module.get_config()
        forget, retain = set(cfg.request.classes), set(cfg.retain.classes)
        assert len(forget) == len(retain) == n and not forget & retain
    cfg = imagenet_mage.get_config()
    assert all(name.startswith("n") and len(name) == 9 for name in cfg.request.classes)
    assert max(cfg.request.classes) < min(cfg.retain.classes)  # sorted ids, split in the middle
    places = places365_palette.get_config()  # off by one against the file's own blocks
    assert "a/airfield" in places.request.classes and "a/airplane_cabin" in places.retain.classes


# Lists of images.


def released_csv(tmp_path):
    chosen = {"n01": -100.0, "n02": -100.0, "n03": 100.0, "n04": 100.0}
    lines = [
        f"../dataset/imagenet1k/train/{name}/{name}_train_{i}.JPEG,{label}"
        for i in (4, 1)
        for name, label in chosen.items()
    ]
    file = tmp_path / "released.csv"
    file.write_text("imgs,labels\n" + "\n".join(lines) + "\n")
    return {"kind": "ids", "file": str(file)}


@pytest.mark.parametrize("prefix", ["train/", "", "data_256/"])
def test_the_released_csv_gives_forget_and_retain_sets(tmp_path, prefix):
    source, listed = make_source(prefix=prefix), released_csv(tmp_path)
    split = resolve(listed, listed, source)
    assert by_class(split.forget) == [2, 2, 0, 0, 0] and by_class(split.retain) == [0, 0, 2, 2, 0]
    ids = {source.ids[row] for row in split.forget}
    assert ids == {f"{prefix}{n}/{n}_train_{i}.JPEG" for n in ("n01", "n02") for i in (1, 4)}
    assert by_class(split.audit) == [2, 2, 0, 0, 0]
    assert by_class(split.calibration) == [1, 1, 0, 0, 0]
    assert by_class(split.train) == [6] * 5
    assert split.manifest["retain"]["sha256"] == split.manifest["request"]["sha256"]
    assert splits.describe(split).endswith("the ids listed in released.csv.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imgs,labels\ntrain/n01/n01_train_0.JPEG,0", "labels below 0 .* or above 0 .*got '0'"),
        ("imgs,labels\ntrain/n01/n01_train_0.JPEG,x", "got 'x'"),
        ("imgs,labels\ntrain/n01/n01_train_0.JPEG,-1", "retain.file names none"),
        ("imgs,labels\ntrain/n01/n01_train_9.JPEG,1", "retain.file: 1 of the 1 names .*of sm"),
        ("imgs,labels\nval/n01/n01_validation_0.JPEG,1", "retain.file: .*not in the training"),
        ("train/n01/n01_train_0.JPEG", "retain.file: .*n01_train_0.JPEG' are forgotten or held"),
        ("image_id,path\na,b", "retain.file: .*one column of images.*with .*retain.column"),
    ],
)
def test_bad_lists_of_retain_images(tmp_path, text, message):
    (tmp_path / "keep.csv").write_text(text)
    retain = {"kind": "ids", "file": str(tmp_path / "keep.csv")}
    with pytest.raises(ValueError, match=message):
        resolve({"kind": "classes", "classes": ("n01",)}, retain)


def test_paths_mean_the_same_split_only(tmp_path):
    """Of a published list and of the evaluation set, see test_names for all the ways."""
    source = make_source(prefix="train_256/")
    (tmp_path / "list.txt").write_text(
        "/root/data_256/n01/n01_train_0.JPEG\ntrain/n02/n02_train_1.JPEG\n"
        "data_256/n02/n02_train_1.JPEG\n"
    )
    listed = {"kind": "ids", "file": str(tmp_path / "list.txt")}
    split = resolve(listed, {"kind": "complement"}, source)
    assert [source.ids[row] for row in split.forget] == [
        "train_256/n01/n01_train_0.JPEG", "train_256/n02/n02_train_1.JPEG",
    ]  # fmt: skip
    assert split.manifest["request"]["repeated"] == 1 and split.manifest["request"]["by_path"] == 3
    options = {"forget": ("n01",), "retain": ("n03",), "list_file": tmp_path / "list.txt"}
    for wrong in ("val/n01/n01_train_0.JPEG", "n01/n01_train_0.JPEG", "n01_train_0.JPEG",
                  "test_256/n01/n01_train_0.JPEG"):  # fmt: skip
        (tmp_path / "list.txt").write_text(wrong)
        with pytest.raises(ValueError, match="request.file: 1 of the 1 names .*of small"):
            resolve(listed, {"kind": "complement"}, source)
        with pytest.raises(ValueError, match="list_file: 1 of the 1 names .*of small"):
            published.evaluation_rows(source, **options)
    # Evaluation images are those of the split that is evaluated, however its folder is called.
    (tmp_path / "list.txt").write_text(
        "val_large/n01/n01_validation_0.JPEG\n/x/validation/n03/n03_validation_2.JPEG"
    )
    found = published.evaluation_rows(source, **options)
    assert [source.ids[row] for rows in found.values() for row in rows] == [
        "val/n01/n01_validation_0.JPEG", "val/n03/n03_validation_2.JPEG",
    ]  # fmt: skip
    (tmp_path / "list.txt").write_text("train/n01/n01_train_0.JPEG")
    with pytest.raises(ValueError, match="list_file: 1 of the 1 names .*of small"):
        published.evaluation_rows(source, **options)


# Per class, and which classes may be kept.

FORGET = {"kind": "classes", "classes": ("n01", "n02"), "seed": 5}
LISTED = {"kind": "classes", "classes": ("n03", "n04"), "seed": 5}


def test_so_many_of_each_class_by_seed_or_the_first():
    whole = resolve(FORGET, LISTED)
    assert by_class(whole.forget) == [6, 6, 0, 0, 0] and by_class(whole.retain) == [0, 0, 6, 6, 0]
    request, retain = FORGET | {"per_class": 4}, LISTED | {"per_class": 2}
    split = resolve(request, retain)
    assert by_class(split.forget) == [4, 4, 0, 0, 0] and by_class(split.retain) == [0, 0, 2, 2, 0]
    assert set(split.forget) < set(whole.forget) and by_class(split.remaining) == [2, 2, 6, 6, 6]
    np.testing.assert_array_equal(split.forget, resolve(request, retain).forget)
    chosen = {tuple(resolve(request | {"seed": s}, retain).forget) for s in range(5)}
    assert len(chosen) > 2
    assert split.manifest["request"] == {
        "kind": "classes", "classes": ["n01", "n02"], "per_class": 4, "pick": "random", "seed": 5,
    }  # fmt: skip
    first = resolve(request | {"pick": "first"}, retain | {"pick": "first"})
    assert {SOURCE.ids[row][-6] for row in first.forget} == {"0", "1", "2", "3"}
    assert {SOURCE.ids[row][-6] for row in first.retain} == {"0", "1"}
    assert "at most 4 images of each of n01, n02" in splits.describe(first)
    assert "every image of n01, n02" in splits.describe(whole)
    many = resolve(FORGET | {"per_class": 99}, LISTED | {"per_class": 99})
    np.testing.assert_array_equal(many.forget, whole.forget)


def test_holdout_beside_a_part_of_the_classes():
    section = {"split": "", "fraction": 0.34}
    source = make_source(train=20)
    split = resolve(FORGET | {"per_class": 4}, LISTED, source, holdout=section)
    # Never out of the forget set, and not out of its classes only.
    assert by_class(split.forget, source) == [4, 4, 0, 0, 0]
    assert len(split.audit) and set(np.flatnonzero(by_class(split.audit, source))) <= {0, 1}
    reserved = 20 - np.array(by_class(split.train, source))
    assert (reserved > 0).all()
    other = resolve(LISTED | {"per_class": 2}, FORGET, source, holdout=section)
    np.testing.assert_array_equal(other.train, split.train)


def test_other_classes_are_those_neither_listed_nor_forgotten():
    retain = {"kind": "other_classes", "classes": ("n03", "n04"), "seed": 0, "per_class": 2}
    split = resolve(FORGET, retain)
    assert by_class(split.retain) == [0, 0, 0, 0, 2]
    nothing_listed = resolve(FORGET, {"kind": "other_classes", "classes": ()})
    assert by_class(nothing_listed.retain) == [0, 0, 6, 6, 6]
    with pytest.raises(ValueError, match="retain set is empty: there is no other class"):
        resolve(FORGET, {"kind": "other_classes", "classes": ("n03", "n04", "n05")})


@pytest.mark.parametrize(
    ("retain", "message"),
    [
        ({"kind": "classes", "classes": ("n02", "n03")}, "retain.classes: 'n02' are to be forgot"),
        ({"kind": "classes", "classes": ("n0x",)}, "retain.classes: .* no class 'n0x'. Did you"),
        ({"kind": "classes", "classes": ()}, "none of retain.classes has"),
        ({"kind": "classes", "classes": "n03"}, "retain.classes: expected names"),
        ({"kind": "clases", "classes": ()}, "Did you mean 'classes'"),
    ],
)
def test_bad_retain_sections(retain, message):
    with pytest.raises(ValueError, match=message):
        resolve(FORGET, retain)


def test_a_proxy_without_classes_can_be_limited():
    flat = sources.from_arrays(
        np.zeros((9, 4, 4, 3), np.uint8), np.zeros(9, int), class_names=["train2017"], name="coco"
    )
    source = joining.concat(SOURCE, flat)
    split = resolve(FORGET, {"kind": "proxy", "per_class": 4, "seed": 1}, source)
    assert len(split.retain) == 4 and set(split.retain) < set(source.splits["proxy"])
    other = resolve(FORGET, {"kind": "proxy", "per_class": 4, "seed": 2}, source)
    assert other.retain.tolist() != split.retain.tolist()


def test_leading_slashes_and_lists_longer_than_messages():
    names = [f"a/place{i}" for i in range(40)]
    source = make_source(names=names)
    assert by_class(resolve({"kind": "classes", "classes": ("/a/place7",)}, LISTED | {
        "classes": ("a/place8",)}, source).forget, source)[7] == 6  # fmt: skip
    with pytest.raises(
        ValueError, match="Did you mean 'a/place3.*and 35 more(.|\\n)*a label, 0..39"
    ) as error:
        request = {"kind": "classes", "classes": ("a/plase33",)}
        requests.select(source, request, np.arange(len(source)))
    assert len(str(error.value)) < 300


# The evaluation set.


def test_the_evaluation_set_is_every_validation_image_by_class():
    found = published.evaluation_rows(SOURCE, forget=("n02", "n01"), retain=("n04",))
    ids = {role: [SOURCE.ids[row] for row in rows] for role, rows in found.items()}
    assert ids == {
        "forget": [f"val/{n}/{n}_validation_{i}.JPEG" for n in ("n02", "n01") for i in range(3)],
        "retain": [f"val/n04/n04_validation_{i}.JPEG" for i in range(3)],
    }
    found = published.evaluation_rows(SOURCE, forget=("n02", "n01"), retain=("n04",), per_class=2)
    assert [SOURCE.ids[row][4:] for row in found["forget"]] == [
        f"{n}/{n}_validation_{i}.JPEG" for n in ("n02", "n01") for i in range(2)
    ]


def test_the_evaluation_set_follows_the_published_list(tmp_path):
    order = [(n, i) for n in ("n01", "n03", "n02") for i in (2, 0, 1)]
    lines = [f"val/{n}/{n}_validation_{i}.JPEG" for n, i in order]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    options = {"forget": ("n01", "n02"), "retain": ("n03",), "list_file": tmp_path / "list.csv"}
    found = published.evaluation_rows(SOURCE, **options)
    assert [SOURCE.ids[row] for row in found["forget"]] == lines[:3] + lines[6:]
    assert [SOURCE.ids[row] for row in found["retain"]] == lines[3:6]
    found = published.evaluation_rows(SOURCE, per_class=1, **options)
    assert [SOURCE.ids[row] for row in found["forget"]] == [lines[0], lines[6]]
    with pytest.raises(ValueError, match="no validation image of the retain classes 'n04'"):
        published.evaluation_rows(SOURCE, **{**options, "retain": ("n04",)})
    (tmp_path / "list.csv").write_text("val/n01/n01_validation_7.JPEG")
    with pytest.raises(ValueError, match="1 of the 1 names .*of small(.|\\n)*'val/n01/n01_val"):
        published.evaluation_rows(SOURCE, **options)


def test_numbers_mean_the_same_classes_in_training_and_in_evaluation():
    """The fault: classes=3 of named classes was trained, and could not be evaluated."""
    for request, retain in (((3,), ("0", 1)), (("3",), ("n01", "n02"))):
        found = published.evaluation_rows(SOURCE, forget=request, retain=retain)
        split = resolve(
            {"kind": "classes", "classes": request}, {"kind": "classes", "classes": retain}
        )
        for role in ("forget", "retain"):
            labels = {*SOURCE.labels[found[role]].tolist()}
            assert labels == {*SOURCE.labels[getattr(split, role)].tolist()}
            assert labels == {"forget": {3}, "retain": {0, 1}}[role]
    listed = published.evaluation_rows(SOURCE, forget=("n01,n02",), retain=("n03", "n03"))
    assert by_class(listed["forget"]) == [3, 3, 0, 0, 0] and by_class(listed["retain"])[2] == 3
    with pytest.raises(ValueError, match="'n04' cannot be both"):
        published.evaluation_rows(SOURCE, forget=(3,), retain=("n04",))
    with pytest.raises(ValueError, match="evaluation: forget: small has no class '03'"):
        published.evaluation_rows(SOURCE, forget=("03",), retain=("n04",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "val"}, "has no split 'val', only .'train', 'validation'.. Add"),
        ({"forget": ("n0l",)}, "forget: .* no class 'n0l'. Did you mean"),
        ({"retain": ("n01",)}, "'n01' cannot be both"),
    ],
)
def test_bad_evaluation_sets(changes, message):
    with pytest.raises(ValueError, match=message):
        published.evaluation_rows(SOURCE, **({"forget": ("n01",), "retain": ("n03",)} | changes))


def test_load_takes_it_all_from_a_config(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, n in (("train", 4), ("validation", 2)):
        for name in NAMES:
            for i in range(n):
                file = tmp_path / "set" / split / name / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 256, (16, 20 + i, 3), np.uint8)
                Image.fromarray(pixels).save(file)
    for i in range(5):
        (tmp_path / "coco").mkdir(exist_ok=True)
        Image.new("RGB", (16, 20 + i)).save(tmp_path / "coco" / f"{i}.jpg")
    cfg = config.default()
    cfg.data.update({"kind": "folder", "path": str(tmp_path / "set"), "image_size": 16})
    cfg.data.update({"splits": ("train", "validation"), "resize": "crop", "cache": False})
    cfg.data.augment.update({"name": "random_resized_crop", "scale": (0.2, 0.5)})
    cfg.request.update({"kind": "classes", "classes": ("n01", "n02"), "per_class": 3})
    cfg.retain.update({"kind": "proxy", "per_class": 4})
    cfg.retain.data.update({"kind": "folder", "path": str(tmp_path / "coco")})
    cfg.holdout.split = "validation"
    cfg.request.copies = "refuse"  # there are none
    source, split = data.load(cfg)
    assert source.augmented and len(source) == 35 and len(split.retain) == 4
    assert by_class(split.forget, source)[:2] == [3, 3]
    assert source.fetch(np.arange(35)).shape == (35, 16, 16, 3)
    batch = next(
        data.make_train(
            source, retain_rows=split.retain, forget_rows=split.forget, batch_size=4,
            forget_fraction=0.5, task=cfg.task.to_dict(), seed=0, first_step=0, num_steps=1,
        )
    )  # fmt: skip
    assert batch["image"].shape == (4, 16, 16, 3)


def test_a_list_of_training_images_is_no_evaluation_set(tmp_path):
    ids = [f"{name}/{i}.png" for i in range(4) for name in NAMES[:2]]  # of no split by their names
    source = sources.from_arrays(
        np.zeros((8, 4, 4, 3), np.uint8), np.arange(8) % 2, ids=ids, class_names=NAMES[:2],
        split=["train"] * 4 + ["validation"] * 4,
    )  # fmt: skip
    options = {"forget": ("n01",), "retain": ("n02",), "list_file": tmp_path / "list.txt"}
    for folder in ("val", "/set/validation", "."):
        (tmp_path / "list.txt").write_text(f"{folder}/n01/2.png\n{folder}/n02/3.png")
        found = published.evaluation_rows(source, **options)
        assert [rows.tolist() for rows in found.values()] == [[4], [7]]
    for folder in ("train", "/set/train_256", "test"):
        (tmp_path / "list.txt").write_text(f"{folder}/n01/2.png\n{folder}/n02/3.png")
        with pytest.raises(ValueError, match="list_file: 2 of the 2 names"):
            published.evaluation_rows(source, **options)
