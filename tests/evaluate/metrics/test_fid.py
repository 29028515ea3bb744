"""Fréchet distance: closed forms, scipy's matrix root, and moments gathered in batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg

from unlearn_jax import sharding
from unlearn_jax.evaluate.metrics import fid


def moments(x):
    return fid.Moments(np.int64(len(x)), x.mean(0), np.cov(x.T) * (len(x) - 1))


def gathered(x, batch_size=7, state=None):
    state = fid.empty(x.shape[1]) if state is None else state
    for first in range(0, len(x), batch_size):
        rows = x[first : first + batch_size]
        valid = np.arange(batch_size) < len(rows)
        padded = np.concatenate([rows, np.full((batch_size - len(rows), x.shape[1]), np.nan)])
        state = fid.update(state, np.float32(padded), valid)
    return state


def by_scipy(x, y):
    """The formula as pytorch-fid and clean-fid have it."""
    (m, s), (n, t) = ((z.mean(0), np.cov(z.T)) for z in (x, y))
    root = linalg.sqrtm(s @ t).real
    return np.square(m - n).sum() + np.trace(s) + np.trace(t) - 2 * np.trace(root)


def features(n, d, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return rng.gamma(2.0, scale, (n, d)) @ rng.uniform(0, 1, (d, d)) / d


def test_gaussians_have_the_closed_form():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.1, 2, 6), rng.uniform(0.1, 2, 6)
    basis = linalg.qr(rng.standard_normal((6, 6)))[0]  # covariances that commute
    shift = rng.standard_normal(6)
    n = 50
    x = fid.Moments(np.int64(n), np.zeros(6), (n - 1) * basis * a**2 @ basis.T)
    y = fid.Moments(np.int64(n), shift, (n - 1) * basis * b**2 @ basis.T)
    expected = np.square(shift).sum() + np.square(a - b).sum()
    assert fid.frechet_distance(x, y) == pytest.approx(expected, rel=1e-12)
    one = fid.Moments(np.int64(n), np.zeros(1), np.array([[4.0 * (n - 1)]]))
    two = fid.Moments(np.int64(n), np.array([3.0]), np.array([[1.0 * (n - 1)]]))
    assert fid.frechet_distance(one, two) == pytest.approx(9 + 1, rel=1e-12)


@pytest.mark.parametrize("n", [200, 20])  # 20 images of 32 features: singular covariances
def test_is_what_scipy_finds(n):
    x, y = features(n, 32, 1), features(n + 3, 32, 2, 1.1)
    found = fid.frechet_distance(moments(x), moments(y))
    assert found == pytest.approx(by_scipy(x, y), rel=1e-6)
    assert found == pytest.approx(fid.frechet_distance(moments(y), moments(x)), rel=1e-10)


@pytest.mark.parametrize("n", [200, 20, 2])
def test_a_set_is_at_no_distance_from_itself(n):
    x = features(n, 32, 1)
    scale = np.trace(np.cov(x.T))
    assert 0 <= fid.frechet_distance(moments(x), moments(x)) < 1e-10 * scale
    again = np.random.default_rng(0).permutation(x)
    assert fid.frechet_distance(moments(x), gathered(again)) < 1e-6 * scale
    constant = fid.Moments(np.int64(5), np.ones(3), np.zeros((3, 3)))
    assert fid.frechet_distance(constant, constant) == 0


def test_batches_add_up_and_padded_rows_count_nothing():
    x = np.float64(np.float32(features(50, 12, 3)))
    found, expected = gathered(x), moments(x)
    assert int(found.n) == 50
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-13)
    np.testing.assert_allclose(found.comoment, expected.comoment, rtol=1e-9, atol=1e-12)
    assert np.asarray(found.comoment).dtype == np.float64
    merged = fid.merge(gathered(x[:30]), gathered(x[30:]))
    np.testing.assert_allclose(merged.comoment, expected.comoment, rtol=1e-9, atol=1e-12)
    none = fid.merge(fid.empty(12), fid.empty(12))
    assert int(none.n) == 0 and not none.comoment.any()
    np.testing.assert_allclose(fid.covariance(found), np.cov(x.T), rtol=1e-9, atol=1e-12)


def test_a_mean_far_from_zero_costs_no_digits():
    rng = np.random.default_rng(0)
    x = np.float32(1e4 + rng.standard_normal((64, 4)))
    expected = np.cov(np.float64(x).T)
    np.testing.assert_allclose(fid.covariance(gathered(x)), expected, rtol=1e-9)
    naive = (x.T @ x - len(x) * np.outer(x.mean(0), x.mean(0))) / (len(x) - 1)
    assert np.abs(naive - expected).max() > 0.1  # so that this test could fail


def test_one_device_is_as_good_as_eight():
    x = np.float32(features(64, 12, 4))
    mesh, valid = sharding.make_mesh(), np.arange(64) < 61
    assert mesh.size == 8
    split = jax.device_put(x, sharding.batch_sharding(mesh))
    on_eight = fid.update(fid.update(fid.empty(12), split, valid), split, valid)
    on_one = fid.update(fid.update(fid.empty(12), x, valid), x, valid)
    np.testing.assert_allclose(on_eight.comoment, on_one.comoment, rtol=1e-12)
    assert on_eight.comoment.sharding.is_fully_replicated
    after = fid.update(on_eight, x, valid)  # from the mesh to one device
    assert int(after.n) == 3 * 61


def test_backends_without_float64_lose_little(monkeypatch):
    x = np.float32(100 + features(64, 12, 5))
    exact = fid.covariance(gathered(x))
    monkeypatch.setattr(fid, "FLOAT32_BACKENDS", ("cpu",))
    found = gathered(x)
    assert isinstance(found.mean, np.ndarray) and found.mean.dtype == np.float64
    error = np.abs(fid.covariance(found) - exact).max() / np.abs(exact).max()
    assert 0 < error < 3e-6


def test_the_solvers_of_a_device_give_the_same(monkeypatch):
    pairs = [(features(n, 24, 1), 0.7 * features(60, 24, 2) + 0.3) for n in (200, 12)]
    host = [fid.frechet_distance(moments(x), moments(y)) for x, y in pairs]
    monkeypatch.setattr(fid, "FLOAT64_SOLVERS", ("cpu",))
    device = [fid.frechet_distance(moments(x), moments(y)) for x, y in pairs]
    np.testing.assert_allclose(device, host, rtol=1e-9)
    x, _ = pairs[1]  # singular
    assert fid.frechet_distance(moments(x), moments(x)) < 1e-10 * np.trace(np.cov(x.T))


def test_float64_does_not_leak():
    fid.update(fid.empty(3), np.ones((2, 3), np.float32), np.ones(2, bool))
    assert jnp.ones(2).dtype == np.float32


def test_moments_survive_a_file(tmp_path):
    found = gathered(features(20, 5, 6))
    fid.save(tmp_path / "m.npz", found)
    loaded = fid.load(tmp_path / "m.npz")
    for a, b in zip(found, loaded, strict=True):
        np.testing.assert_array_equal(a, b)
    more = features(9, 5, 7)
    np.testing.assert_array_equal(
        gathered(more, state=loaded).comoment, gathered(more, state=found).comoment
    )
    with pytest.raises(FileNotFoundError, match="found none"):
        fid.load(tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (fid.empty(3), fid.empty(3), "2 or more images in each set, got 0 in the first"),
        (moments(features(9, 3, 0)), fid.empty(3), "got 0 in the second"),
        (moments(features(9, 3, 0)), moments(features(9, 4, 0)), "one length, got 3 and 4"),
        (
            gathered(np.full((7, 3), np.inf)),
            moments(features(9, 3, 0)),
            "first set's features are not finite",
        ),
    ],
)
def test_what_has_no_distance_is_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        fid.frechet_distance(a, b)
    with pytest.raises(ValueError, match="needs 2 or more images, got 0"):
        fid.covariance(fid.empty(3))
