import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from unlearn_jax.audit import statistics

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())["vectors"]


@pytest.mark.parametrize("vector", VECTORS, ids=[v["id"] for v in VECTORS])
def test_values_of_high_precision_arithmetic(vector):
    found = getattr(statistics, vector["function"])(**vector["inputs"])
    assert found == pytest.approx(float(vector["value"]), rel=1e-6, abs=0)


def test_clopper_pearson_inverts_the_binomial_test():
    for k, n in [(1, 30), (17, 40), (40, 40)]:
        low, high = statistics.clopper_pearson_interval(k, n, 0.9)
        assert stats.binom.sf(k - 1, n, low) == pytest.approx(0.05)
        assert high == 1 if k == n else stats.binom.cdf(k, n, high) == pytest.approx(0.05)


def test_conformal_p_values_by_hand():
    found = statistics.conformal_p_values(np.array([0.5, 2.0, 9.0]), np.array([3.0, 1.0, 2.0]))
    np.testing.assert_allclose(found, [1.0, 3 / 4, 1 / 4])


def test_auroc_counts_pairs_and_halves_ties():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 40).astype(float), rng.integers(0, 5, 30).astype(float)
    pairs = (x[:, None] > y).mean() + 0.5 * (x[:, None] == y).mean()
    assert statistics.auroc(x, y) == pytest.approx(pairs)
    assert statistics.auroc(y, x) == pytest.approx(1 - pairs)
    assert statistics.auroc(np.array([0.0]), np.array([1.0])) == 0  # no convex hull


def test_delong_has_the_standard_error_of_its_components():
    """Structural components as in the publication, pair by pair, with ties."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.7, 1, 23).round(1), rng.normal(size=31).round(1)
    kernel = (x[:, None] > y) + 0.5 * (x[:, None] == y)
    expected = kernel.mean(1).var(ddof=1) / 23 + kernel.mean(0).var(ddof=1) / 31
    area, error = statistics.delong(x, y)
    assert (area, error) == pytest.approx((kernel.mean(), np.sqrt(expected)))


def test_delong_without_a_difference_has_the_standard_error_of_the_null():
    rng = np.random.default_rng(0)
    errors = [statistics.delong(rng.normal(size=400), rng.normal(size=900))[1] for _ in range(20)]
    assert np.mean(errors) == pytest.approx(np.sqrt((1 / 400 + 1 / 900) / 12), rel=0.01)


def test_auroc_interval_covers():
    rng = np.random.default_rng(0)
    truth = stats.norm.cdf(1 / np.sqrt(2))
    hits = 0
    for _ in range(500):
        low, high = statistics.auroc_interval(rng.normal(1, 1, 80), rng.normal(size=120), 0.9)
        hits += low <= truth <= high
    assert 0.86 <= hits / 500 <= 0.94


def test_auroc_interval_agrees_with_the_bootstrap():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.5, 1, 150), rng.normal(size=150)

    def statistic(x, y, axis=-1):
        return (x[..., :, None] > y[..., None, :]).mean((-2, -1))

    found = stats.bootstrap(
        (x, y), statistic, n_resamples=1000, method="percentile", batch=100, rng=rng
    ).confidence_interval
    np.testing.assert_allclose(statistics.auroc_interval(x, y, 0.95), found, atol=0.015)


def test_the_difference_of_two_aurocs_is_paired():
    rng = np.random.default_rng(4)
    hard = rng.normal(size=300), rng.normal(size=500)  # what both attacks find hard
    first, second = (
        tuple(h + 0.3 * rng.normal(size=len(h)) + shift * (k == 0) for k, h in enumerate(hard))
        for shift in (0.5, 0.2)
    )
    found = statistics.auroc_difference(first, second, 0.95)
    aurocs = [stats.mannwhitneyu(*pair).statistic / 300 / 500 for pair in (first, second)]
    assert found["value"] == pytest.approx(aurocs[0] - aurocs[1]) and found["n"] == 300
    draws = []
    for _ in range(1000):
        i, j = rng.integers(300, size=300), rng.integers(500, size=500)
        draws.append(np.subtract(*(statistics.auroc(x[i], y[j]) for x, y in (first, second))))
    expected = np.quantile(draws, (0.025, 0.975))
    np.testing.assert_allclose([found["ci_low"], found["ci_high"]], expected, atol=0.01)
    unpaired = sum(statistics.delong(*pair)[1] ** 2 for pair in (first, second)) ** 0.5
    assert found["ci_high"] - found["value"] < 1.96 * unpaired / 2
    same = statistics.auroc_difference(first, first, 0.95)
    assert same["value"] == same["ci_low"] == same["ci_high"] == 0
    with pytest.raises(ValueError, match=r"same members and non-members.*\[300, 500\]"):
        statistics.auroc_difference(first, (second[0], second[1][:9]), 0.95)


def test_auroc_interval_of_separated_scores_is_not_a_point():
    low, high = statistics.auroc_interval(np.arange(10.0, 20), np.arange(8.0), 0.9)
    assert (low, high) == pytest.approx((0.05 ** (1 / 8), 1))
    low, high = statistics.auroc_interval(np.arange(8.0), np.arange(10.0, 20), 0.9)
    assert (low, high) == pytest.approx((0, 1 - 0.05 ** (1 / 8)))


def test_tpr_at_fpr_never_exceeds_the_fpr_with_ties():
    nonmembers = np.array([0.0] * 90 + [1.0] * 8 + [2.0] * 2)
    members = np.array([1.0, 1.5, 2.0, 3.0])
    # 2 of 100 above 1, so 1 % needs the threshold 2; at 2 % it is 1.
    assert statistics.fpr_threshold(nonmembers, 0.01) == 2
    assert statistics.tpr_at_fpr(members, nonmembers, 0.01) == 0.25
    assert statistics.tpr_at_fpr(members, nonmembers, 0.02) == 0.75


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statistics.clopper_pearson_lower(5, 4, 0.05), "got 5 of 4"),
        (lambda: statistics.clopper_pearson_upper(0, 0, 0.05), "at least one trial"),
        (lambda: statistics.clopper_pearson_lower(1, 4, 5.0), "significance: .* got 5.0"),
        (lambda: statistics.auroc(np.array([np.nan, 1.0]), np.ones(3)), "members: .* 1 NaN"),
        (lambda: statistics.auroc(np.ones(3), np.ones(0)), "nonmembers: .* got 0"),
        (lambda: statistics.delong(np.ones(1), np.ones(9)), "at least 2"),
        (lambda: statistics.fpr_threshold(np.ones(3), 0.0), "fpr"),
    ],
)
def test_impossible_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
