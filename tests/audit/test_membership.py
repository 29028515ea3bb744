import json

import numpy as np
import pytest
from scipy import stats

from unlearn_jax.audit import membership, statistics

OPTIONS = {"confidence": 0.95, "seed": 0, "resamples": 200}


def errors(n, rng, *, models, known=0.0):
    """[1 + models, n] errors on images of unequal difficulty; `known` lowers the first row."""
    difficulty = rng.normal(-3, 1, n)
    log_error = difficulty + rng.normal(0, 0.3, (1 + models, n))
    log_error[0] -= known
    return np.exp(log_error)


def score(name, images, population):
    if name == "loss":
        return membership.loss_score(images[0])
    if name == "difficulty":
        return membership.difficulty_calibrated(images[0], images[1])
    if name == "lira":
        return membership.lira_offline(images[0], images[1:])
    return membership.rmia_offline(
        images[0], images[1:], population[0], population[1:], entries=300
    )


ATTACKS = ["loss", "difficulty", "lira", "rmia"]


def areas(name, rng, *, known, repeats, n=60):
    found = []
    for _ in range(repeats):
        population = errors(100, rng, models=3)
        member = score(name, errors(n, rng, models=3, known=known), population)
        other = score(name, errors(n, rng, models=3), population)
        found.append((statistics.auroc(member, other), member, other))
    return found


@pytest.mark.parametrize("name", ATTACKS)
def test_null_scores_are_rejected_as_often_as_promised(name):
    found = areas(name, np.random.default_rng(0), known=0.0, repeats=300)
    rejected = 0
    for _, member, other in found:
        low, high = statistics.auroc_interval(member, other, 0.9)
        rejected += not low <= 0.5 <= high
    assert rejected <= stats.binom.ppf(0.999, 300, 0.12)  # DeLong is approximate: 0.12 for 0.1
    assert rejected >= stats.binom.ppf(0.001, 300, 0.07)
    error = np.sqrt((2 / 60) / 12 / 300)
    assert abs(np.mean([area for area, *_ in found]) - 0.5) < 4 * error


@pytest.mark.parametrize("name", ATTACKS)
def test_more_signal_gives_a_larger_auroc(name):
    means = [
        np.mean([a for a, *_ in areas(name, np.random.default_rng(0), known=known, repeats=20)])
        for known in (0.0, 0.2, 0.6)
    ]
    assert means[1] > means[0] + 0.02 and means[2] > means[1] + 0.05
    # Normal scores: AUROC = Phi(shift / (sqrt(2) sd)). Difficulty, sd 1, hides it from the loss.
    sd = {"loss": np.sqrt(1 + 0.09), "difficulty": 0.3 * np.sqrt(2), "lira": 0.3 * np.sqrt(4 / 3)}
    if name in sd:
        assert means[2] == pytest.approx(stats.norm.cdf(0.6 / np.sqrt(2) / sd[name]), abs=0.03)


def test_scores_by_hand():
    np.testing.assert_allclose(membership.loss_score(np.array([1.0, np.e])), [0, -1], atol=1e-15)
    found = membership.difficulty_calibrated(np.array([1.0, 2.0]), np.array([np.e, 2.0]))
    np.testing.assert_allclose(found, [1, 0], atol=1e-15)


def test_lira_by_hand():
    phi_out = np.array([[1.0, 10.0], [3.0, 14.0]])  # variances 2 and 8, pooled 5
    found = membership.lira_offline(np.exp([-4.0, -12.0]), np.exp(-phi_out))
    np.testing.assert_allclose(found, [2 / np.sqrt(5), 0], atol=1e-12)
    found = membership.lira_offline(np.exp([-4.0, -12.0]), np.exp(-phi_out[:1]))
    np.testing.assert_allclose(found, [3, 2])  # one out-model: sd 1


def test_lira_with_many_out_models_has_a_spread_per_example():
    rng = np.random.default_rng(0)
    phi_out = rng.normal(0, [1, 5, 9], (16, 3))
    found = membership.lira_offline(np.exp(-phi_out.mean(0) - 2), np.exp(-phi_out))
    np.testing.assert_allclose(found, 2 / phi_out.std(0, ddof=1))
    with pytest.raises(ValueError, match="2 different out-models"):
        membership.lira_offline(np.ones(3), np.ones((2, 3)))


@pytest.mark.parametrize(("gamma", "temperature"), [(1.0, None), (2.0, None), (1.3, 0.01)])
def test_rmia_is_the_count_over_all_pairs(gamma, temperature):
    rng = np.random.default_rng(0)
    x, z = errors(40, rng, models=3, known=0.3), errors(30, rng, models=3)
    found = membership.rmia_offline(
        x[0], x[1:], z[0], z[1:], entries=300, gamma=gamma, temperature=temperature
    )
    if temperature is None:
        temperature = membership.rmia_temperature(z[0], z[1:], entries=300)
    likelihood = [np.exp(-temperature * 300 * e / (2 * z[0].mean())) for e in (x, z)]
    ratio_x, ratio_z = (p[0] / p[1:].mean(0) for p in likelihood)
    expected = (ratio_x[:, None] / ratio_z > gamma).mean(1)
    np.testing.assert_allclose(found, expected)
    assert 0 < expected.mean() < 1


def test_rmia_survives_likelihoods_that_underflow():
    x, z = (
        errors(40, np.random.default_rng(0), models=2),
        errors(30, np.random.default_rng(1), models=2),
    )
    found = membership.rmia_offline(x[0], x[1:], z[0], z[1:], entries=10**6, temperature=1.0)
    a = 10**6 / (2 * z[0].mean())  # so large that the best out-model alone counts
    r_x, r_z = (a * (e[1:].min(0) - e[0]) for e in (x, z))
    np.testing.assert_allclose(found, (r_x[:, None] > r_z).mean(1), atol=1e-9)


def test_rmia_temperature_gives_pairs_of_unseen_images_unit_spread():
    z = errors(500, np.random.default_rng(0), models=1)
    for entries in (10, 10_000):
        temperature = membership.rmia_temperature(z[0], z[1:], entries=entries)
        log_p = -temperature * entries * z / (2 * z[0].mean())
        ratio = log_p[0] - log_p[1]
        assert (ratio[:, None] - ratio).std() == pytest.approx(1)
    with pytest.raises(ValueError, match="model and its out-models differ"):
        membership.rmia_temperature(z[0], z[:1], entries=10)


def test_attack_finds_the_spread_that_an_auroc_cannot_see():
    rng = np.random.default_rng(0)
    found = membership.attack(rng.normal(0, 2, 1500), rng.normal(0, 1, 1500), **OPTIONS)
    assert found["auroc"]["ci_low"] < 0.5 < found["auroc"]["ci_high"]
    assert found["leakage"]["ci_low"] == 0
    ratio = found["spread_ratio"]
    assert 1.8 < ratio["ci_low"] < ratio["value"] < ratio["ci_high"] < 2.2
    # The 1 % threshold is 2.33 sd of the holdout, 1.16 sd of the forget scores.
    tpr = found["tpr_at_fpr"]["0.01"]
    assert tpr["ci_low"] < stats.norm.sf(2.326 / 2) < tpr["ci_high"] and tpr["n"] == 1500
    json.dumps(found)


def test_attack_below_one_half_leaks_as_much():
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 1, 300), rng.normal(size=300)
    above, below = membership.attack(x, y, **OPTIONS), membership.attack(y, x, **OPTIONS)
    for key in ("value", "ci_low", "ci_high"):
        assert above["leakage"][key] == pytest.approx(below["leakage"][key])
    assert above["leakage"]["value"] == pytest.approx(2 * above["auroc"]["value"] - 1)
    assert below["leakage"]["ci_high"] == pytest.approx(1 - 2 * below["auroc"]["ci_low"])


def test_attack_refuses_what_the_data_cannot_carry():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=50), rng.normal(size=999)
    found = membership.attack(x, y, **OPTIONS)
    assert found["tpr_at_fpr"]["0.01"]["value"] is not None
    assert found["tpr_at_fpr"]["0.001"] == {
        "value": None,
        "reason": "999 holdout images; at least 1000 needed",
    }
    enough = membership.attack(x, np.append(y, 0.0), **OPTIONS)
    assert enough["tpr_at_fpr"]["0.001"]["value"] is not None
    small = membership.attack(x[:29], y, **OPTIONS)
    refused = [small[k] for k in ("auroc", "leakage", "spread_ratio")]
    refused += small["tpr_at_fpr"].values()
    assert all(r["value"] is None and "29 forget" in r["reason"] for r in refused)
    constant = membership.attack(x, np.ones(200), **OPTIONS)
    assert constant["spread_ratio"]["value"] is None and constant["auroc"]["value"] is not None


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_errors_that_are_none_are_refused(bad):
    good, spoilt = np.ones(3), np.array([1.0, bad, 1.0])
    with pytest.raises(
        ValueError, match="error: expected positive finite errors, got 3 of which 1"
    ):
        membership.loss_score(spoilt)
    with pytest.raises(ValueError, match="out_errors"):
        membership.lira_offline(good, spoilt[None])
    with pytest.raises(ValueError, match="population_out_errors"):
        membership.rmia_offline(good, good[None], good, spoilt[None], entries=3)
    with pytest.raises(ValueError, match="gamma > 0"):
        membership.rmia_offline(
            good, good[None], good, 2 * good[None], entries=3, gamma=0.0, temperature=1.0
        )
