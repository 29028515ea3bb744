import json

import numpy as np
import pytest
from scipy import stats

from unlearn_jax.audit import ood, statistics


def world(seed=0, n=1500, *, unlearned=0.0, retrained=0.0, original=-1.0, moved=0.3):
    """Arguments of `verdict`; `unlearned` etc. shift the log RMS error on forget, members -1."""
    rng = np.random.default_rng(seed)
    hardness = {name: rng.normal(0, 1, n) for name in ood.SETS}

    def mse(name, shift):
        return np.exp(2 * (hardness[name] + shift + rng.normal(0, 0.5, n)))

    shifts = {"original": original, "unlearned": unlearned, "retrained": retrained}
    errors = {
        model: {
            "forget": mse("forget", shift),
            "retain": mse("retain", -1),
            "holdout": mse("holdout", 0),
        }
        for model, shift in shifts.items()
    }
    out_errors = {name: np.stack([mse(name, 0), mse(name, 0)]) for name in ood.SETS}
    displacement = {
        "unlearned": moved * np.exp(rng.normal(0, 0.3, n)),
        "retrained": 0.3 * np.exp(rng.normal(0, 0.3, n)),
    }
    return errors, out_errors, displacement, 0.3 * np.exp(rng.normal(0, 0.3, 200))


def test_score_by_hand():
    found = ood.score(np.array([4.0, 1.0]), np.array([[1.0, 4.0], [9.0, 4.0]]), 1e-9)
    np.testing.assert_allclose(found, np.log([2 / 2, 1 / 2]), atol=1e-8)
    assert np.isfinite(ood.score(np.array([0.0]), np.array([[1.0]]), 1e-3)).all()


def test_displaced_is_the_exact_binomial_test():
    calibration = np.arange(1.0, 100)  # alpha = 0.1: the 10th smallest
    displacement = np.r_[np.full(90, 10.0), np.full(10, 9.9)]
    found = ood.displaced(displacement, calibration, significance=0.05)
    assert found["lambda_ood"] == 10 and found["share_displaced"]["value"] == 0.9
    expected = stats.binomtest(90, 100, 0.8, alternative="greater")
    assert found["p_value"] == pytest.approx(expected.pvalue)
    low = found["share_displaced"]["ci_low"]
    assert low == pytest.approx(expected.proportion_ci(0.95).low, rel=1e-4)
    assert found["pass"] and low > 0.8
    fewer = ood.displaced(displacement[10:], calibration, significance=0.05)
    assert not ood.displaced(displacement[40:], calibration, significance=0.05)["pass"]
    assert fewer["share_displaced"]["value"] == 80 / 90


def rejections(test, repeats, seed=0):
    rng = np.random.default_rng(seed)
    return sum(test(rng)["pass"] for _ in range(repeats))


def test_no_longer_member_keeps_its_level_on_members():
    def null(rng):
        return ood.no_longer_member(rng.normal(size=60), rng.normal(size=80), significance=0.1)

    assert rejections(null, 400) <= stats.binom.ppf(0.999, 400, 0.1)

    def unseen(rng):
        return ood.no_longer_member(rng.normal(1, 1, 60), rng.normal(size=80), significance=0.1)

    assert rejections(unseen, 100) >= 95


def test_no_longer_member_needs_both_tests():
    rng = np.random.default_rng(0)
    members = rng.normal(size=400)
    shifted = np.minimum(rng.normal(0.4, 1, 400), np.sort(members)[370])  # no tail
    found = ood.no_longer_member(shifted, members, significance=0.05)
    assert found["exceedances"] == 0 and found["exceedance_p_value"] == 1
    expected = stats.mannwhitneyu(shifted, members, alternative="greater").pvalue
    assert found["mann_whitney_p_value"] == pytest.approx(expected) and expected < 1e-3
    assert found["p_value"] == 1 and not found["pass"] and found["share_unknown"] == 0
    found = ood.no_longer_member(members + 100, members, significance=0.05)
    assert found["exceedances"] == 400 and found["share_unknown"] == 1 and found["pass"]


def test_as_unseen_keeps_its_level_at_the_margin():
    shift = np.sqrt(2) * stats.norm.ppf(0.55)  # AUROC exactly at the margin

    def edge(rng):
        return ood.as_unseen(rng.normal(shift, 1, 900), rng.normal(size=900), significance=0.1)

    def same(rng):
        return ood.as_unseen(rng.normal(size=900), rng.normal(size=900), significance=0.1)

    low, high = stats.binom.ppf([0.0005, 0.9995], 400, 0.1)
    assert low <= rejections(edge, 400) <= high
    power = 2 * stats.norm.cdf(0.05 / np.sqrt(2 / 900 / 12) - 1.2816) - 1
    low, high = stats.binom.ppf([0.0005, 0.9995], 200, power)
    assert low <= rejections(same, 200) <= high


def test_as_unseen_passes_exactly_when_its_interval_is_inside():
    rng = np.random.default_rng(1)
    seen = set()
    for shift in np.linspace(-0.2, 0.2, 21):
        x, y = rng.normal(shift, 1, 800), rng.normal(size=800)
        found = ood.as_unseen(x, y, significance=0.05)
        low, high = statistics.auroc_interval(x, y, 0.9)
        assert found["pass"] == (0.45 <= low and high <= 0.55)
        seen.add(found["pass"])
    assert seen == {True, False}


def test_separated_scores_are_not_as_unseen():
    found = ood.as_unseen(np.arange(500.0) + 500, np.arange(500.0), significance=0.05)
    assert found["auroc"]["value"] == 1 and found["p_value"] == 1 and not found["pass"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({}, "unlearned"),
        ({"unlearned": -1.0}, "still known"),
        ({"unlearned": -0.5}, "still known"),  # less known than members, better than unseen
        ({"unlearned": 1.0}, "damaged on forget"),
        ({"moved": 0.15}, "undecided"),
    ],
)
def test_verdict_of_planted_worlds(options, word):
    found = ood.verdict(*world(**options))
    assert found["word"] == word
    assert found["unlearned_ood"] is (word == "unlearned")
    assert bool(found["reasons"]) is (word != "unlearned")
    assert found["significance_per_test"] == pytest.approx(0.05 / 3)
    passed = {model: [t["pass"] for t in tests.values()] for model, tests in found["tests"].items()}
    assert passed["retrained"] == [True] * 3 and passed["original"] == [False] * 3
    json.dumps(found)


def test_verdict_scores_are_log_ratios_whatever_the_unit_of_the_error():
    errors, out_errors, *rest = world()
    test = ood.verdict(errors, out_errors, *rest)["tests"]["unlearned"]
    ratio = {
        name: np.log(np.sqrt(errors["unlearned"][name]) / np.sqrt(out_errors[name]).mean(0))
        for name in ood.SETS
    }
    for name, other in (("as_unseen", "holdout"), ("no_longer_member", "retain")):
        expected = stats.mannwhitneyu(ratio["forget"], ratio[other]).statistic / 1500**2
        assert test[name]["auroc"]["value"] == pytest.approx(expected, abs=1e-3)
    errors = {m: {k: 1e-6 * e for k, e in of_set.items()} for m, of_set in errors.items()}
    scaled = ood.verdict(errors, {k: 1e-6 * e for k, e in out_errors.items()}, *rest)
    for name in test:
        assert scaled["tests"]["unlearned"][name]["p_value"] == pytest.approx(test[name]["p_value"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"retrained": 0.5}, "the retrained model fails 'as_unseen'"),
        ({"retrained": -1.0}, "the retrained model fails 'no_longer_member'"),
        ({"original": 0.0}, "the original passes 'no_longer_member'"),
        ({"original": 0.0}, "the original passes 'as_unseen'"),
    ],
)
def test_verdict_is_refused_if_a_control_fails(options, reason):
    found = ood.verdict(*world(**options))
    assert found["word"] == "refused" and found["unlearned_ood"] is None
    assert any(reason in r for r in found["reasons"])


def test_verdict_is_refused_with_few_images():
    errors, out_errors, displacement, calibration = world()
    errors = {m: of_set | {"holdout": of_set["holdout"][:399]} for m, of_set in errors.items()}
    out_errors["holdout"] = out_errors["holdout"][:, :399]
    found = ood.verdict(errors, out_errors, displacement, calibration)
    assert found["word"] == "refused" and found["unlearned_ood"] is None and not found["tests"]
    assert found["reasons"] == ["399 holdout images, 400 needed"]
    enough = ood.verdict(errors, out_errors, displacement, calibration, min_n=399)
    assert set(enough["tests"]) == {"original", "unlearned", "retrained"}


def test_verdict_never_calls_members_unlearned():
    words = [ood.verdict(*world(seed, n=400, unlearned=-1.0))["word"] for seed in range(20)]
    assert "unlearned" not in words and "still known" in words


def test_verdict_refuses_arguments_that_do_not_fit():
    errors, out_errors, displacement, calibration = world(n=10)
    with pytest.raises(ValueError, match=r"displacement: expected keys \['retrained', 'unlearned'"):
        ood.verdict(errors, out_errors, {"unlearned": displacement["unlearned"]}, calibration)
    with pytest.raises(ValueError, match="equally many holdout images"):
        short = out_errors | {"holdout": out_errors["holdout"][:, :9]}
        ood.verdict(errors, short, displacement, calibration)
    errors["unlearned"]["retain"][3] = 0
    with pytest.raises(ValueError, match=r"errors\['unlearned'\]\['retain'\]: .* got 1 that"):
        ood.verdict(errors, out_errors, displacement, calibration)
