"""The pool of unseen images: who is in it depends on ids alone, and its parts never meet."""

import hashlib

import numpy as np
import pytest

from unlearn_jax.data import copies, holdout, sources, splits

RESERVE = {"split": "", "fraction": 0.2}
COMPLEMENT = {"kind": "complement"}
NAMES = ("cat", "dog", "owl", "ant")


def make_source(per_class, names=NAMES, skip=()):
    """Images of every split by class, in an order of their own, without those to skip."""
    found = [
        (f"{split}/{names[label]}/{i}.png", label, split)
        for split, counts in per_class.items()
        for label, n in enumerate(counts)
        for i in range(n)
    ]
    found = [found[k] for k in np.random.default_rng(len(found)).permutation(len(found))]
    ids, labels, of = zip(*(image for image in found if image[0] not in skip), strict=True)
    images = np.zeros((len(ids), 4, 4, 3), np.uint8)
    return sources.from_arrays(
        images, np.array(labels), ids=ids, split=of, splits=list(per_class), class_names=names
    )


TRAIN = {"train": [60, 45, 30, 15], "test": [20, 16, 12, 8]}
SOURCE = make_source(TRAIN)


def position(id):
    """Where an id lies in 0..1: the definition, written down again."""
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "little") / 2**64


def last_bit(id):
    return hashlib.blake2b(id.encode(), digest_size=8).digest()[0] % 2


def named(source, *parts):
    return {source.ids[row] for part in parts for row in part.tolist()}


def pool_of(source, section=RESERVE):
    *parts, record = holdout.draw(source, section)
    return [named(source, part) for part in parts], record


def test_the_pool_is_those_of_each_class_whose_hash_is_small():
    (calibration, audit), record = pool_of(SOURCE)
    expected = {id for id in SOURCE.ids if id.startswith("train/") and position(id) < 0.2}
    assert {id.split("/")[1] for id in expected} == set(NAMES)  # else at least one is taken
    assert calibration | audit == expected and not calibration & audit
    assert record == {"split": "", "fraction": 0.2}
    for name in NAMES:  # the last bit of the hash says which part, if it leaves audit any
        of_class = {id for id in expected if f"/{name}/" in id}
        even = {id for id in of_class if last_bit(id) == 0}
        first = {min(of_class, key=position)}
        assert audit & of_class == (even or first)


def test_the_whole_of_a_named_split_is_the_pool():
    (calibration, audit), record = pool_of(SOURCE, {"split": "test", "fraction": 0.01})
    assert calibration | audit == {id for id in SOURCE.ids if id.startswith("test/")}
    assert not calibration & audit and record == {"split": "test"}
    even = {id for id in calibration | audit if last_bit(id) == 0}
    assert audit == even and abs(len(audit) - 28) < 3 * np.sqrt(56 / 4)


def test_there_may_be_none():
    assert pool_of(SOURCE, {"split": "none", "fraction": 0.2}) == (
        [set(), set()],
        {"split": "none"},
    )


def test_about_the_fraction_of_every_class_and_more_for_a_larger_one():
    source = make_source({"train": [2000, 1000, 500, 250]})
    before = set()
    for fraction in (0.05, 0.1, 0.3, 0.7):
        (calibration, audit), _ = pool_of(source, {"split": "", "fraction": fraction})
        assert before < calibration | audit
        before = calibration | audit
        for name, n in zip(NAMES, (2000, 1000, 500, 250), strict=True):
            of_class = sum(f"/{name}/" in id for id in before)
            assert abs(of_class - fraction * n) < 4 * np.sqrt(n * fraction * (1 - fraction))


def test_parts_are_disjoint_and_audit_is_never_empty_whatever_the_classes():
    rng = np.random.default_rng(1)
    for _ in range(200):
        k = int(rng.integers(1, 8))
        counts = rng.choice([0, 1, 1, 2, 3, 5, 20], k)
        counts[0] += 1
        unseen = rng.integers(0, 9, k)
        unseen[0] += 1
        source = make_source(
            {"train": counts.tolist(), "test": unseen.tolist()}, [f"c{i}" for i in range(k)]
        )
        for section in ({"split": "", "fraction": rng.uniform(0.01, 0.99)}, {"split": "test"}):
            calibration, audit, _ = holdout.draw(source, section)
            both = np.concatenate([calibration, audit])
            assert len(np.unique(both)) == len(both)
            assert np.isin(both, source.splits[section["split"] or "train"]).all()
            for label, (n, there) in enumerate(zip(counts, unseen, strict=True)):
                in_audit, in_calibration = (
                    int((source.labels[part] == label).sum()) for part in (audit, calibration)
                )
                assert in_audit > 0 or not in_calibration
                if section["split"]:
                    assert in_audit + in_calibration == there
                else:  # something to train on stays, something to test with is taken
                    assert min(1, n - 1) <= in_audit + in_calibration <= max(0, n - 1) or not n


def test_taking_images_out_of_the_data_moves_no_other_in_or_out():
    rng = np.random.default_rng(2)
    whole = set.union(*pool_of(SOURCE)[0])
    trainable = [id for id in SOURCE.ids if id.startswith("train/")]
    for _ in range(20):
        skip = set(rng.choice(trainable, 30, replace=False).tolist())
        left = set.union(*pool_of(make_source(TRAIN, skip=skip))[0])
        assert left == whole - skip
    # Nor do the parts change: what a method may have looked at is never tested with later.
    large = {"train": [300, 300], "test": [1, 1]}
    before, _ = pool_of(make_source(large, NAMES[:2]))
    skip = set(rng.choice(sorted(before[0] | before[1]), 40, replace=False).tolist())
    after, _ = pool_of(make_source(large, NAMES[:2], skip=skip))
    assert after == [part - skip for part in before]


def test_more_images_and_classes_and_another_order_move_no_image_in_or_out():
    whole = set.union(*pool_of(SOURCE)[0])
    more = make_source({"train": [90, 45, 60, 15, 40]}, (*NAMES, "bee"))
    assert set.union(*pool_of(more)[0]) & set(SOURCE.ids) == whole
    other = make_source(TRAIN, NAMES)
    assert other.ids == SOURCE.ids
    labels = dict(zip(NAMES, (3, 1, 0, 2), strict=True))  # the same classes, numbered otherwise
    ids = sorted(SOURCE.ids)
    renumbered = sources.from_arrays(
        np.zeros((len(ids), 4, 4, 3), np.uint8),
        np.array([labels[id.split("/")[1]] for id in ids]),
        ids=ids, split=[id.split("/")[0] for id in ids], splits=("train", "test"),
    )  # fmt: skip
    assert pool_of(renumbered) == pool_of(SOURCE)


def of_request(tmp_path, **changes):
    options = {
        "request": {"kind": "classes", "classes": ("cat",)},
        "retain": COMPLEMENT,
        "holdout": RESERVE,
        "seed": 0,
        **changes,
    }
    return splits.resolve(options.pop("source", SOURCE), **options)


def test_nothing_that_is_asked_for_changes_what_is_never_trained_on(tmp_path):
    (calibration, audit), _ = pool_of(SOURCE)
    (tmp_path / "rule.py").write_text("def forget(id, label, class_name): return '/1' in id")
    listed = sorted(set(SOURCE.ids) - calibration - audit)
    (tmp_path / "list.txt").write_text("\n".join(id for id in listed if "train/owl" in id))
    requests = [
        {"kind": "classes", "classes": ("cat",)},
        {"kind": "classes", "classes": ("dog", "ant"), "per_class": 3, "seed": 7},
        {"kind": "random", "fraction": 0.5, "seed": 0},
        {"kind": "random", "fraction": 0.1, "seed": 1},
        {"kind": "predicate", "file": str(tmp_path / "rule.py")},
        {"kind": "ids", "file": str(tmp_path / "list.txt")},
    ]
    others = [
        {}, {"seed": 5}, {"retain": {"kind": "subset", "fraction": 0.4, "seed": 3}},
        {"retain": {"kind": "none"}}, {"poison": {"fraction": 0.5, "seed": 1}},
        {"retain": {"kind": "other_classes", "classes": ()}},
    ]  # fmt: skip
    expected = {id for id in SOURCE.ids if id.startswith("train/")} - calibration - audit
    for request in requests:
        for other in others if request["kind"] == "classes" else others[:1]:
            split = of_request(tmp_path, request=request, **other)
            assert named(SOURCE, split.train) == expected
            assert named(SOURCE, split.calibration) <= calibration
            assert named(SOURCE, split.audit) <= audit


def test_a_part_of_the_pool_for_few_is_part_of_that_for_many(tmp_path):
    """One after the other of its class: a smaller audit looks at the same images first."""
    calibration, audit, _ = holdout.draw(SOURCE, {"split": "test"})
    for part in (calibration, audit):
        labels = SOURCE.labels[part]
        for label in range(4):
            of_class = part[labels == label].tolist()
            assert of_class == sorted(of_class, key=lambda row: position(SOURCE.ids[row]))
    forget = np.flatnonzero(SOURCE.labels == 0)[:40]
    one, _ = holdout.like(
        audit, SOURCE, np.concatenate([forget, np.flatnonzero(SOURCE.labels == 3)])
    )
    both, _ = holdout.like(audit, SOURCE, forget)
    assert set(one[SOURCE.labels[one] == 0]) <= set(both)


# The share of the forget set.


def like(forget, unseen):
    """by_class counts that `like` gives for so many forget and unseen images of each class."""
    names = [f"c{i}" for i in range(len(forget))]
    source = make_source({"train": forget, "test": unseen}, names)
    ranked = np.array(source.splits["test"])
    rows, short = holdout.like(ranked, source, np.array(source.splits["train"]))
    assert (np.diff(rows) > 0).all()
    return np.bincount(source.labels[rows], minlength=len(forget)).tolist(), short


def test_as_many_as_the_classes_allow():
    assert like([40, 20], [10, 8]) == ([10, 5], {})
    assert like([40, 20], [10, 5]) == ([10, 5], {})
    assert like([4, 4], [4, 4]) == ([4, 4], {})
    assert like([2, 1], [40, 20]) == ([40, 20], {})


def test_a_rare_class_does_not_shrink_the_others_and_is_named():
    """The fault: one class with one test image left one image of each, of all ten classes."""
    found, short = like([50] * 10, [1] + [50] * 9)
    assert found == [1] + [50] * 9
    assert short == {"c0": {"forget": 50, "unseen": 1, "wanted": 50}}
    found, short = like([50, 50, 50], [0, 25, 30])
    assert found == [0, 25, 25] and list(short) == ["c0"]


def test_random_class_counts_against_the_rule_in_words():
    """The largest scale at which classes of at least half of the forget images are complete."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        k = int(rng.integers(1, 7))
        forget, unseen = rng.integers(1, 30, k), rng.integers(0, 30, k)
        unseen[-1] += 1
        ratios = unseen / forget
        full = [s for s in sorted({*ratios}) if 2 * forget[ratios >= s].sum() >= forget.sum()]
        due = np.maximum(1, [round(max(full) * int(n)) for n in forget])
        found, short = like(forget.tolist(), unseen.tolist())
        assert found == np.minimum(due, unseen).tolist()
        expected = {
            f"c{i}": {"forget": int(forget[i]), "unseen": int(unseen[i]), "wanted": int(due[i])}
            for i in range(k)
            if 2 * unseen[i] < due[i]  # a few less are no reason to speak
        }
        assert short == expected


def test_short_classes_are_said_and_recorded(tmp_path):
    source = make_source({"train": [40] * 4, "test": [1, 20, 20, 20]})
    split = of_request(
        tmp_path, source=source, holdout={"split": "test"},
        request={"kind": "random", "fraction": 0.5, "seed": 0},
    )  # fmt: skip
    found = np.bincount(source.labels[split.audit])
    assert found[0] == 1 and (abs(found[1:] - 10) < 3 * np.sqrt(20 / 4)).all()
    due = int(found.max())
    held = split.manifest["holdout"]
    assert held["audit_short"] == {"cat": {"forget": 20, "unseen": 1, "wanted": due}}
    assert list(held["calibration_short"]) == ["cat"]
    (said,) = [line for line in split.said if "can be tested" in line]
    assert f"class 'cat': 1 unseen images for the audits, {due} would match its 20" in said


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"split": "val"}, r"expected one of \['test'\], \"\" to take .*\"none\".*got 'val'"),
        ({"split": "train"}, "got 'train'"),
        ({"split": "proxy"}, "got 'proxy'"),
        ({"split": "", "fraction": 0.0}, "holdout.fraction: expected 0 < fraction < 1, got 0.0"),
        ({"split": "", "fraction": 1.0}, "got 1.0"),
        ({"split": "", "fraction": float("nan")}, "got nan"),
        ({"split": ""}, "holdout.fraction: "),
    ],
)
def test_bad_sections(section, message):
    with pytest.raises(ValueError, match=message):
        holdout.draw(SOURCE, section)


def test_keys_of_ids_are_hashes_of_their_bytes():
    ids = ["train_0", "é", "e\u0301", "\udcff"]
    expected = [
        int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")
        for raw in (b"train_0", "é".encode(), "e\u0301".encode(), b"\xff")
    ]
    assert holdout.id_keys(ids).tolist() == expected and len(set(expected)) == 4
    assert holdout.id_keys([]).shape == (0,)


def test_an_image_with_pixels_that_a_model_once_learned_is_not_unseen():
    """Also if that image is in no set any more: an earlier request forgot it, and kept copies."""
    rng = np.random.default_rng(0)
    source = make_source({"train": [6], "test": [6]}, ["cat"])
    pixels = rng.integers(0, 2**63, (12, 2)).astype(np.uint64)
    (first, *_), (twin, *_) = (np.array(source.splits[name]) for name in ("train", "test"))
    pixels[twin] = pixels[first]
    hashes = copies.Hashes(pixels, rng.integers(0, 2**63, (12, 4)).astype(np.uint64))
    entry = {"hash": "h", "text": "t", "copies": "keep", "ids": [source.ids[first]], "pixels": []}
    split = splits.resolve(
        source, request={"kind": "classes", "classes": ("cat",)}, retain={"kind": "none"}, seed=0,
        holdout={"split": "test"}, served=[entry], hashes=hashes,
    )  # fmt: skip
    both = np.concatenate([split.calibration, split.audit])
    assert first not in split.train and twin not in both and len(both) == 5
    assert any("1 held-out images have the pixels of others" in line for line in split.said)
