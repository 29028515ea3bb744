"""Inception Score against its definition; splits and their orders."""

import jax
import numpy as np
import pytest

from unlearn_jax.evaluate.metrics import inception_score


def by_definition(logits, splits):
    """The original code's loop, on consecutive blocks of n // splits."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    scores, size = [], len(p) // splits
    for k in range(splits):
        part = p[k * size : (k + 1) * size]
        kl = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
        scores.append(np.exp(kl.sum(1).mean()))
    return np.mean(scores), np.std(scores)


def gather(logits, split, splits, order=None, batch_size=8):
    sums = inception_score.empty(logits.shape[1], splits)
    order = np.arange(len(logits)) if order is None else order
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        valid = np.arange(batch_size) < len(rows)
        rows = np.pad(rows, (0, batch_size - len(rows)))
        padded = np.where(valid[:, None], logits[rows], np.nan)
        sums = inception_score.update(sums, padded, split[rows], valid)
    return sums


@pytest.mark.parametrize("n", [60, 67])  # the last 7 belong to no split
def test_is_the_definition(n):
    logits = 3 * np.random.default_rng(0).standard_normal((n, 12))
    split = inception_score.assignment(n, 10)
    found = inception_score.score(gather(logits, split, 10))
    mean, std = by_definition(logits, 10)
    assert (found["mean"], found["std"]) == pytest.approx((mean, std), rel=1e-12)
    assert found["n"] == 60
    backwards = gather(logits, split, 10, order=np.arange(n)[::-1])
    assert inception_score.score(backwards)["mean"] == pytest.approx(mean, rel=1e-12)


def test_null_and_best_value():
    split = inception_score.assignment(40, 4)
    uniform = inception_score.score(gather(np.zeros((40, 5)), split, 4))
    assert uniform["mean"] == pytest.approx(1, rel=1e-12) and uniform["std"] < 1e-12
    sure = np.where(np.eye(5)[np.arange(40) % 5] == 1, 0.0, -2000.0)
    assert inception_score.score(gather(sure, split, 4))["mean"] == pytest.approx(5, rel=1e-12)


def test_class_grouped_splits_bound_the_score():
    labels = np.repeat(np.arange(20), 10)  # each of 10 splits holds 2 of 20 classes
    sure = np.where(np.eye(20)[labels] == 1, 0.0, -200.0)
    grouped = inception_score.assignment(200, 10)
    assert inception_score.score(gather(sure, grouped, 10))["mean"] == pytest.approx(2)
    key = jax.random.key(0)
    mixed = inception_score.assignment(200, 10, order="shuffled", key=key)
    np.testing.assert_array_equal(np.bincount(mixed), np.full(10, 20))
    np.testing.assert_array_equal(
        mixed, inception_score.assignment(200, 10, order="shuffled", key=key)
    )
    assert inception_score.score(gather(sure, mixed, 10))["mean"] > 9


def test_assignment_is_of_consecutive_blocks():
    found = inception_score.assignment(23, 10).tolist()
    assert found == [i // 2 for i in range(20)] + [-1] * 3
    key = jax.random.key(3)
    shuffled = inception_score.assignment(23, 10, order="shuffled", key=key)
    assert sorted(shuffled) == sorted(found) and shuffled.tolist() != found


def test_parts_merge():
    logits = np.random.default_rng(0).standard_normal((30, 4))
    split = inception_score.assignment(30, 3)
    whole = gather(logits, split, 3)
    parts = [gather(logits, split, 3, order=rows) for rows in np.split(np.arange(30), [11])]
    for a, b in zip(whole, inception_score.merge(*parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="expected 1 to 9 splits of 9 images, got 10"):
        inception_score.assignment(9)
    with pytest.raises(ValueError, match="is_split_order: expected one of .* got 'random'"):
        inception_score.assignment(20, order="random")
    with pytest.raises(ValueError, match="needs a key"):
        inception_score.assignment(20, order="shuffled")
    with pytest.raises(ValueError, match=r"in all splits, got \[0, 0\]"):
        inception_score.score(inception_score.empty(3, 2))
    split = inception_score.assignment(8, 2)
    with pytest.raises(ValueError, match="not finite"):
        inception_score.score(gather(np.full((8, 3), np.nan), split, 2))
