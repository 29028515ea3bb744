"""Batches as a function of (seed, step): permutations, resuming, hosts, flags, masks, padding."""

import itertools

import numpy as np
import pytest

from unlearn_jax import config, data
from unlearn_jax.data import sources, splits, transforms

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
    file = tmp_path / "cat" / "2.png"
    file.write_bytes(file.read_bytes()[:1000])
    source = sources.open_source(
        kind="folder", path=str(tmp_path), image_size=32, splits=("train",), cache=False
    )
    with pytest.raises(ValueError, match=r"cat/2.png: cannot be read"):
        list(data.make_eval(source, np.arange(4), batch_size=2, task=INPAINT, seed=0))


def test_load_opens_and_splits_what_the_config_says(tmp_path):
    cfg = config.default()
    cfg.data.name = "cifar10_sample"
    cfg.request.kind, cfg.request.classes = "classes", ("cat",)
    source, split = data.load(cfg)
    assert source.name == "cifar10_sample/1.0.0"
    assert len(split.forget) == 250 and len(split.holdout) == 50 and len(split.train) == 2500

    np.savez(tmp_path / "proxy.npz", image=np.zeros((9, 32, 32, 3)), label=np.arange(9) % 3)
    cfg.retain.kind = "proxy"
    cfg.retain.data.kind, cfg.retain.data.path = "arrays", str(tmp_path / "proxy.npz")
    with_proxy, other = data.load(cfg)
    assert len(with_proxy) == 3009 and other.retain.tolist() == list(range(3000, 3009))
    np.testing.assert_array_equal(other.forget, split.forget)
    splits.save(split, tmp_path / "split.json")
    with pytest.raises(ValueError, match="was made for cifar10_sample"):
        splits.load(tmp_path / "split.json", with_proxy)


def test_training_may_have_another_task_and_evaluation_keeps_its_own():
    check_equal(train(task={**PATCHES, "train": "inpaint", "hole": 0.5}), train(task=INPAINT))
    check_equal(train(task={**PATCHES, "train": ""}), train())
    rows = np.arange(5)
    found, plain = (
        list(data.make_eval(SOURCE, rows, batch_size=5, task=task, seed=1))
        for task in ({**PATCHES, "train": "inpaint", "hole": 0.5}, PATCHES)
    )
    check_equal(found, plain)
