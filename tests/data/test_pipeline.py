"""Batches as a function of (seed, step): permutations, resuming, hosts, flags, masks, padding."""

import itertools

import numpy as np
import pytest

from unlearn_jax import config, data
from unlearn_jax.data import served, sources, splits, transforms

INPAINT = {"name": "inpaint", "hole": 0.5}
PATCHES = {"name": "random_mask", "ratio": 0.5, "patch": 2}
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (60, 8, 8, 3), np.uint8)
SOURCE = sources.from_arrays(PIXELS, RNG.integers(0, 4, 60), class_names="abcd")
RETAIN = np.arange(3, 50)  # 47 rows, a prime
FORGET = np.array([0, 1, 2, 50, 51, 55, 59])


def train(**changes):
    options = {
        "retain_rows": RETAIN,
        "forget_rows": FORGET,
        "batch_size": 16,
        "forget_fraction": 0.25,
        "task": PATCHES,
        "seed": 7,
        "first_step": 0,
        "num_steps": 12,
        "num_threads": 2,
    }
    return list(data.make_train(SOURCE, **{**options, **changes}))


def check_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def test_batches_are_what_they_say():
    for batch in train():
        shapes = {name: (value.shape, value.dtype.name) for name, value in batch.items()}
        assert shapes == {
            "image": ((16, 8, 8, 3), "float32"),
            "mask": ((16, 8, 8, 1), "float32"),
            "label": ((16,), "int32"),
            "index": ((16,), "int32"),
            "is_forget": ((16,), "bool"),
            "valid": ((16,), "bool"),
        }
        index = batch["index"]
        np.testing.assert_allclose(batch["image"], PIXELS[index] / 127.5 - 1, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(batch["label"], SOURCE.labels[index])
        np.testing.assert_array_equal(batch["is_forget"], np.isin(index, FORGET))
        np.testing.assert_array_equal(~batch["is_forget"], np.isin(index, RETAIN))
        assert batch["is_forget"].sum() == 4 and batch["valid"].all()
        assert (batch["mask"].sum(axis=(1, 2, 3)) == 32).all()


@pytest.mark.parametrize(("is_forget", "rows"), [(False, RETAIN), (True, FORGET)])
def test_every_epoch_of_a_stream_is_another_permutation(is_forget, rows):
    batches = train(num_steps=60)
    stream = np.concatenate([b["index"][b["is_forget"] == is_forget] for b in batches])
    epochs = [stream[i : i + len(rows)] for i in range(0, len(stream), len(rows))][:-1]
    assert len(epochs) >= 15
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.sort(rows))
    # Two epochs of 7 rows may well agree by chance, once in 7! = 5040 pairs.
    assert len({tuple(epoch) for epoch in epochs} | {tuple(rows)}) >= len(epochs)


def test_every_row_comes_at_every_place_equally_often():
    epochs = data._rows_at(FORGET, 7, 0, range(7 * 1000)).reshape(-1, 7)
    often = np.array([(epochs == row).mean(axis=0) for row in FORGET])
    assert np.abs(often - 1 / 7).max() < 5 * np.sqrt(1 / 7 * 6 / 7 / 1000)


def test_resuming_at_any_step_continues_the_stream():
    whole = train()
    for step in (1, 5, 11):
        check_equal(train(first_step=step, num_steps=12 - step), whole[step:])
    assert train(first_step=12, num_steps=0) == []


@pytest.mark.parametrize("options", [{"num_threads": 0}, {"num_threads": 8, "prefetch": 2}, {}])
def test_the_stream_is_the_same_for_any_number_of_threads_and_again(options):
    check_equal(train(**options), train())


def test_seeds_change_order_and_masks_in_both_streams():
    a, b = train(num_steps=1)[0], train(num_steps=1, seed=8)[0]
    for flag in (True, False):
        chosen = a["is_forget"] == flag
        assert a["index"][chosen].tolist() != b["index"][chosen].tolist()
        assert a["mask"][chosen].tolist() != b["mask"][chosen].tolist()


def test_masks_differ_between_epochs_and_streams():
    batches = train(forget_rows=None, retain_rows=RETAIN[:1], batch_size=4, num_steps=25)
    masks = np.concatenate([batch["mask"] for batch in batches])
    assert len({mask.tobytes() for mask in masks}) > 90  # 12870 possible masks, 100 drawn
    of_retain = train(num_steps=1, forget_rows=None, batch_size=4)[0]["mask"]
    of_forget = train(num_steps=1, retain_rows=None, batch_size=4)[0]["mask"]
    assert of_retain.tolist() != of_forget.tolist()


@pytest.mark.parametrize(
    "places", [[range(16)], [range(8), range(8, 16)], [[0, 3, 13], [1, 2], range(4, 13), [14, 15]]]
)
def test_processes_together_have_the_batch_of_one(places):
    parts = [train(places=np.array(here)) for here in places]
    order = np.argsort(np.concatenate(places))
    joined = [
        {name: np.concatenate([p[name] for p in local])[order] for name in local[0]}
        for local in zip(*parts, strict=True)
    ]
    check_equal(joined, train())


@pytest.mark.parametrize(
    ("rows", "count"),
    [({"forget_rows": None}, 0), ({"forget_rows": np.array([], np.int64)}, 0)]
    + [({"retain_rows": None}, 16)],
)
def test_a_missing_half_is_not_loaded(rows, count):
    for batch in train(**rows):
        assert batch["is_forget"].sum() == count and len(batch["index"]) == 16


@pytest.mark.parametrize(
    ("batch_size", "fraction", "count"), [(16, 0.5, 8), (16, 0.26, 4), (10, 0.9, 9), (2, 0.5, 1)]
)
def test_the_forget_fraction_is_exact(batch_size, fraction, count):
    halves = {"retain_rows": RETAIN, "forget_rows": FORGET}
    assert data.forget_count(batch_size, fraction, **halves) == count
    for batch in train(batch_size=batch_size, forget_fraction=fraction):
        assert batch["is_forget"].tolist() == [False] * (batch_size - count) + [True] * count


def test_single_rows_repeat():
    for batch in train(retain_rows=RETAIN[5:6], forget_rows=FORGET[:1], num_steps=2):
        assert set(batch["index"]) == {RETAIN[5], FORGET[0]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"retain_rows": None, "forget_rows": None}, "expected retain rows or forget rows"),
        ({"forget_fraction": 0.01}, r"is 0 forget rows; expected 1\.\.15"),
        ({"forget_fraction": 1.0}, r"is 16 forget rows; expected 1\.\.15"),
        ({"batch_size": 0, "forget_rows": None}, "batch_size: expected at least 1, got 0"),
        ({"seed": -1}, "seed: expected 0"),
        ({"seed": 2**32}, "seed: expected 0"),
        ({"task": {"name": "random_mask", "ratio": 0.5, "patch": 3}}, "image size 8, got 3"),
    ],
)
def test_impossible_batches_are_refused_before_the_first(changes, message):
    with pytest.raises(ValueError, match=message):
        train(**changes)


def test_closing_early_stops_the_threads():
    import threading

    before = threading.active_count()
    batches = data.make_train(
        SOURCE, retain_rows=RETAIN, forget_rows=None, batch_size=4, forget_fraction=0.5,
        task=INPAINT, seed=0, first_step=0, num_steps=10**9,
    )  # fmt: skip
    assert len(list(itertools.islice(batches, 3))) == 3
    assert threading.active_count() > before
    batches.close()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(timeout=5)
    assert threading.active_count() <= before


# Evaluation.

ROWS = np.array([5, 3, 50, 59, 0, 1, 2, 40, 33, 21])


def evaluate(**changes):
    options = {"rows": ROWS, "batch_size": 4, "task": PATCHES, "seed": 7}
    return list(data.make_eval(SOURCE, **{**options, **changes}))


def test_evaluation_is_in_order_and_padded():
    batches = evaluate(is_forget=True)
    assert [len(batch["index"]) for batch in batches] == [4, 4, 4]
    index, valid, flags = (
        np.concatenate([batch[name] for batch in batches])
        for name in ("index", "valid", "is_forget")
    )
    np.testing.assert_array_equal(index[:10], ROWS)
    assert index[10:].tolist() == [-1, -1]
    assert valid.tolist() == flags.tolist() == [True] * 10 + [False] * 2
    images = np.concatenate([batch["image"] for batch in batches])
    np.testing.assert_array_equal(transforms.to_uint8(images[:10]), PIXELS[ROWS])
    assert not any(batch["is_forget"].any() for batch in evaluate())
    assert all(batch["valid"].all() for batch in evaluate(batch_size=5))
    assert evaluate()[0].keys() == train(num_steps=1)[0].keys()
    assert {k: v.dtype for k, v in evaluate()[0].items()} == {
        k: v.dtype for k, v in train(num_steps=1)[0].items()
    }


def test_evaluation_masks_depend_on_seed_and_row_only():
    def masks(batches):
        return {
            int(i): mask.tobytes()
            for batch in batches
            for i, mask in zip(batch["index"], batch["mask"], strict=True)
            if i >= 0
        }

    expected = masks(evaluate())
    assert len(set(expected.values())) == 10
    assert masks(evaluate(rows=np.sort(ROWS), batch_size=6)) == expected
    assert masks(evaluate(seed=8)) != expected


@pytest.mark.parametrize("shards", [2, 4])
def test_evaluating_processes_together_have_the_batches_of_one(shards):
    whole = evaluate()
    parts = [evaluate(places=places) for places in np.arange(4).reshape(shards, -1)]
    assert {len(part) for part in parts} == {len(whole)}
    joined = [
        {name: np.concatenate([p[name] for p in local]) for name in local[0]}
        for local in zip(*parts, strict=True)
    ]
    check_equal(joined, whole)


def test_bad_evaluations():
    with pytest.raises(ValueError, match="got none"):
        evaluate(rows=ROWS[:0])
    with pytest.raises(ValueError, match="0 < hole < 1"):
        evaluate(task={"name": "inpaint", "hole": 2.0})


def test_damage_found_while_training_is_named(tmp_path):
    from PIL import Image

    for i in range(4):
        (tmp_path / "cat").mkdir(exist_ok=True)
        Image.fromarray(PIXELS[:16].reshape(32, 32, 3)).save(tmp_path / "cat" / f"{i}.png")
    source = sources.open_source(
        kind="folder", path=str(tmp_path), image_size=32, splits=("train",), cache=False
    )
    file = tmp_path / "cat" / "2.png"
    file.write_bytes(file.read_bytes()[:1000])  # after all files were checked
    with pytest.raises(ValueError, match=r"cat/2.png: cannot be read"):
        list(data.make_eval(source, np.arange(4), batch_size=2, task=INPAINT, seed=0))


@pytest.mark.long
def test_load_opens_and_splits_what_the_config_says(tmp_path):
    cfg = config.default()
    cfg.data.name = "cifar10_sample"
    cfg.request.kind, cfg.request.classes = "classes", ("cat",)
    source, split = data.load(cfg)
    assert source.name == "cifar10_sample/1.0.0"
    assert len(split.forget) == 250 and len(split.train) == 2500
    # Of 50 unseen cats, the last bit of each one's hash says where it is.
    assert len(split.calibration) == 21 and len(split.audit) == 29

    np.savez(tmp_path / "proxy.npz", image=np.zeros((9, 32, 32, 3)), label=np.arange(9) % 3)
    cfg.retain.kind = "proxy"
    cfg.retain.data.kind, cfg.retain.data.path = "arrays", str(tmp_path / "proxy.npz")
    with_proxy, other = data.load(cfg)
    assert len(with_proxy) == 3009 and other.retain.tolist() == list(range(3000, 3009))
    np.testing.assert_array_equal(other.forget, split.forget)
    assert other.manifest["dataset"] == split.manifest["dataset"]
    assert other.manifest["proxy"]["name"] == with_proxy.proxy == "proxy"
    splits.save(split, tmp_path / "split.json")
    splits.load(tmp_path / "split.json", with_proxy)  # proxies are beside the data set
    cfg.data.train_rows = 2000
    cfg.retain.kind = "complement"
    with pytest.raises(ValueError, match="was made for cifar10_sample"):
        splits.load(tmp_path / "split.json", data.load(cfg)[0])


def folder_config(tmp_path, n=6):
    """Photos of two classes in train/ and test/, and the config of a request for some of them."""
    from PIL import Image

    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(n):
                image = Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8))
                image.save(tmp_path / "photos" / split / name / f"{i}.png")
    cfg = config.default()
    cfg.data.update({"kind": "folder", "path": str(tmp_path / "photos"), "image_size": 8})
    (tmp_path / "list.txt").write_text(f"{tmp_path}/photos/train/ant/1.png\n./train/bee/2.png\n")
    cfg.request.update({"kind": "ids", "file": str(tmp_path / "list.txt")})
    return cfg


def ids(source, rows):
    return {source.ids[row] for row in rows.tolist()}


def test_load_leaves_out_what_was_forgotten_before_and_what_the_folder_remembers(tmp_path):
    cfg = folder_config(tmp_path)
    source, split = data.load(cfg)
    assert ids(source, split.forget) == {"train/ant/1.png", "train/bee/2.png"}
    pixels = data.open_data(cfg)[1].pixels
    made = served.entry(split.manifest["hash"], "first", source, split.forget, pixels)
    (tmp_path / "list.txt").write_text("train/ant/3.png\n")
    of_model = data.load(cfg, [made])[1]
    served.remember(served.place(cfg.data), made)
    for later in (of_model, data.load(cfg)[1], data.load(cfg, [made])[1]):
        assert ids(source, later.forget) == {"train/ant/3.png"} and len(later.served) == 1
        for name in splits.SETS:
            assert not ids(source, getattr(later, name)) & set(made["ids"])
    # A run that has begun goes on with the past that it knew.
    assert not data.load(cfg, [])[1].served
    # Under another name the folder has the same pictures, which must not be learned again.
    (tmp_path / "photos").rename(tmp_path / "others")
    cfg.data.path = str(tmp_path / "others")
    assert ids(*(lambda s, split: (s, split.served[0]))(*data.load(cfg))) == set(made["ids"])


@pytest.mark.long
@pytest.mark.parametrize(
    "wrong",
    ["train_99999", "train_07274;1", "train_07274.png", "7274", "train_0727", "test_07274",
     "test/train_07274", "train"],
)  # fmt: skip
def test_ids_of_cifar_that_are_none_are_refused_and_forget_nobody(tmp_path, wrong):
    """The fault: exit 0, and the last training image was forgotten in place of an unknown one."""
    cfg = config.default()
    cfg.data.name = "cifar10_sample"
    known = next(id for id in data.open_data(cfg)[0].ids if id.startswith("train_07"))
    for line in (
        f"{known}\n{wrong}".replace("train_07274", known),
        wrong.replace("07274", known[6:]),
    ):
        (tmp_path / "list.txt").write_text(line)
        cfg.request.update({"kind": "ids", "file": str(tmp_path / "list.txt")})
        with pytest.raises(
            ValueError, match="request.file: 1 of the . names .*cifar10_sample/1.0.0"
        ):
            data.load(cfg)
    (tmp_path / "list.txt").write_text(f"{known}\n./{known}")
    source, split = data.load(cfg)
    assert ids(source, split.forget) == {known}


def test_load_refuses_copies_unless_it_is_told_what_to_do(tmp_path):
    import shutil

    cfg = folder_config(tmp_path)
    photos = tmp_path / "photos"
    shutil.copy(photos / "train" / "ant" / "1.png", photos / "train" / "bee" / "copy.png")
    (photos / "test" / "ant" / "link.png").symlink_to(photos / "train" / "bee" / "2.png")
    with pytest.raises(ValueError, match="request.copies: 2 images.*\n(.|\n)*bee/copy.png"):
        data.load(cfg)
    cfg.request.copies = "forget"
    source, split = data.load(cfg)
    forgotten = {"train/ant/1.png", "train/bee/2.png", "train/bee/copy.png"}
    assert ids(source, split.forget) == forgotten
    assert "test/ant/link.png" not in ids(source, np.union1d(split.calibration, split.audit))
    cfg.request.copies = "keep"
    assert len(data.load(cfg)[1].forget) == 2


def test_training_may_have_another_task_and_evaluation_keeps_its_own():
    check_equal(train(task={**PATCHES, "train": "inpaint", "hole": 0.5}), train(task=INPAINT))
    check_equal(train(task={**PATCHES, "train": ""}), train())
    rows = np.arange(5)
    found, plain = (
        list(data.make_eval(SOURCE, rows, batch_size=5, task=task, seed=1))
        for task in ({**PATCHES, "train": "inpaint", "hole": 0.5}, PATCHES)
    )
    check_equal(found, plain)
