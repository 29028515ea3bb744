"""Kernel distance against its definition, and what blocks estimate."""

import itertools

import jax
import numpy as np
import pytest

from unlearn_jax.evaluate.metrics import kid


def by_definition(x, y, paired=False):
    def k(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    m = len(x)
    off = [(i, j) for i, j in itertools.product(range(m), repeat=2) if i != j]
    within = sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in off) / (m * (m - 1))
    if paired:
        return within - 2 * sum(k(x[i], y[j]) for i, j in off) / (m * (m - 1))
    return within - 2 * sum(k(a, b) for a in x for b in y) / m**2


def draw(n, d=6, seed=0, shift=0.0):
    return np.float32(np.random.default_rng(seed).standard_normal((n, d)) + shift)


@pytest.mark.parametrize("paired", [False, True])
def test_is_the_definition(paired):
    x, y = draw(9), draw(9, seed=1, shift=0.5)
    found = kid.mmd2(x, y, paired=paired)
    assert found == pytest.approx(by_definition(x, y, paired), rel=1e-6)
    assert kid.mmd2(y, x, paired=paired) == pytest.approx(found, rel=1e-12)


def test_subsets_are_what_torch_fidelity_averages():
    # kid_features_to_metric and clean-fid's kernel_distance: choice without replacement.
    x, y = draw(30), draw(40, seed=1, shift=0.3)
    rng = np.random.RandomState(2020)
    rows = [(rng.choice(30, 10, replace=False), rng.choice(40, 10, replace=False)) for _ in "abc"]
    found = kid.subsets(x, y, *(np.stack(side) for side in zip(*rows, strict=True)))
    expected = [by_definition(x[i], y[j]) for i, j in rows]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_is_unbiased_where_the_other_estimate_is_not():
    # The null: independent draws of one distribution. The mean over trials is 0 within 4 errors.
    values = [kid.mmd2(draw(8, seed=i), draw(8, seed=1000 + i)) for i in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20
    # The null of pairs: every completion is its original.
    same = [kid.mmd2(draw(8, seed=i), draw(8, seed=i)) for i in range(400)]
    assert np.mean(same) < -10 * np.std(same) / 20  # so pairs must be left out
    assert kid.mmd2(draw(8), draw(8), paired=True) == pytest.approx(0, abs=1e-12)
    apart = [kid.mmd2(draw(8, seed=i), draw(8, seed=1000 + i, shift=1.0)) for i in range(100)]
    assert np.mean(apart) > 10 * np.std(apart) / 10


def stream(x, y, block_size, batch_size, blocks=None):
    blocks = kid.empty(x.shape[1], block_size) if blocks is None else blocks
    for first in range(0, len(x), batch_size):
        a, b = (z[first : first + batch_size] for z in (x, y))
        valid = np.arange(batch_size) < len(a)
        pad = np.full((batch_size - len(a), x.shape[1]), np.nan, np.float32)
        blocks = kid.update(blocks, np.concatenate([a, pad]), np.concatenate([b, pad]), valid)
    return blocks


@pytest.mark.parametrize("batch_size", [1, 4, 7, 23, 40])
def test_blocks_do_not_depend_on_batches(batch_size):
    x, y = draw(23), draw(23, seed=1, shift=0.4)
    found = kid.estimate(stream(x, y, 5, batch_size))
    values = [kid.mmd2(x[i : i + 5], y[i : i + 5], paired=True) for i in (0, 5, 10, 15)]
    assert found["mean"] == pytest.approx(np.mean(values), rel=1e-12)
    assert found["std"] == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert found["standard_error"] == pytest.approx(found["std"] / 2, rel=1e-12)
    assert (found["blocks"], found["n"]) == (4, 20)


def test_memory_does_not_grow():
    long, short = (stream(draw(n), draw(n, seed=1), 5, 8) for n in (400, 10))
    assert [a.nbytes for a in long[:3]] == [a.nbytes for a in short[:3]]
    assert long.values.nbytes == 8 * 80


def test_parts_merge():
    x, y = draw(23), draw(23, seed=1)
    merged = kid.merge(stream(x[:12], y[:12], 5, 4), stream(x[12:], y[12:], 5, 4))
    assert int(merged.filled) == 3 and len(merged.values) == 4  # 2 + 1 left over, 2 + 2 blocks
    np.testing.assert_array_equal(
        kid.merge(kid.empty(6, 5), stream(x, y, 5, 4)).values, stream(x, y, 5, 4).values
    )


def test_blocks_of_a_sorted_stream_are_not_blocks_of_a_random_one():
    # Two classes: matched class by class, the sets are equal, which a sorted stream would hide.
    classes = np.repeat([0.0, 3.0], 40)[:, None]
    x, y = np.float32(draw(80) + classes), np.float32(draw(80, seed=1) + classes[::-1])
    mixed = kid.order(80, jax.random.key(0))
    assert sorted(mixed) == list(range(80)) and not np.array_equal(mixed, np.arange(80))
    np.testing.assert_array_equal(mixed, kid.order(80, jax.random.key(0)))
    at_random = kid.estimate(stream(x[mixed], y[mixed], 20, 8))
    as_sorted = kid.estimate(stream(x, y, 20, 8))
    assert abs(at_random["mean"]) < 0.1 * as_sorted["mean"]


def test_what_cannot_be_estimated_is_refused():
    with pytest.raises(ValueError, match=r"expected 5 images or more \(one block\), got 3"):
        kid.estimate(stream(draw(3), draw(3), 5, 4))
    with pytest.raises(ValueError, match="blocks of 2 or more, got 1"):
        kid.empty(3, 1)
    with pytest.raises(ValueError, match="equally many"):
        kid.mmd2(draw(4), draw(5))
    with pytest.raises(ValueError, match="finite"):
        kid.mmd2(draw(4) * np.nan, draw(4))
    one = kid.estimate(stream(draw(5), draw(5, seed=1), 5, 5))
    assert one["blocks"] == 1 and one["std"] is None and one["standard_error"] is None
