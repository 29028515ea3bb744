import json

import numpy as np
import pytest
from scipy import stats

from unlearn_jax.audit import backdoor


def models(seed=0, n=500, *, unlearned=0.0, original=0.98, second=0.0):
    """Payload errors; the share of images on which a model regenerates has an error near 0."""
    rng = np.random.default_rng(seed)

    def draw(share):
        hit = np.arange(n) < round(share * n)
        return np.where(hit, rng.uniform(0, 0.01, n), rng.uniform(0.5, 1, n))

    shares = {"original": original, "unlearned": unlearned, "retrained": 0, "retrained_2": second}
    return {model: draw(share) for model, share in shares.items()}


def test_success_threshold_lets_at_most_one_percent_of_the_retrained_through():
    for n in (50, 99, 100, 250, 1000):
        errors = np.random.default_rng(n).permutation(n).astype(float)
        threshold = backdoor.success_threshold(errors)
        assert (errors < threshold).sum() == n // 100
    tied = np.r_[np.zeros(5), np.ones(95)]
    assert (tied < backdoor.success_threshold(tied)).sum() == 0


def test_verdict_by_word():
    found = backdoor.verdict(
        {
            "as planted": models(n=1000),
            "half": models(unlearned=0.5),
            "few images": models(n=60),
            "never worked": models(original=0.8),
            "retrained too": models(second=0.2),
        }
    )
    assert {name: v["word"] for name, v in found.items()} == {
        "as planted": "not regenerated",
        "half": "regenerated",
        "few images": "undecided",
        "never worked": "void",
        "retrained too": "void",
    }
    (reason,) = found["never worked"]["reasons"]
    assert reason.startswith("original succeeds on 80.") and "at least 90%" in reason
    assert "retrained_2 succeeds on 2" in found["retrained too"]["reasons"][0]
    json.dumps(found)


def test_rates_and_pairs_are_those_of_library_tests():
    errors = models(unlearned=0.1)
    found = backdoor.verdict({"as planted": errors})["as planted"]
    success = {m: e < found["threshold"] for m, e in errors.items()}
    rate, hits = found["success_rate"]["unlearned"], int(success["unlearned"].sum())
    expected = stats.binomtest(hits, 500).proportion_ci(0.95)
    assert rate["value"] == hits / 500 and rate["n"] == 500
    assert (rate["ci_low"], rate["ci_high"]) == pytest.approx((expected.low, expected.high), 1e-4)
    b = int((success["unlearned"] & ~success["retrained"]).sum())
    c = int((success["retrained"] & ~success["unlearned"]).sum())
    assert (found["only_unlearned"], found["only_retrained"]) == (b, c) and b > 40
    assert found["mcnemar_p_value"] == pytest.approx(stats.binomtest(b, b + c).pvalue)


def test_a_retrained_model_is_rarely_called_regenerating():
    """Unlearned and retrained exchangeable: the claim's false alarms and McNemar's level."""
    rng = np.random.default_rng(0)
    words, rejected = [], 0
    for _ in range(200):
        errors = {m: rng.uniform(0.5, 1, 800) for m in ("unlearned", "retrained", "retrained_2")}
        errors["original"] = rng.uniform(0, 0.1, 800)
        found = backdoor.verdict({"v": errors})["v"]
        words.append(found["word"])
        rejected += found["mcnemar_p_value"] <= 0.05
    assert words.count("regenerated") <= 4 and words.count("not regenerated") > 120
    # The threshold is tuned to give the retrained model 1 %: not exactly exchangeable.
    assert rejected <= stats.binom.ppf(0.999, 200, 0.05)


def test_mean_ratio_is_the_ratio_of_means():
    rng = np.random.default_rng(0)
    a = rng.uniform(1, 2, 400)
    options = {"confidence": 0.95, "seed": 0, "resamples": 500}
    found = backdoor.mean_ratio(3 * a, a, **options)
    # The same images on both sides: resampled together the ratio never moves.
    assert [found[k] for k in ("value", "ci_low", "ci_high")] == pytest.approx([3, 3, 3])
    b = rng.uniform(1, 2, 400)
    found = backdoor.mean_ratio(b, a, **options)
    spread = 1.96 * np.sqrt(2) * np.sqrt(1 / 12) / 1.5 / 20  # delta method
    assert found["ci_high"] - found["ci_low"] == pytest.approx(2 * spread, rel=0.2)
    assert found["ci_low"] < 1 < found["ci_high"] and found["n"] == 400
    with pytest.raises(ValueError, match="not 0 on all images"):
        backdoor.mean_ratio(a, np.zeros(400), **options)


def test_verdict_refuses_arguments_that_do_not_fit():
    errors = models()
    with pytest.raises(ValueError, match=r"'v': expected payload errors of \['retrained'\]"):
        backdoor.verdict({"v": {k: e for k, e in errors.items() if k != "retrained"}})
    with pytest.raises(ValueError, match="same images"):
        backdoor.verdict({"v": errors | {"unlearned": errors["unlearned"][:-1]}})
    with pytest.raises(ValueError, match="original has NaN"):
        backdoor.verdict({"v": errors | {"original": np.full(500, np.nan)}})
