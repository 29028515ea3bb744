import math

import numpy as np
import pytest
from scipy import stats

from unlearn_jax.audit import statistics
from unlearn_jax.certify import bounds, lower_bound

DELTA = 1e-5


def gaussian_worlds(mu, n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(mu / 2, 1, n), rng.normal(-mu / 2, 1, n)


def test_two_worlds_find_a_difference_and_stay_below_the_true_epsilon():
    """Theory's expected bounds at mu = 2, N = 1000 per world: 8.8 by GDP, 3.2 without."""
    truth = bounds.gaussian_epsilon(2.0, DELTA)
    found = lower_bound.two_worlds(*gaussian_worlds(2.0, 2000), delta=DELTA, significance=0.05)
    assert 7.5 < found["epsilon_gdp"] < truth and 2.5 < found["epsilon"] < truth
    assert found["n"] == [2000, 2000]
    mirrored = lower_bound.two_worlds(*gaussian_worlds(-2.0, 2000), delta=DELTA, significance=0.05)
    assert mirrored["epsilon_gdp"] == pytest.approx(found["epsilon_gdp"], rel=0.3)


@pytest.mark.long
@pytest.mark.parametrize("mu", [0.0, 1.0])
def test_the_lower_bound_is_wrong_no_more_often_than_its_significance(mu):
    """Also where nothing is different, and although threshold and direction were chosen."""
    truth = bounds.gaussian_epsilon(mu, DELTA) if mu else 0.0
    wrong = np.zeros(2)
    for seed in range(300):
        found = lower_bound.two_worlds(
            *gaussian_worlds(mu, 100, seed), delta=DELTA, significance=0.2, seed=seed
        )
        wrong += [found["epsilon"] > truth + 1e-9, found["epsilon_gdp"] > truth + 1e-9]
    assert (wrong <= stats.binom.isf(1e-4, 300, 0.2)).all(), wrong


def test_the_bounds_are_those_of_the_counts():
    first, second = gaussian_worlds(1.5, 400, seed=3)
    thresholds = np.array([-0.4, 0.0, 2.0])
    for swapped in (False, True):
        hits = lower_bound._hits([first, second], thresholds, swapped)
        for k, t in enumerate(thresholds):
            positive, negative = (second <= t, first <= t) if swapped else (first > t, second > t)
            counts = [int(positive.sum()), 400, int(negative.sum()), 400]
            assert [int(np.broadcast_to(hit, 3)[k]) for hit in hits] == counts
            found = lower_bound.lower_bounds(
                {"epsilon": counts, "mu": counts}, delta=1e-3, significance=0.1
            )
            lower = statistics.epsilon_lower_bound(*counts, 0.1, 1e-3)
            assert found["epsilon"] == pytest.approx(lower)
            low = stats.norm.ppf(statistics.clopper_pearson_lower(*counts[:2], 0.05))
            high = stats.norm.ppf(statistics.clopper_pearson_upper(*counts[2:], 0.05))
            assert found["mu"] == pytest.approx(max(0.0, low - high))
            by_gdp = bounds.gaussian_epsilon(found["mu"], 1e-3) if found["mu"] else 0.0
            assert found["epsilon_gdp"] == pytest.approx(by_gdp)


def test_separated_worlds_reach_the_bound_of_perfect_separation():
    found = lower_bound.two_worlds(
        np.linspace(5, 6, 200), np.linspace(-6, -5, 200), delta=0.0, significance=0.05
    )
    tail = 1 - 0.025 ** (1 / 100)  # Clopper-Pearson of 0 of 100
    assert found["epsilon"] == pytest.approx(math.log((1 - tail) / tail))


def certificate(**values):
    return {"accountant": "gdp", "delta": DELTA, "epsilon": 4.38, "assumptions": ["a"]} | values


def test_comparison_says_what_is_refuted_and_what_is_not():
    found = lower_bound.two_worlds(*gaussian_worlds(2.0, 2000), delta=DELTA, significance=0.05)
    refuted = lower_bound.compare(certificate(), found, ["independent runs"])
    assert refuted["refuted"] and "there is a bug" in refuted["text"]
    assert refuted["assumptions"] == {"upper": ["a"], "lower": ["independent runs"]}
    for part in ("N = 2000", "0.05", "delta = 1e-05"):
        assert part in refuted["text"]
    fine = lower_bound.compare(certificate(epsilon=10.0), found)
    assert not fine["refuted"] and "nothing is proved" in fine["text"]
    other = lower_bound.compare(certificate(accountant="dobrushin"), found)
    assert other["lower"] == found["epsilon"] and not other["refuted"]
    with pytest.raises(ValueError, match="delta = 0.001, got 1e-05"):
        lower_bound.compare(certificate(delta=1e-3), found)


def test_noise_of_another_shape_or_mean_fails_its_self_test():
    rng = np.random.default_rng(0)
    right = {"a": rng.normal(0, 2.0, (4, 3000)), "b": rng.normal(0, 2.0, (4, 500))}
    assert lower_bound.noise_self_test(right, 2.0, significance=0.01)["passed"]
    uniform = {"a": rng.uniform(-1, 1, (4, 3000)) * 2.0 * math.sqrt(3)}
    assert lower_bound.noise_self_test(uniform, 2.0, significance=0.01)["p_values"]["shape"] < 1e-9
    moved = {k: v + 0.2 for k, v in right.items()}
    assert lower_bound.noise_self_test(moved, 2.0, significance=0.01)["p_values"]["mean"] < 1e-9
    rejected = [
        not lower_bound.noise_self_test({"a": rng.normal(0, 1, (3, 400))}, 1.0, significance=0.1)[
            "passed"
        ]
        for _ in range(200)
    ]
    assert sum(rejected) <= stats.binom.isf(1e-4, 200, 0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: lower_bound.noise_self_test({"a": np.ones((1, 9))}, 1.0, significance=0.1),
            "2 or more",
        ),
        (lambda: lower_bound.noise_self_test({}, 1.0, significance=0.1), "got shapes {}"),
        (
            lambda: lower_bound.two_worlds(np.ones(3), np.ones(9), delta=0.1, significance=0.1),
            "at least 4 runs",
        ),
        (
            lambda: lower_bound.two_worlds(
                np.full(9, np.nan), np.ones(9), delta=0.1, significance=0.1
            ),
            "none NaN",
        ),
    ],
)
def test_impossible_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
