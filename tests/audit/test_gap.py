"""Gap, floor, excess, power and Holm: closed forms, brute force, and leaks of known size."""

import math

import numpy as np
import pytest
from scipy import stats

from unlearn_jax.audit import gap
from unlearn_jax.audit.gap import Models
from unlearn_jax.audit.witness import Scores, auroc, mean_difference

SETTINGS = {"confidence": 0.95, "resamples": 400, "seed": 0}


def models(rng, leak, n=300, original=1.0, spread=0.3, training=0.0):
    """Scores of four models: difficulty is common to all, `leak` is added on forget images."""
    hard = rng.normal(0, 1, (2, n))

    def one(known):
        own = -hard + rng.normal(0, spread, (2, n))
        return Scores(own[0] + known + rng.normal(0, training) * bool(training), own[1])

    return Models(one(original), one(leak * original), one(0.0), [one(0.0)])


def test_gap_floor_and_excess_by_hand():
    def one(value):
        return Scores(np.full(40, value), np.zeros(40))

    seeds = [Models(one(10.0), one(4.0), one(0.0), [one(1.0)])]
    found = gap.compare(mean_difference, seeds, **SETTINGS)
    assert (found["gap"]["value"], found["floor"]) == (0.4, 0.1)
    assert found["excess"]["value"] == pytest.approx(0.3) and found["has_power"]
    over = [Models(one(10.0), one(-4.0), one(0.0), [one(1.0)])]  # too much is like too little
    assert gap.compare(mean_difference, over, **SETTINGS)["excess"]["value"] == pytest.approx(0.3)
    # two seeds: means first, and the floor of a mean is smaller
    two = [*seeds, Models(one(10.0), one(-4.0), one(0.0), [one(-1.0)])]
    found = gap.compare(mean_difference, two, **SETTINGS)
    assert found["gap"]["value"] == 0 and found["floor"] == pytest.approx(0.1 / math.sqrt(2))
    assert found["gap"]["ci_high"] == pytest.approx(0.4)  # a resample of one seed twice


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"further": []}, "no second retrained model"),
        ({"original": 0.0}, "do not differ"),
        ({"n": 29}, "30 of each side"),
        ({"training": 1.0}, "retrained models differ by"),
    ],
)
def test_a_witness_without_power_says_why(change, reason):
    further = change.pop("further", None)
    made = models(np.random.default_rng(4), 0.3, **change)
    made = made if further is None else made._replace(further=further)
    found = gap.compare(mean_difference, [made], **SETTINGS)
    assert not found["has_power"] and reason in found["reason"]


def test_the_interval_of_too_much_forgetting_is_above_0():
    found = gap.compare(mean_difference, [models(np.random.default_rng(5), -0.6)], **SETTINGS)
    assert 0.45 < found["gap"]["ci_low"] < found["gap"]["value"] < found["gap"]["ci_high"] < 0.8


def compare(statistic, seeds, **settings):
    """Compare, and test with what retrained models of this witness alone say."""
    found = gap.compare(statistic, seeds, **SETTINGS | settings)
    return found | gap.test(
        found, gap.between_models(*np.array([[found["apart"]], [found["noise"]]]))
    )


def test_the_interval_covers_and_the_error_is_that_of_repetitions():
    rng = np.random.default_rng(0)
    found = [compare(mean_difference, [models(rng, 0.3)]) for _ in range(200)]
    values = np.array([f["gap"]["value"] for f in found])
    errors = np.array([f["error"] for f in found])
    drawn = np.array([f["draws"][1:].std(ddof=1) for f in found])
    assert drawn.mean() == pytest.approx(values.std(), rel=0.2)
    floors = np.array(
        [f["floor"] for f in found]
    )  # one pair, as apart as its images are on average
    noise = np.array([f["noise"] for f in found])
    assert (floors**2).mean() == pytest.approx(noise.mean(), rel=0.2)
    excess = np.maximum(floors**2 - noise, 0)
    np.testing.assert_allclose(errors, np.sqrt(np.maximum(drawn**2 + excess, floors**2)), rtol=1e-5)
    covered = sum(f["gap"]["ci_low"] <= 0.3 <= f["gap"]["ci_high"] for f in found)
    assert stats.binomtest(covered, 200, 0.95).pvalue > 1e-3


@pytest.mark.long
@pytest.mark.parametrize("statistic", [mean_difference, auroc])
def test_a_leak_is_found_with_the_power_that_is_stated_and_no_leak_is_not(statistic):
    """A quarter of the original's memory; by exact binomial bounds over repetitions."""
    rng, n = np.random.default_rng(1), 200

    def share(leak):
        found = [compare(statistic, [models(rng, leak)]) for _ in range(n)]
        return found, sum(f["has_power"] and f["p_value"] <= gap.LEVEL for f in found)

    found, hits = share(0.25)
    stated = np.mean([gap.power(0.0, f["error"], 1) for f in found])  # a gap of .25
    if statistic is mean_difference:
        assert stats.binomtest(hits, n, 0.9, alternative="less").pvalue > 0.05 and hits / n > 0.9
        assert hits / n == pytest.approx(stated, abs=0.1)
    _, hits = share(0.0)
    assert stats.binomtest(hits, n, gap.LEVEL, alternative="greater").pvalue > 0.01


@pytest.mark.long
@pytest.mark.parametrize("training", [(0.08,) * 8, (0.08,) * 2 + (0.02,) * 6])
def test_the_level_holds_where_retrained_models_differ(training):
    """By a standard deviation of so much of the way to the original, in each of eight witnesses."""
    rng, n, wrong = np.random.default_rng(6), 200, 0
    for _ in range(n):
        found = []
        for sd in training:
            made = models(rng, 0.0, n=200, spread=0.2, training=sd)
            found.append(gap.compare(mean_difference, [made], **SETTINGS | {"resamples": 60}))
        able = [f for f in found if f["has_power"]]
        apart, noise = np.array([(f["apart"], f["noise"]) for f in able]).reshape(-1, 2).T
        between = gap.between_models(apart, noise)
        ps = {k: gap.test(f, between)["p_value"] for k, f in enumerate(able)}
        wrong += min(gap.holm(ps).values(), default=1.0) <= gap.LEVEL
    assert stats.binomtest(wrong, n, gap.LEVEL, alternative="greater").pvalue > 0.05


def test_what_models_differ_by_is_that_of_normal_differences():
    """The mean less that of images where these are alike; otherwise by draws."""
    alike = np.array([0.01, 0.01])
    assert gap.between_models(np.array([0.04, 0.01]), alike) == pytest.approx(0.015)
    assert gap.between_models(alike / 5, alike) == gap.between_models(alike[:0], alike[:0]) == 0
    rng = np.random.default_rng(0)
    images = rng.uniform(0.01, 0.2, 4000) ** 2
    apart = rng.normal(0, np.sqrt(images + 0.0064)) ** 2
    assert gap.between_models(apart, images) == pytest.approx(0.0064, rel=0.1)


def test_the_error_is_the_larger_of_the_witness_s_own_and_that_of_all():
    def error(images, apart, between):
        found = {"gap": {"value": 0.3}, "images": images, "apart": apart}
        return gap.test(found, between)

    assert error(0.03, 0.0, 0.0016)["error"] == pytest.approx(0.05)
    assert error(0.03, 0.01, 0.0016)["error"] == pytest.approx(0.1)
    assert error(0.03, 0.01, 0.0)["p_value"] == pytest.approx(stats.norm.sf(2))
    assert error(0.03, math.nan, 0.0)["p_value"] == 1


def test_power_in_closed_form():
    error = 0.06
    expected = stats.norm.cdf(0.15 / error - stats.norm.ppf(1 - 0.05 / 4))
    assert gap.power(0.0, error, 4) == pytest.approx(expected)
    assert gap.power(0.2, error, 4) > gap.power(0.0, error, 4)  # an excess is above the floor
    assert gap.power(math.nan, error, 1) == 0 and gap.power(0.0, math.nan, 1) == 0


def test_holm_by_brute_force():
    rng = np.random.default_rng(2)
    for _ in range(50):
        p = dict(enumerate(rng.uniform(0, 0.1, rng.integers(1, 7)).tolist()))
        adjusted = gap.holm(p)
        rejected, order = set(), sorted(p, key=p.get)
        for k, name in enumerate(order):  # step down until one is too large
            if p[name] > 0.05 / (len(p) - k):
                break
            rejected.add(name)
        assert {name for name, q in adjusted.items() if q <= 0.05} == rejected
    assert gap.holm({}) == {}
