import json

import numpy as np
import pytest
from scipy import stats

from unlearn_jax.audit import relearn

STEPS = np.array([0, 10, 20, 50, 100])


def curves(rates, start=1.0):
    """Errors that fall as start * exp(-rate * step), one row per seed."""
    return start * np.exp(-np.outer(rates, STEPS))


def test_steps_to_interpolates():
    curve = np.array([1.0, 0.8, 0.4, 0.1, 0.0])
    assert relearn.steps_to(curve, STEPS, 0.5) == pytest.approx((17.5, False))
    assert relearn.steps_to(curve, STEPS, 0.4) == (20, False)
    assert relearn.steps_to(curve, STEPS, 2.0) == (0, False)
    assert relearn.steps_to(curve, STEPS, -0.1) == (100, True)


def test_steps_to_takes_the_first_crossing():
    assert relearn.steps_to(np.array([1.0, 0.0, 1.0, 0.0, 0.0]), STEPS, 0.5) == (5, False)


def test_steps_to_of_an_exponential():
    steps = np.arange(2000)
    found, censored = relearn.steps_to(np.exp(-0.01 * steps), steps, 0.1)
    assert found == pytest.approx(np.log(10) / 0.01, rel=1e-5) and not censored


def test_area_between_is_the_integral():
    steps = np.arange(0, 1001)
    slow, fast = np.exp(-0.01 * steps), np.exp(-0.02 * steps)
    expected = (1 - np.exp(-10)) / 0.01 - (1 - np.exp(-20)) / 0.02
    assert relearn.area_between(fast, slow, steps) == pytest.approx(expected, rel=1e-3)
    assert relearn.area_between(slow, fast, steps) < 0


def test_hidden_knowledge_is_found():
    slow = np.array([0.02, 0.025, 0.03, 0.022, 0.021, 0.026])
    found = relearn.verdict(curves(3 * slow), curves(slow), STEPS, 0.315)
    assert found["word"] == "hidden" and found["p_value"] == 2 / 2**6
    assert found["level"] == 0.315 and found["reasons"] == []
    expected = np.median(np.divide(found["steps_unlearned"], found["steps_retrained"]))
    assert found["ratio"]["value"] == expected and 0.25 < expected < 0.5
    assert found["ratio"]["min"] <= expected <= found["ratio"]["max"]
    assert found["area"]["min"] > 0
    assert relearn.verdict(curves(slow), curves(3 * slow), STEPS, 0.315)["word"] == "not faster"
    json.dumps(found)


def test_equal_models_are_rarely_called_hiding():
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(150):
        u, r = (curves(rng.uniform(0.005, 0.03, 6)) for _ in range(2))  # many are censored
        found += relearn.verdict(u, r, STEPS, 0.3)["word"] == "hidden"
    assert 0 < found <= stats.binom.ppf(0.999, 150, 0.05)


def test_censored_runs_are_counted_and_tie():
    slow = np.full(6, 0.001)
    mixed = np.array([0.05, 0.05, 0.001, 0.001, 0.001, 0.001])
    found = relearn.verdict(curves(mixed), curves(slow), STEPS, 0.3)
    assert (found["censored_unlearned"], found["censored_retrained"]) == (4, 6)
    assert found["reasons"] == ["censored at 100 steps: 4 unlearned and 6 retrained runs of 6"]
    assert found["word"] == "not faster" and found["p_value"] == 2 / 2**2  # two runs differ
    same = relearn.verdict(curves(mixed), curves(mixed), STEPS, 0.3)
    assert same["p_value"] == 1 and same["ratio"] == {"value": 1, "min": 1, "max": 1}


def test_a_lower_error_on_the_way_counts_also_if_no_run_gets_to_the_level():
    slow = np.array([0.002, 0.0025, 0.003, 0.0022, 0.0021, 0.0026])
    found = relearn.verdict(curves(2 * slow), curves(slow), STEPS, 0.3)
    assert found["censored_unlearned"] == found["censored_retrained"] == 6
    assert found["word"] == "hidden" and found["p_value"] == 2 / 2**6
    assert relearn.verdict(curves(slow), curves(2 * slow), STEPS, 0.3)["word"] == "not faster"


def test_verdict_is_refused_without_grounds():
    slow = np.full(6, 0.02)
    few = relearn.verdict(curves(3 * slow[:5]), curves(slow[:5]), STEPS, 0.3)
    assert few["word"] == "refused" and few["reasons"] == ["5 seeds, at least 6 needed"]
    assert few["p_value"] is None and len(few["steps_unlearned"]) == 5
    known = relearn.verdict(curves(3 * slow), curves(slow, start=0.2), STEPS, 0.3)
    assert known["word"] == "refused" and "nothing to relearn" in known["reasons"][0]
    with pytest.raises(ValueError, match="increasing"):
        relearn.verdict(curves(slow), curves(slow), STEPS[::-1].copy(), 0.3)
    with pytest.raises(ValueError, match="diverged"):
        relearn.verdict(curves(slow * np.nan), curves(slow), STEPS, 0.3)
