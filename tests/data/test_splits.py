"""Splits against sets counted by hand; every refusal must say what is wrong."""

import hashlib
import json

import numpy as np
import pytest

from tests.helpers.sets import (
    NAMES,
    RESERVE,
    SOURCE,
    by_class,
    check_invariants,
    ids_file,
    make_source,
    resolve,
)
from unlearn_jax.data import holdout, joining, lineage, splits
from unlearn_jax.registry import UserError

# Requests.


@pytest.mark.parametrize(
    "classes", [("cat,owl",), ("cat, owl",), ("cat", "owl"), (0, 2), ["owl", 0], ("cat", 0, "owl")]
)
def test_classes_by_name_or_label(classes):
    split = resolve({"kind": "classes", "classes": classes})
    check_invariants(split)
    assert by_class(split.train) == [40, 30, 20, 10]
    assert by_class(split.forget) == [40, 0, 20, 0]
    assert by_class(split.retain) == [0, 30, 0, 10]
    # By the last bits of their hashes, 6 of 10 unseen cats and 1 of 6 owls are in the audit part.
    assert by_class(split.audit) == [6, 0, 1, 0] and by_class(split.calibration) == [4, 0, 2, 0]
    assert min(*split.audit, *split.calibration) >= 100
    assert split.manifest["request"] == {"kind": "classes", "classes": ["cat", "owl"]}


def test_random_is_stratified_exact_and_seeded():
    request = {"kind": "random", "fraction": 0.25, "seed": 3, "classes": ()}
    split = resolve(request)
    check_invariants(split)
    counts = by_class(split.forget)
    assert sum(counts) == 25 and counts[0] == 10 and counts[2] == 5
    assert sorted([counts[1], counts[3]]) == [2, 8] or sorted([counts[1], counts[3]]) == [3, 7]
    np.testing.assert_array_equal(split.forget, resolve(request).forget)
    assert resolve({**request, "seed": 4}).forget.tolist() != split.forget.tolist()
    # Another seed of the run changes nothing, another request not what is never trained on.
    for other in (resolve(request, seed=1), resolve({**request, "seed": 4})):
        for name in ("train", "calibration", "audit"):
            np.testing.assert_array_equal(getattr(other, name), getattr(split, name))
    np.testing.assert_array_equal(resolve(request, seed=1).forget, split.forget)


@pytest.mark.parametrize(
    ("text", "named", "by_path"),
    [
        ("train/cat/0.png\n\n  train/dog/1.png \n# a comment\ntrain/cat/7.png", 3, 0),
        ("\ufeffid\ntrain/cat/0.png\r\ntrain/dog/1.png\r\ntrain/cat/7.png\r\n", 3, 0),
        ('label,Path\n# x\n1,train/cat/0.png\n\n2,"train/dog/1.png"\n3, train/cat/7.png\n', 3, 0),
        ("/me/train/cat/0.png\n./train/dog/1.png\nC:\\images\\train\\cat\\7.png\n", 3, 3),
        ("train/cat/7.png\ntrain/cat/0.png\ntrain/dog/1.png\n/b/train/cat/7.png", 4, 1),
    ],
)
def test_ids_as_list_csv_or_paths(tmp_path, text, named, by_path):
    request = ids_file(tmp_path, text)
    split = resolve(request)
    check_invariants(split)
    expected = {"train/cat/0.png", "train/dog/1.png", "train/cat/7.png"}
    assert {SOURCE.ids[row] for row in split.forget} == expected
    assert by_class(split.audit) == [6, 3, 0, 0]  # 2 : 1, as many as 6 cats permit
    with open(request["file"], "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    recorded = {"kind": "ids", "file": "forget.txt", "sha256": digest, "named": named}
    recorded |= {"repeated": named - 3, "by_path": by_path}
    assert split.manifest["request"] == recorded
    said = [f"forget.txt: {named} names of 3 images"]
    said += ["1 names repeat an image that is named before"] * (named - 3)
    assert list(split.said[: len(said)]) == said
    assert any("other paths to an image" in line for line in split.said) == bool(by_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train/cat/0.png\ntrain/cot/1.png",
            "1 of the 2 names(.|\n)*line 2: 'train/cot/1.png' .nearest: 'train/cat/1",
        ),
        ("0.png", "no examples of arrays:\n  line 1: '0.png'"),
        ("test/cat/0.png\ntrain/cat/0.png", "'test/cat/0.png' are not in the training split"),
        ("val/cat/0.png", "1 of the 1 names.*no examples of arrays:\n  line 1: 'val/cat/0.png'"),
        ("name\ntrain/cat/0.png", "1 of the 2 (.|\n)*line 1: 'name'(.|\n)*needs a header such as"),
        ("id,path\na,b", "one column of .*'id', 'path'.* with request.column"),
        ("id,label\ntrain/cat/0.png", "expected 2 columns"),
        ("# nothing\n\n", "forget set is empty"),
        ("id\n", "forget set is empty"),
    ],
)
def test_bad_ids_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        resolve(ids_file(tmp_path, text))


def test_unreadable_id_files(tmp_path):
    with pytest.raises(ValueError, match="no readable UTF-8 file"):
        resolve({"kind": "ids", "file": str(tmp_path / "none")})
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no readable UTF-8 file"):
        resolve({"kind": "ids", "file": str(tmp_path / "binary")})


def rule(tmp_path, text):
    (tmp_path / "rule.py").write_text(text)
    return {"kind": "predicate", "file": str(tmp_path / "rule.py")}


def test_predicates_are_run_and_hashed(tmp_path):
    text = (
        "LIMIT = 3\n"
        "def forget(id, label, class_name):\n"
        "    number = int(id.split('/')[-1][:-4])\n"
        "    return class_name == 'owl' and label == 2 and number < LIMIT\n"
    )
    split = resolve(rule(tmp_path, text))
    check_invariants(split)
    expected = {"train/owl/0.png", "train/owl/1.png", "train/owl/2.png"}
    assert {SOURCE.ids[row] for row in split.forget} == expected
    digest = hashlib.sha256(text.encode()).hexdigest()
    recorded = {"kind": "predicate", "file": "rule.py", "sha256": digest}
    assert split.manifest["request"] == recorded


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("forgot = 1", ValueError, "rule.py: expected a function"),
        (
            "\n\ndef forget(id, label, class_name):\n    return 1",
            ValueError,
            "request.file: rule.py, line 3: forget.'train.*', .* must be True or False, got 1",
        ),
        (
            "def forget(id, label, class_name): pass",
            ValueError,
            "line 1: .*True or False, got None",
        ),
        ("def forget(id, label, class_name): return id", ValueError, "line 1: .*got 'train"),
        (
            "def forget(id, label, class_name):\n    return id[99]",
            ValueError,
            "rule.py, line 2: forget failed for 'train.*IndexError",
        ),
        ("x = 1\ndef forget(id:", ValueError, "rule.py, line 2: it cannot be run: SyntaxError"),
        ("import os\nimport no_such", ValueError, "rule.py, line 2: .*ModuleNotFoundError"),
        ("x = 1\n\nx / 0", ValueError, "rule.py, line 3: it cannot be run: ZeroDivision"),
        ("import sys\nsys.exit(0)", ValueError, "rule.py, line 2: it cannot be run: SystemExit"),
        ("raise ValueError('mine')", ValueError, "rule.py, line 1: .*ValueError: mine"),
        (
            "import sys\ndef forget(id, label, class_name):\n    sys.exit(0)",
            ValueError,
            "rule.py, line 3: forget failed for 'train.*SystemExit: 0",
        ),
        (
            "def forget(id, label, class_name):\n\n    raise ValueError('mine')",
            ValueError,
            "rule.py, line 3: forget failed for .*ValueError: mine",
        ),
        ("def forget(id): return True", ValueError, "rule.py.*forget failed for .*TypeError"),
        ("def forget(id, label, class_name): return False", ValueError, "forget set is empty"),
        ("def forget(id, label, class_name): return True", ValueError, "everything is to be forg"),
    ],
)
def test_bad_predicates(tmp_path, text, error, message):
    with pytest.raises(error, match=message):
        resolve(rule(tmp_path, text))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"kind": "clases"}, "request.kind: expected one of.*Did you mean 'classes'"),
        ({}, "request: expected 'kind'"),
        ({"kind": "classes", "classes": ("cta",)}, "no class 'cta'. Did you mean 'cat'"),
        ({"kind": "classes", "classes": (4,)}, r"no class 4.*is a label, 0\.\.3"),
        ({"kind": "classes", "classes": ("01",)}, "no class '01'"),
        ({"kind": "classes", "classes": (-1,)}, "no class -1"),
        ({"kind": "classes", "classes": (True,)}, "no class True"),
        ({"kind": "classes", "classes": "cat"}, r'as \("cat",\), got .cat'),
        ({"kind": "classes", "classes": ()}, r"expected names"),
        ({"kind": "classes", "classes": NAMES}, "retain set is empty: everything"),
        ({"kind": "random", "fraction": 1.0, "seed": 0}, "0 < fraction < 1, got 1.0"),
        ({"kind": "random", "fraction": 0.0, "seed": 0}, "0 < fraction < 1, got 0.0"),
        ({"kind": "random", "fraction": 0.001, "seed": 0}, "forget set is empty"),
    ],
)
def test_bad_requests(request_, message):
    with pytest.raises(ValueError, match=message):
        resolve(request_)


# Retain.


def test_a_subset_of_the_retain_rows_is_stratified():
    whole = resolve()
    split = resolve(retain={"kind": "subset", "fraction": 0.5, "seed": 1})
    check_invariants(split)
    assert by_class(split.retain) == [0, 15, 10, 5]
    assert set(split.retain) < set(whole.retain)
    np.testing.assert_array_equal(split.remaining, whole.remaining)
    assert by_class(split.remaining) == [0, 30, 20, 10]  # retraining uses them all
    other = resolve(retain={"kind": "subset", "fraction": 0.5, "seed": 2})
    assert other.retain.tolist() != split.retain.tolist()
    with pytest.raises(ValueError, match="retain set is empty: raise retain.fraction"):
        resolve(retain={"kind": "subset", "fraction": 0.001, "seed": 2})
    with pytest.raises(ValueError, match="retain.kind: expected one of"):
        resolve(retain={"kind": "everything"})


def test_proxy_rows_replace_the_retain_rows_only():
    proxy = make_source({"train": [5, 7]}, ["fox", "cat"], name="other", prefix="x/")
    source = joining.concat(SOURCE, proxy)
    split = resolve(retain={"kind": "proxy"}, source=source)
    check_invariants(split, source)
    # The proxy's cats are not retained: cats are what must be forgotten.
    assert [source.class_names[label] for label in source.labels[split.retain]] == ["fox"] * 5
    assert by_class(split.train, source) == [40, 30, 20, 10, 0]
    assert by_class(split.remaining, source) == [0, 30, 20, 10, 0]
    some = resolve({"kind": "random", "fraction": 0.1, "seed": 0}, {"kind": "proxy"}, source=source)
    assert some.retain.tolist() == list(source.splits["proxy"])
    with pytest.raises(ValueError, match="there is no proxy dataset"):
        resolve(retain={"kind": "proxy"})


# Holdout.


def test_holdout_reserved_from_all_classes():
    """The pool leaves the training set whole: any of it may be asked about later."""
    calibration, audit, _ = holdout.draw(SOURCE, RESERVE)
    pool = np.union1d(calibration, audit)
    per_class = np.array(by_class(pool))
    assert (per_class > 0).all() and max(pool) < 100
    split = resolve({"kind": "classes", "classes": ("cat", "owl")}, holdout=RESERVE)
    check_invariants(split)
    assert by_class(split.train) == (np.array([40, 30, 20, 10]) - per_class).tolist()
    np.testing.assert_array_equal(split.train, np.setdiff1d(np.arange(100), pool))
    assert by_class(split.forget) == [40 - per_class[0], 0, 20 - per_class[2], 0]
    assert set(split.audit) <= set(audit) and set(split.calibration) <= set(calibration)
    assert by_class(split.audit)[1] == by_class(split.audit)[3] == 0
    other = resolve({"kind": "classes", "classes": ("dog",)}, holdout=RESERVE, seed=1)
    np.testing.assert_array_equal(other.train, split.train)


def test_holdout_reserved_from_rows_not_to_be_forgotten():
    request = {"kind": "random", "fraction": 0.5, "seed": 0}
    split = resolve(request, holdout=RESERVE)
    check_invariants(split)
    there = np.array(by_class(split.train))
    assert np.abs(by_class(split.forget) - there / 2).max() < 1
    assert len(split.forget) == round(there.sum() / 2)
    np.testing.assert_array_equal(by_class(split.retain), there - by_class(split.forget))


def test_listed_images_that_are_held_out_leave_the_holdout(tmp_path):
    calibration, audit, _ = holdout.draw(SOURCE, RESERVE)
    cats = [row for row in audit.tolist() if SOURCE.labels[row] == 0]
    trained = [row for row in range(100) if row not in {*calibration, *audit}][:3]
    request = ids_file(tmp_path, "\n".join(SOURCE.ids[row] for row in [*trained, cats[0]]))
    split = resolve(request, holdout=RESERVE)
    check_invariants(split)
    assert split.forget.tolist() == trained
    assert "1 images were held out, never trained on: they leave the holdout" in split.said
    for name in splits.SETS:
        assert cats[0] not in getattr(split, name)
    request = ids_file(tmp_path, "\n".join(SOURCE.ids[row] for row in cats))
    with pytest.raises(ValueError, match="forget set is empty.*were held out, never trained on"):
        resolve(request, holdout=RESERVE)


def test_no_holdout_at_all():
    split = resolve(holdout={"split": "none"})
    assert by_class(split.forget) == [40, 0, 0, 0] and by_class(split.train) == [40, 30, 20, 10]
    assert not len(split.calibration) and not len(split.audit)
    assert split.manifest["holdout"]["split"] == "none"


def test_a_rare_class_does_not_shrink_the_others():
    source = make_source({"train": [40, 40, 40, 40], "test": [1, 20, 20, 20]})
    split = resolve({"kind": "random", "fraction": 0.5, "seed": 0}, source=source)
    of_audit, of_calibration = by_class(split.audit, source), by_class(split.calibration, source)
    assert of_audit[0] == 1 and of_calibration[0] == 0
    assert min(of_audit[1:]) > 5 and min(of_calibration[1:]) > 5
    assert list(split.manifest["holdout"]["audit_short"]) == ["cat"]
    assert any("class 'cat': 1 unseen images" in line for line in split.said)


def test_forgotten_classes_without_unseen_images_are_an_error(tmp_path):
    source = make_source({"train": [4, 4, 4, 4], "test": [0, 4, 4, 4]})
    message = r"no unseen image of the forgotten classes 'cat'. Add some .*holdout.split=.none"
    with pytest.raises(ValueError, match=message):
        resolve(source=source)
    split = resolve(holdout=RESERVE, source=source)
    assert by_class(split.audit, source)[0] >= 1 and by_class(split.forget, source)[0] >= 1
    # A class of one image is trained on, and there is none to compare it with.
    source = make_source({"train": [1, 4, 4, 4]})
    with pytest.raises(ValueError, match="no unseen image of the forgotten classes 'cat'"):
        resolve(holdout=RESERVE, source=source)
    assert by_class(resolve(holdout={"split": "none"}, source=source).forget, source)[0] == 1


@pytest.mark.parametrize(
    ("holdout", "message"),
    [
        ({"split": "val"}, r"expected one of \['test'\], \"\" to take.*got 'val'"),
        ({"split": "train"}, "got 'train'"),
        ({"split": "", "fraction": 1.5}, "holdout.fraction: expected 0 < fraction < 1, got 1.5"),
        ({"fraction": 0.5}, "holdout: expected 'split'"),
    ],
)
def test_bad_holdouts(holdout, message):
    with pytest.raises(ValueError, match=message):
        resolve(holdout=holdout)


def test_a_source_needs_a_training_split():
    with pytest.raises(ValueError, match=r"expected a split \"train\", found \('test',\)"):
        resolve(source=make_source({"test": [1, 1, 1, 1]}))


# The manifest.


def test_the_manifest_says_it_all_and_survives_the_file(tmp_path):
    split = resolve(seed=5)
    manifest = split.manifest
    assert manifest["format"] == "unlearn_jax.split.v2" and manifest["seed"] == 5
    assert manifest["dataset"]["n"] == 128 and manifest["class_names"] == NAMES
    assert manifest["retain"] == {"kind": "complement"}
    assert manifest["holdout"] == {"split": "test", "audit_short": {}, "calibration_short": {}}
    assert manifest["counts"] == {
        "train": 100, "forget": 40, "retain": 60, "calibration": 4, "audit": 6,
    }  # fmt: skip
    assert manifest["served"] == [] and manifest["copies"] is None and manifest["proxy"] is None
    assert manifest["class_counts"]["retain"] == {"dog": 30, "owl": 20, "ant": 10}
    assert manifest["sets"]["forget"] == split.forget.tolist()
    rest = {key: value for key, value in manifest.items() if key not in ("hash", "near")}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    assert manifest["hash"] == hashlib.sha256(canonical).hexdigest()
    content = json.dumps([SOURCE.ids, SOURCE.labels.tolist()], separators=(",", ":")).encode()
    assert manifest["dataset"]["fingerprint"] == hashlib.sha256(content).hexdigest()

    splits.save(split, tmp_path / "split.json")
    assert splits.load(tmp_path / "split.json", SOURCE).said == ()
    for loaded in (
        splits.load(tmp_path / "split.json"),
        splits.load(tmp_path / "split.json", SOURCE),
    ):
        assert loaded.manifest == manifest
        for name in (*splits.SETS, "remaining"):
            np.testing.assert_array_equal(getattr(loaded, name), getattr(split, name))
    assert resolve(seed=5).manifest == manifest
    assert resolve(seed=6).manifest["hash"] != manifest["hash"]


def test_every_change_of_the_manifest_is_noticed(tmp_path):
    split, path = resolve(), tmp_path / "split.json"
    manifest = split.manifest
    moved = {**manifest["sets"], "forget": manifest["sets"]["forget"][1:]}
    before = [{"hash": "x", "text": "", "rows": [1]}]
    changes = ({"sets": moved}, {"seed": 9}, {"hash": "0" * 64}, {"extra": 1}, {"served": before})
    for change in changes:
        path.write_text(json.dumps({**manifest, **change}))
        with pytest.raises(ValueError, match="was changed after it was written"):
            splits.load(path)
    for text in ("{", "[]", "{}", ""):
        path.write_text(text)
        with pytest.raises(ValueError, match="expected a split manifest"):
            splits.load(path)
    path.write_text(json.dumps({**manifest, "format": "v0"}))
    with pytest.raises(ValueError, match="expected format unlearn_jax.split.v2, got 'v0'"):
        splits.load(path)
    with pytest.raises(ValueError, match="expected a split manifest"):
        splits.load(tmp_path / "none.json")


def test_a_split_of_another_dataset_is_refused(tmp_path):
    splits.save(resolve(), tmp_path / "split.json")
    relabelled = make_source({"train": [40, 30, 20, 10], "test": [10, 8, 5, 5]})
    with pytest.raises(ValueError, match="was made for arrays with 128 examples"):
        splits.load(tmp_path / "split.json", relabelled)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audit": [3]}, "train and audit overlap in 1 rows and 1 ids: 'd'"),
        ({"retain": [2, 4]}, "retain and audit overlap in 1 rows and 1 ids: 'e'"),
        ({"retain": [2, 6]}, "retain and calibration overlap in 1 rows and 1 ids: 'f'"),
        ({"retain": [2, 5]}, "forget and retain overlap in 0 rows and 1 ids: 'a'"),
        ({"audit": [5]}, "train and audit overlap in 0 rows and 1 ids: 'a'"),
        ({"calibration": [5]}, "train and calibration overlap in 0 rows and 1 ids: 'a'"),
        ({"calibration": [4]}, "calibration and audit overlap in 1 rows and 1 ids: 'e'"),
        ({"retain": [0, 2]}, "forget and retain overlap in 1 rows"),
        ({"train": [1, 2, 3]}, "forget has rows that are not in train"),
        ({"train": [0, 1, 2, 3, 4]}, "train and audit overlap"),
        ({"train": [0, 1, 2, 3, 6]}, "train and calibration overlap"),
        ({"forget": []}, "forget set is empty"),
        ({"retain": [3, 2]}, "not sorted and unique"),
        ({"audit": [7]}, "outside the dataset of 7"),
        ({"calibration": [-1]}, "outside the dataset of 7"),
    ],
)
def test_overlaps_are_found_by_row_and_by_id(change, message):
    ids = ["a", "b", "c", "d", "e", "a", "f"]
    sets = {"train": [0, 1, 2, 3], "forget": [0, 1], "retain": [2, 3], "calibration": [6]}
    sets |= {"audit": [4], **change}
    with pytest.raises(ValueError, match=message):
        splits._check_sets({k: np.array(v, np.int64) for k, v in sets.items()}, ids)


def test_many_classes_are_counted_and_limits_are_told():
    def split(**request):
        counts = {"forget": 1, "train": 2}
        manifest = {"request": {"kind": "classes", **request}, "counts": counts}
        empty = np.zeros(0, np.int64)
        manifest["dataset"] = {"name": "zoo"}
        return splits.Split(empty, empty, empty, empty, empty, manifest)

    assert splits.describe(split(classes=["cat", "dog"])).endswith("zoo: every image of cat, dog.")
    many = splits.describe(split(classes=[f"c{i}" for i in range(100)], per_class=120))
    assert many.endswith("zoo: at most 120 images of each of " + ", ".join(
        f"c{i}" for i in range(10)) + " and 90 more.")  # fmt: skip


def test_the_sentence_of_a_request_says_what_is_forgotten(tmp_path):
    """The fault: per_class=7 was "a random 10 % of each class", and so was 10 % of what is left."""
    request = {"kind": "random", "fraction": 0.5, "seed": 3, "per_class": 3}
    split = resolve(request, holdout=RESERVE)
    n = len(split.train)
    assert by_class(split.forget) == [3, 3, 3, 3] and n < 100
    assert splits.describe(split) == (
        f"Forget 12 of {n} training images of arrays: at most 3 images of each class of a random "
        "50 % of each class (seed 3)."
    )
    split = resolve({"kind": "random", "fraction": 0.125, "seed": 0}, holdout=RESERVE)
    assert len(split.forget) == round(0.125 * n)  # of those who are trained on, as is said
    assert splits.describe(split).startswith(f"Forget {len(split.forget)} of {n} training images")
    assert "a random 12.5 % of each class" in splits.describe(split)
    request = ids_file(tmp_path, "train/cat/0.png\ntrain/cat/1.png\ntrain/dog/1.png")
    split = resolve(request | {"per_class": 1, "pick": "first"})
    assert len(split.forget) == 2
    assert "Forget 2 of 100 " in splits.describe(split)
    assert splits.describe(split).endswith("at most 1 images of each class of the ids listed in "
                                           "forget.txt.")  # fmt: skip


def test_what_was_understood_of_classes_is_said():
    split = resolve({"kind": "classes", "classes": (2, "cat")})
    assert split.said[:2] == (
        "class 2: folder 'owl', label 2, 20 images", "class cat: folder 'cat', label 0, 40 images",
    )  # fmt: skip


def numbered(per_class=3):
    names = sorted(str(i) for i in range(12))
    return make_source({"train": [per_class] * 12, "test": [2] * 12}, names)


@pytest.mark.parametrize("written", [2, "2", "/2"])
def test_a_number_that_is_a_folder_means_that_folder_everywhere(written):
    from unlearn_jax.data import published

    source = numbered()
    split = resolve({"kind": "classes", "classes": (written,)}, source=source)
    assert {source.ids[row] for row in split.forget} == {f"train/2/{i}.png" for i in range(3)}
    assert split.manifest["request"]["classes"] == ["2"]
    assert split.said[0].endswith(": folder '2', label 4, 3 images")
    found = published.evaluation_rows(source, forget=(written,), retain=("10",), split="test")
    assert {source.ids[row] for row in found["forget"]} == {"test/2/0.png", "test/2/1.png"}
    retain = {"kind": "classes", "classes": (written,)}
    split = resolve({"kind": "classes", "classes": ("10",)}, retain, source=source)
    assert {source.ids[row] for row in split.retain} == {f"train/2/{i}.png" for i in range(3)}


def test_only_the_forget_set_at_hand():
    split = resolve(retain={"kind": "none"})
    assert not len(split.retain) and split.retain.dtype == np.int64
    assert by_class(split.forget) == [40, 0, 0, 0] and by_class(split.remaining) == [0, 30, 20, 10]
    assert split.manifest["retain"] == {"kind": "none"} and split.manifest["counts"]["retain"] == 0
    everything = resolve({"kind": "classes", "classes": NAMES}, {"kind": "none"})
    assert not len(everything.remaining) and len(everything.forget) == 100
    with pytest.raises(ValueError, match='retain set is empty: .*"proxy".*"none"'):
        resolve({"kind": "classes", "classes": NAMES})


# Manifests of the first version.


def first_version(split):
    """The manifest that the version before wrote of the same sets, with one holdout set."""
    manifest = {k: v for k, v in split.manifest.items() if k not in (
        "hash", "near", "proxy", "copies", "served", "id_keys", "asked")}  # fmt: skip
    sets = {name: manifest["sets"][name] for name in ("train", "forget", "retain", "audit")}
    sets["holdout"] = sets.pop("audit")
    counts = {name: len(rows) for name, rows in sets.items()}
    manifest |= {"format": "unlearn_jax.split.v1", "sets": sets, "counts": counts}
    manifest["holdout"] = {"split": "test"}
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    return manifest | {"hash": hashlib.sha256(canonical).hexdigest()}


def test_splits_of_the_first_version_still_load(tmp_path):
    split, path = resolve(), tmp_path / "split.json"
    path.write_text(json.dumps(first_version(split)))
    old = splits.load(path)
    for name in ("train", "forget", "retain", "audit", "remaining"):
        np.testing.assert_array_equal(getattr(old, name), getattr(split, name))
    np.testing.assert_array_equal(old.calibration, old.audit)  # as it was used
    assert old.served == [] and not old.poisoned.size
    assert splits.describe(old) == splits.describe(split)
    changed = first_version(split) | {"seed": 99}
    path.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="was changed after it was written"):
        splits.load(path)
    # A model of that version may be the original of a request of this one.
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "split.json").write_text(json.dumps(first_version(split)))
    lineage.check_model(split, tmp_path / "run")


def test_splits_of_the_first_version_load_with_their_source(tmp_path):
    split, path = resolve(), tmp_path / "split.json"
    path.write_text(json.dumps(first_version(split)))
    np.testing.assert_array_equal(splits.load(path, SOURCE).audit, split.audit)


def test_an_error_that_cannot_be_shown_is_still_one_line(tmp_path):
    text = "class E(Exception):\n    def __str__(self):\n        1 / 0\n    __repr__ = __str__\n"
    with pytest.raises(ValueError, match=r"rule.py, line 6: forget failed for .*exception str\(\)"):
        resolve(rule(tmp_path, text + "def forget(id, label, class_name):\n    raise E()\n"))


def sealed(manifest):
    return json.dumps({**manifest, "hash": splits._hash(manifest)})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("sets", "train"), [0.5], "/sets/train: expected row numbers below 128"),
        (("sets", "forget"), [[1], [2, 3]], "/sets/forget: expected row numbers"),
        (("sets", "retain"), [-1], "/sets/retain: expected row numbers"),
        (("sets", "audit"), [128], "/sets/audit: expected row numbers"),
        (("sets", "calibration"), [2**70], "/sets/calibration: expected row numbers"),
        (("sets",), {}, "/sets/train: expected row numbers"),
        (("sets",), [], "/sets: expected dict, got list"),
        (("counts",), {}, "/counts/train is missing"),
        (("dataset",), None, "/dataset: expected dict"),
        (("request",), {"kind": "all"}, "/request: unknown kind 'all'"),
        (("request",), {"kind": "random", "seed": 0}, "/request/fraction is missing"),
        (("request",), {"kind": ["ids"]}, "/request/kind: expected str, got list"),
        (("poison",), {"rows": [1]}, "/pattern is missing"),
        (("served",), [{"hash": "x", "text": "", "rows": [True]}], "/served/0: expected row"),
        (("id_keys",), "####", "/id_keys: expected 64 bits for each image"),
        (("id_keys",), "AAAA", "/id_keys: expected 64 bits for each image"),
    ],
)
def test_a_manifest_that_is_sealed_and_means_nothing_is_refused(tmp_path, path, value, message):
    manifest = json.loads(json.dumps(resolve().manifest))
    section = manifest
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    (tmp_path / "split.json").write_text(sealed(manifest))
    with pytest.raises(UserError, match=r"split.json: expected a split manifest") as caught:
        splits.load(tmp_path / "split.json")
    assert message in str(caught.value)


def test_what_can_be_resolved_can_be_read(tmp_path):
    requests = [
        {"kind": "classes", "classes": ("cat",)},
        {"kind": "random", "fraction": 0.2, "seed": 3},
        ids_file(tmp_path, "train/dog/1.png"),
    ]
    for request in requests:
        split = resolve(request, poison={"fraction": 0.25, "seed": 0, "jitter": 0.5})
        splits.save(split, tmp_path / "split.json")
        assert splits.load(tmp_path / "split.json").manifest == split.manifest
