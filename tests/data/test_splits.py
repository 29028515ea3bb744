"""Splits against sets counted by hand; every refusal must say what is wrong."""

import hashlib
import json

import numpy as np
import pytest

from unlearn_jax.data import joining, sources, splits

NAMES = ["cat", "dog", "owl", "ant"]
PER_CLASS = {"train": [40, 30, 20, 10], "test": [10, 8, 6, 4]}
COMPLEMENT = {"kind": "complement", "fraction": 1.0, "seed": 0}
TEST = {"split": "test", "fraction": 0.1}
RESERVE = {"split": "", "fraction": 0.2}
CATS = {"kind": "classes", "classes": ("cat",), "fraction": 0.1, "seed": 0, "file": ""}


def make_source(per_class=PER_CLASS, names=NAMES, name="arrays", prefix=""):
    labels, split, ids = [], [], []
    for part, counts in per_class.items():
        for label, n in enumerate(counts):
            labels += [label] * n
            split += [part] * n
            ids += [f"{prefix}{part}/{names[label]}/{i}.png" for i in range(n)]
    order = np.random.default_rng(0).permutation(len(labels))
    return sources.from_arrays(
        np.zeros((len(labels), 4, 4, 3), np.uint8),
        np.array(labels)[order],
        ids=[ids[i] for i in order],
        split=[split[i] for i in order],
        splits=list(per_class),
        class_names=names,
        name=name,
    )


SOURCE = make_source()


def resolve(request=CATS, retain=COMPLEMENT, holdout=TEST, seed=0, source=SOURCE):
    return splits.resolve(source, request=request, retain=retain, holdout=holdout, seed=seed)


def by_class(rows, source=SOURCE):
    return np.bincount(source.labels[rows], minlength=len(source.class_names)).tolist()


def check_invariants(split, source=SOURCE):
    train, forget, retain, holdout = (
        set(rows.tolist()) for rows in (split.train, split.forget, split.retain, split.holdout)
    )
    assert forget < train and train.isdisjoint(holdout) and retain.isdisjoint(forget | holdout)
    assert set(split.remaining.tolist()) == train - forget
    assert train | holdout <= set(range(len(source)))
    for rows in (split.train, split.forget, split.retain, split.holdout, split.remaining):
        assert rows.dtype == np.int64 and rows.size and (np.diff(rows) > 0).all()


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
    # 10 unseen cats for 40 and 6 owls for 20: cats are the scarcest, so 10 and 20 * 10 / 40.
    assert by_class(split.holdout) == [10, 0, 5, 0]
    assert min(split.holdout) >= 100
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
    # Another seed of the run changes the holdout, not what is forgotten.
    other = resolve(request, seed=1)
    np.testing.assert_array_equal(other.forget, split.forget)
    assert other.holdout.tolist() != split.holdout.tolist()


def ids_file(tmp_path, text):
    file = tmp_path / "forget.txt"
    file.write_text(text, "utf-8")
    return {"kind": "ids", "file": str(file)}


@pytest.mark.parametrize(
    "text",
    [
        "train/cat/0.png\n\n  train/dog/1.png \n# a comment\ntrain/cat/7.png",
        "\ufeffid\ntrain/cat/0.png\r\ntrain/dog/1.png\r\ntrain/cat/7.png\r\n",
        'label,Path\n# x\n1,train/cat/0.png\n\n2,"train/dog/1.png"\n3, train/cat/7.png\n',
        "/data/me/train/cat/0.png\n./train/dog/1.png\nC:\\images\\train\\cat\\7.png\n",
    ],
)
def test_ids_as_list_csv_or_paths(tmp_path, text):
    request = ids_file(tmp_path, text)
    split = resolve(request)
    check_invariants(split)
    expected = {"train/cat/0.png", "train/dog/1.png", "train/cat/7.png"}
    assert {SOURCE.ids[row] for row in split.forget} == expected
    assert by_class(split.holdout) == [10, 5, 0, 0]  # 2 : 1, as many as 10 cats permit
    with open(request["file"], "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    recorded = {"kind": "ids", "file": "forget.txt", "sha256": digest}
    assert split.manifest["request"] == recorded


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train/cat/0.png\ntrain/cot/1.png",
            "1 of 2 are no examples.*cot/1.*Nearest: 'train/cat/1",
        ),
        ("0.png", "no examples of arrays: '0.png'"),
        ("train/cat/0.png\ntrain/cat/0.png", "'train/cat/0.png' named more than once"),
        ("/a/train/cat/0.png\n/b/train/cat/0.png", "several paths name one example"),
        ("test/cat/0.png\ntrain/cat/0.png", "'test/cat/0.png' are not in the training split"),
        ("name\ntrain/cat/0.png", "1 of 2 .*'name'.*header with one of"),
        ("id,path\na,train/cat/0.png", "one column of .*got .'id', 'path'"),
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
        ("def forget(id, label, class_name): return 1", TypeError, "True or False, got 1"),
        (
            "def forget(id, label, class_name): return id[99]",
            ValueError,
            "forget failed for 'train",
        ),
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
        ({"kind": "classes", "classes": (4,)}, r"no class 4.*labels, 0\.\.3"),
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


def test_holdout_reserved_from_the_forgotten_classes():
    split = resolve({"kind": "classes", "classes": ("cat", "owl")}, holdout=RESERVE)
    check_invariants(split)
    assert by_class(split.holdout) == [8, 0, 4, 0]
    assert by_class(split.forget) == [32, 0, 16, 0]
    assert by_class(split.train) == [32, 30, 16, 10]
    assert max(split.holdout) < 100
    assert (
        resolve(holdout=RESERVE, seed=1).holdout.tolist()
        != resolve(holdout=RESERVE).holdout.tolist()
    )


def test_holdout_reserved_from_rows_not_to_be_forgotten():
    request = {"kind": "random", "fraction": 0.5, "seed": 0}
    split = resolve(request, holdout=RESERVE)
    check_invariants(split)
    assert by_class(split.forget) == [20, 15, 10, 5]
    assert by_class(split.holdout) == [8, 6, 4, 2]
    assert by_class(split.retain) == [12, 9, 6, 3]
    # What is forgotten does not depend on where the holdout comes from.
    np.testing.assert_array_equal(split.forget, resolve(request).forget)


def test_forgotten_classes_without_unseen_images_are_an_error(tmp_path):
    source = make_source({"train": [4, 4, 4, 4], "test": [0, 4, 4, 4]})
    with pytest.raises(ValueError, match=r"unseen image of the forgotten classes \['cat'\]. Set"):
        resolve(source=source)
    request = rule(tmp_path, "def forget(id, label, class_name): return class_name == 'cat'")
    with pytest.raises(ValueError, match=r"\['cat'\]. All of their training images"):
        resolve(request, holdout=RESERVE, source=source)
    split = resolve(holdout=RESERVE, source=source)
    assert by_class(split.holdout, source) == [1, 0, 0, 0]
    source = make_source({"train": [1, 4, 4, 4]})
    with pytest.raises(ValueError, match="forget set is empty: the holdout took it all"):
        resolve(holdout=RESERVE, source=source)


@pytest.mark.parametrize(
    ("holdout", "message"),
    [
        ({"split": "val"}, r"expected one of \['test'\], or \"\".*got 'val'"),
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
    assert manifest["format"] == "unlearn_jax.split.v1" and manifest["seed"] == 5
    assert manifest["dataset"]["n"] == 128 and manifest["class_names"] == NAMES
    assert manifest["retain"] == {"kind": "complement"} and manifest["holdout"] == {"split": "test"}
    assert manifest["counts"] == {"train": 100, "forget": 40, "retain": 60, "holdout": 10}
    assert manifest["class_counts"]["retain"] == {"dog": 30, "owl": 20, "ant": 10}
    assert manifest["sets"]["forget"] == split.forget.tolist()
    rest = {key: value for key, value in manifest.items() if key != "hash"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    assert manifest["hash"] == hashlib.sha256(canonical).hexdigest()
    content = json.dumps([SOURCE.ids, SOURCE.labels.tolist()], separators=(",", ":")).encode()
    assert manifest["dataset"]["fingerprint"] == hashlib.sha256(content).hexdigest()

    splits.save(split, tmp_path / "split.json")
    for loaded in (
        splits.load(tmp_path / "split.json"),
        splits.load(tmp_path / "split.json", SOURCE),
    ):
        assert loaded.manifest == manifest
        for name in ("train", "forget", "retain", "holdout", "remaining"):
            np.testing.assert_array_equal(getattr(loaded, name), getattr(split, name))
    assert resolve(seed=5).manifest == manifest
    assert resolve(seed=6).manifest["hash"] != manifest["hash"]


def test_every_change_of_the_manifest_is_noticed(tmp_path):
    split, path = resolve(), tmp_path / "split.json"
    manifest = split.manifest
    moved = {**manifest["sets"], "forget": manifest["sets"]["forget"][1:]}
    for change in ({"sets": moved}, {"seed": 9}, {"hash": "0" * 64}, {"extra": 1}):
        path.write_text(json.dumps({**manifest, **change}))
        with pytest.raises(ValueError, match="was changed after it was written"):
            splits.load(path)
    for text in ("{", "[]", "{}", ""):
        path.write_text(text)
        with pytest.raises(ValueError, match="expected a split manifest"):
            splits.load(path)
    path.write_text(json.dumps({**manifest, "format": "v0"}))
    with pytest.raises(ValueError, match="expected format unlearn_jax.split.v1, got 'v0'"):
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
        ({"holdout": [3]}, "retain and holdout overlap in 1 rows and 1 ids: 'd'"),
        ({"holdout": [5]}, "forget and holdout overlap in 0 rows and 1 ids: 'a'"),
        ({"retain": [0, 2]}, "forget and retain overlap in 1 rows"),
        ({"train": [1, 2, 3]}, "forget has rows that are not in train"),
        ({"train": [0, 1, 2, 3, 4]}, "train and holdout overlap"),
        ({"retain": []}, "retain set is empty"),
        ({"retain": [3, 2]}, "not sorted and unique"),
        ({"holdout": [6]}, "outside the dataset of 6"),
    ],
)
def test_overlaps_are_found_by_row_and_by_id(change, message):
    ids = ["a", "b", "c", "d", "e", "a"]
    sets = {"train": [0, 1, 2, 3], "forget": [0, 1], "retain": [2, 3], "holdout": [4], **change}
    with pytest.raises(ValueError, match=message):
        splits._check_sets({k: np.array(v, np.int64) for k, v in sets.items()}, ids)


def test_many_classes_are_counted_and_limits_are_told():
    def split(**request):
        counts = {"forget": 1, "train": 2}
        manifest = {"request": {"kind": "classes", **request}, "counts": counts}
        empty = np.zeros(0, np.int64)
        manifest["dataset"] = {"name": "zoo"}
        return splits.Split(empty, empty, empty, empty, manifest)

    assert splits.describe(split(classes=["cat", "dog"])).endswith("zoo: every image of cat, dog.")
    many = splits.describe(split(classes=[f"c{i}" for i in range(100)], per_class=120))
    assert many.endswith("zoo: at most 120 images of each of " + ", ".join(
        f"c{i}" for i in range(10)) + " and 90 more.")  # fmt: skip
