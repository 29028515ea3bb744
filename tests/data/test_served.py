"""One request after another: what is remembered, of whom, and which rows it means later."""

import json
import threading

import numpy as np
import pytest
from PIL import Image

from unlearn_jax import config, data
from unlearn_jax import request as setup
from unlearn_jax.data import copies, holdout, served, sources, splits

NAMES = ("cat", "dog", "owl")
COMPLEMENT = {"kind": "complement"}
RESERVE = {"split": "", "fraction": 0.2}


def pictures(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), np.uint8)


def make_source(per_class=20, test=8):
    ids, labels, of = [], [], []
    for split, n in (("train", per_class), ("test", test)):
        for label, name in enumerate(NAMES):
            ids += [f"{split}/{name}/{i}.png" for i in range(n)]
            labels += [label] * n
            of += [split] * n
    return of_images(pictures(len(ids)), ids, labels, of)


def of_images(images, ids, labels, of=None):
    return sources.from_arrays(
        images, np.array(labels), ids=ids, split=of, class_names=NAMES, name="zoo"
    )


SOURCE = make_source()
HASHES = copies.hash_source(SOURCE)


def hashes_of(source):
    return copies.hash_source(source).pixels


def entry(*ids, source=SOURCE, pixels=True, hash="h"):
    rows = np.array([source.ids.index(id) for id in ids], np.int64)
    return served.entry(hash, "text", source, rows, hashes_of(source) if pixels else None)


def listed(tmp_path, *ids, **more):
    file = tmp_path / f"{len(list(tmp_path.iterdir()))}.txt"
    file.write_text("\n".join(ids))
    return {"kind": "ids", "file": str(file), **more}


def resolve(request, past=(), source=SOURCE, section=RESERVE, hashes=None, **options):
    options = {"retain": COMPLEMENT, "seed": 0, **options}
    return splits.resolve(
        source, request=request, holdout=section, served=past, hashes=hashes, **options
    )


# What an entry says and means.


def test_an_entry_says_who_and_when():
    made = entry("train/cat/3.png", "train/dog/1.png", hash="abc")
    assert {k: made[k] for k in ("hash", "data", "text", "ids")} == {
        "hash": "abc", "data": "zoo", "text": "text", "ids": ["train/cat/3.png", "train/dog/1.png"],
    }  # fmt: skip
    assert made["date"].endswith("+00:00")
    row = SOURCE.ids.index("train/cat/3.png")
    assert bytes.fromhex(made["pixels"][0]) == HASHES.pixels[row].astype("<u8").tobytes()
    assert json.loads(json.dumps(made)) == made
    assert entry("train/cat/3.png", pixels=False)["pixels"] == []


def rows_of(made, source, pixels=True):
    return served.rows_of(made, source, hashes_of(source) if pixels else None).tolist()


def test_rows_are_known_by_id_and_pixels():
    images = pictures(5)
    made = entry("a", "b", source=of_images(images[:4], ["a", "b", "c", "d"], [0, 0, 1, 1]))
    now = lambda order, ids: of_images(images[order], ids, [0] * len(ids))  # noqa: E731
    assert rows_of(made, now([0, 1, 2, 3], ["a", "b", "c", "d"])) == [0, 1]
    assert rows_of(made, now([3, 1, 0, 2], ["d", "b", "a", "c"])) == [1, 2]  # another order
    assert rows_of(made, now([0, 1, 2], ["x", "b", "c"])) == [0, 1]  # renamed
    assert rows_of(made, now([2, 1, 0], ["a", "b", "c"])) == [1, 2]  # the name was given on
    assert rows_of(made, now([4, 1, 2], ["a", "b", "c"])) == [0, 1]  # edited or scaled, same name
    assert rows_of(made, now([2, 3], ["c", "d"])) == []  # removed
    assert rows_of(made, now([0, 0, 1], ["x", "y", "b"])) == [0, 1, 2]  # renamed, and copied
    assert rows_of(made, now([0, 0, 1], ["a", "y", "b"])) == [0, 1, 2]  # copied later
    kept = made | {"copies": "keep"}
    assert rows_of(kept, now([0, 0, 1], ["a", "y", "b"])) == [0, 2]  # a copy that was to be kept
    # Without pixels, of then or of now, ids are all there is.
    given_on = now([2, 1, 0], ["a", "b", "c"])
    assert rows_of(made, given_on, pixels=False) == [0, 1]
    assert rows_of({**made, "pixels": []}, given_on) == [0, 1]


def test_random_moves_and_renames_lose_nobody():
    rng = np.random.default_rng(5)
    for _ in range(50):
        n = int(rng.integers(3, 20))
        images, ids = pictures(n, int(rng.integers(1000))), [f"i{k}" for k in range(n)]
        chosen = rng.choice(n, int(rng.integers(1, n)), replace=False)
        made = entry(*(ids[k] for k in chosen), source=of_images(images, ids, [0] * n))
        order = rng.permutation(n)
        renamed = rng.random(n) < 0.5
        names = [f"new{k}" if renamed[k] else ids[k] for k in order]
        expected = sorted(int(np.flatnonzero(order == k)[0]) for k in chosen)
        assert rows_of(made, of_images(images[order], names, [0] * n)) == expected


# Requests in sequence.

ASKED = (
    ["train/cat/1.png", "train/dog/4.png"],
    ["train/dog/7.png", "train/owl/2.png", "train/owl/3.png"],
    ["train/cat/9.png", "train/owl/19.png"],
)


def trainable(asked, section):
    """The same lists without images that are held out: those are another matter."""
    held = np.concatenate(holdout.draw(SOURCE, section)[:2])
    held = {SOURCE.ids[row] for row in held.tolist()}
    return [[id for id in ids if id not in held] for ids in asked]


@pytest.mark.parametrize("section", [RESERVE, {"split": "test"}, {"split": "none"}])
@pytest.mark.parametrize("seen", [False, True])
def test_three_requests_in_sequence_leave_what_one_leaves(tmp_path, section, seen):
    asked, hashes = trainable(ASKED, section), HASHES if seen else None
    past, made = [], []
    for ids in asked:
        made.append(resolve(listed(tmp_path, *ids), list(past), section=section, hashes=hashes))
        pixels = HASHES.pixels if seen else None
        hash = made[-1].manifest["hash"]
        past.append(served.entry(hash, "text", SOURCE, made[-1].forget, pixels))
    together = listed(tmp_path, *(id for ids in asked for id in ids))
    one, last = resolve(together, section=section, hashes=hashes), made[-1]
    np.testing.assert_array_equal(last.remaining, one.remaining)
    np.testing.assert_array_equal(last.retain, one.retain)
    gone = np.concatenate([split.forget for split in made])
    np.testing.assert_array_equal(np.sort(gone), one.forget)
    np.testing.assert_array_equal(np.union1d(last.train, gone), one.train)
    for k, split in enumerate(made):
        earlier = [of.forget.tolist() for of in made[:k]]
        assert [rows.tolist() for rows in split.served] == earlier
        assert [of["hash"] for of in split.manifest["served"]] == [e["hash"] for e in past[:k]]
        for name in splits.SETS:
            assert not set(getattr(split, name).tolist()) & {row for of in earlier for row in of}
        assert split.forget.tolist() == sorted(SOURCE.ids.index(id) for id in asked[k])
    if section["split"] != "none":
        # Who may be looked at in audits is the same pool, of which each takes its classes.
        calibration, audit, _ = holdout.draw(SOURCE, section)
        for split in (*made, one):
            assert np.isin(split.audit, audit).all() and len(split.audit)
            assert np.isin(split.calibration, calibration).all()
            assert set(SOURCE.labels[split.audit]) <= set(SOURCE.labels[split.forget])


def test_the_order_of_requests_does_not_matter(tmp_path):
    asked = trainable(ASKED, RESERVE)
    past = [entry(*ids, hash=str(k)) for k, ids in enumerate(asked)]
    request = listed(tmp_path, "train/dog/10.png", "train/cat/12.png")
    found = [resolve(request, order, hashes=HASHES) for order in (past, past[::-1])]
    for name in splits.SETS:
        np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))


def test_later_requests_choose_among_those_who_are_left():
    cats = resolve({"kind": "classes", "classes": ("cat",), "per_class": 10, "seed": 0})
    past = [served.entry("h", "t", SOURCE, cats.forget)]
    rest = resolve({"kind": "classes", "classes": ("cat",)}, past)
    assert not set(rest.forget) & set(cats.forget)
    assert set(rest.forget) | set(cats.forget) == set(cats.train[SOURCE.labels[cats.train] == 0])
    half = resolve({"kind": "random", "fraction": 0.5, "seed": 0}, past)
    assert len(half.forget) == round(0.5 * (len(cats.train) - 10))
    assert not set(half.forget) & set(cats.forget)


def test_what_was_forgotten_is_not_forgotten_again_and_not_retained(tmp_path):
    past = [entry("train/cat/1.png", "train/cat/2.png")]
    section = {"split": "test"}
    split = resolve(listed(tmp_path, "train/cat/1.png", "train/cat/5.png"), past, section=section)
    assert [SOURCE.ids[row] for row in split.forget] == ["train/cat/5.png"]
    assert "1 images were forgotten by earlier requests already" in split.said
    again = listed(tmp_path, "train/cat/2.png", "train/cat/1.png")
    message = "forget set is empty.*2 images were forgotten by earlier requests already"
    with pytest.raises(ValueError, match=message):
        resolve(again, past, section=section)
    retain = listed(tmp_path, "train/cat/1.png", "train/dog/1.png")
    with pytest.raises(ValueError, match="retain.file: 'train/cat/1.png' are forgotten or held"):
        resolve(listed(tmp_path, "train/cat/5.png"), past, section=section, retain=retain)


def test_copies_of_later_requests_are_not_looked_for_among_the_forgotten(tmp_path):
    images = pictures(len(SOURCE))
    images[1] = images[0]
    source = of_images(images, list(SOURCE.ids), SOURCE.labels, ["train"] * 60 + ["test"] * 24)
    hashes, section = copies.hash_source(source), {"split": "test"}
    request = listed(tmp_path, source.ids[0], copies="refuse")
    with pytest.raises(ValueError, match="request.copies: 1 images"):
        resolve(request, source=source, hashes=hashes, section=section)
    past = [served.entry("h", "t", source, np.array([1]))]
    split = resolve(request, past, source=source, hashes=hashes, section=section)
    assert split.forget.tolist() == [0] and split.manifest["copies"]["exact"] == 0


def test_a_second_request_works_with_a_holdout_from_the_training_folder():
    """The fault: it was refused, since the holdout was drawn for each request."""
    first = resolve({"kind": "classes", "classes": ("cat",)})
    past = [served.entry("h", "t", SOURCE, first.forget)]
    second = resolve({"kind": "classes", "classes": ("dog",)}, past)
    assert not set(np.concatenate([second.calibration, second.audit])) & set(first.train)
    assert set(second.train) == set(first.remaining)
    assert set(SOURCE.labels[second.audit]) == {1}


# forgotten.json.


def test_places_are_beside_the_data(tmp_path):
    cfg = config.default().data
    assert served.place(cfg) is None  # the bundled sample
    for kind, path, file in (
        ("folder", "photos", "forgotten.json"),
        ("arrays", "set.npz", "forgotten.json"),
        ("records", "prepared", "prepared/forgotten.json"),
    ):
        cfg.update({"kind": kind, "path": str(tmp_path / path)})
        name = "" if kind == "records" else path
        assert served.place(cfg) == (tmp_path / file, name)
    cfg.update({"kind": "folder", "path": str(tmp_path / "photos") + "/"})
    assert served.place(cfg) == (tmp_path / "forgotten.json", "photos")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(tmp_path / "photos")
    cfg.path = str(tmp_path / "elsewhere" / "link")  # the same data, whatever leads to them
    assert served.place(cfg) == (tmp_path / "forgotten.json", "photos")


def test_what_is_remembered_is_read_again_by_those_data_only(tmp_path):
    where, other = ((tmp_path / served.FILE, name) for name in ("photos", "others"))
    assert served.of_data(where) == [] and served.of_data(None) == []
    made = [entry(*ids, hash=str(k)) for k, ids in enumerate(ASKED)]
    for one in made[:2]:
        served.remember(where, one)
    served.remember(other, made[2])
    served.remember(where, made[0])  # once more is once
    ours = lambda where: [e for e in served.of_data(where) if not e.get("elsewhere")]  # noqa: E731
    assert ours(where) == [{**one, "data": "photos"} for one in made[:2]]
    assert ours(other) == [{**made[2], "data": "others"}]
    theirs = [e for e in served.of_data(other) if e.get("elsewhere")]
    assert [e["hash"] for e in theirs] == ["0", "1"] and not any("".join(e["ids"]) for e in theirs)
    inside = (tmp_path / "in" / served.FILE, "")  # prepared records: whatever their folder is named
    (tmp_path / "in").mkdir()
    served.remember(inside, made[0])
    assert served.of_data(inside) == [made[0]]
    assert not [p for p in tmp_path.rglob("*") if "partial" in p.name]


def test_a_changed_or_damaged_file_is_an_error_never_an_empty_list(tmp_path):
    where = (tmp_path / served.FILE, "photos")
    served.remember(where, entry(*ASKED[0]))
    content = json.loads(where[0].read_text())
    fewer = {**content, "requests": []}
    other = {**content, "requests": [{**content["requests"][0], "ids": ["train/dog/4.png"]}]}
    unsealed = {k: v for k, v in content.items() if k != "digest"}
    texts = [json.dumps(c) for c in (fewer, other, unsealed, {**content, "format": "v0"})]
    for text in (*texts, "", "{", "[]", "null", "[1]", where[0].read_text()[:-20]):
        where[0].write_text(text)
        for use in (served.of_data, lambda where: served.remember(where, entry(*ASKED[1]))):
            with pytest.raises(ValueError, match=r"forgotten.json: expected the list of what was"):
                use(where)
        assert where[0].read_text() == text


def test_requests_that_end_at_the_same_time_are_all_remembered(tmp_path):
    where = (tmp_path / served.FILE, "photos")
    made = [entry("train/cat/1.png", hash=str(k)) for k in range(12)]
    threads = [threading.Thread(target=served.remember, args=(where, one)) for one in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {e["hash"] for e in served.of_data(where)} == {str(k) for k in range(12)}


def test_union_has_each_request_once_in_order():
    a, b, c = (entry("train/cat/1.png", hash=h) for h in "abc")
    assert [e["hash"] for e in served.union([a, b], [b, c], [])] == ["a", "b", "c"]
    assert served.union() == []


def test_a_copy_elsewhere_keeps_what_is_remembered_away_from_other_data(tmp_path):
    """Two folders side by side: one's `1.png` is not the other's."""
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / name / "cat").mkdir(parents=True)
        for i, image in enumerate(pictures(4, seed)):
            Image.fromarray(image).save(tmp_path / name / "cat" / f"{i}.png")
    cfg = config.default().data
    cfg.update({"kind": "folder", "path": str(tmp_path / "a")})
    here = served.place(cfg)
    source = sources.open_source(
        kind="folder", path=str(tmp_path / "a"), image_size=8, splits=("train",)
    )
    served.remember(here, served.entry("h", "t", source, np.array([1]), hashes_of(source)))
    cfg.path = str(tmp_path / "b")
    assert served.place(cfg)[0] == here[0]
    other = sources.open_source(
        kind="folder", path=str(tmp_path / "b"), image_size=8, splits=("train",)
    )
    (found,) = served.of_data(served.place(cfg))
    assert not len(served.rows_of(found, other, hashes_of(other)))
    assert served.rows_of(found, source, hashes_of(source)).tolist() == [1]


def test_an_image_that_somebody_asked_for_while_it_was_held_out_is_remembered(tmp_path):
    """Else a later training with another holdout section would be the first to learn it."""
    images = pictures(len(SOURCE))
    of = np.array(["train"] * 60 + ["test"] * 24)
    path = tmp_path / "set.npz"
    np.savez(path, image=images, label=SOURCE.labels, id=np.array(SOURCE.ids), split=of)
    cfg = config.default()
    cfg.data.update({"kind": "arrays", "path": str(path), "image_size": 8})
    cfg.holdout.update(RESERVE)
    held = {SOURCE.ids[row] for row in holdout.draw(SOURCE, RESERVE)[1].tolist()}
    asked = [sorted(held)[0], next(id for id in SOURCE.ids if id not in held)]
    cfg.request.update(listed(tmp_path, *asked))
    source, split = data.load(cfg)
    request = object.__new__(setup.Request)  # its model and devices are of no account here
    request.cfg, request.source, request.split = cfg, source, split
    made = request.entry()
    assert set(made["ids"]) == set(asked)


@pytest.mark.parametrize(
    "change",
    [{"ids": None}, {"ids": [1]}, {"pixels": ["00"]}, {"hash": 3}, {"data": None}, {"text": []}],
)
def test_entries_that_are_sealed_and_mean_nothing_are_refused(tmp_path, change):
    made = entry(*ASKED[0], "train/cat/2.png")
    served.write(tmp_path / served.FILE, {"format": served.FORMAT, "requests": [made | change]})
    with pytest.raises(ValueError, match=r"forgotten.json: expected the list of what was"):
        served.of_data((tmp_path / served.FILE, ""))
