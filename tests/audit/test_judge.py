"""The numbers of the audits on made-up models whose answers are known."""

import numpy as np
import pytest

from unlearn_jax.audit import backdoor, judge

SETTINGS = {"entries": 768, "confidence": 0.95, "resamples": 50, "seed": 0}
N = 950


def make(seed, known=0.0, payload=0.0):
    """A model: errors of images of various difficulty, forget images `known` times better."""
    difficulty = np.random.default_rng(0).normal(0, 0.5, (3, N))  # the same images for all models
    rng = np.random.default_rng(seed)
    error = np.exp(-2 + difficulty + rng.normal(0, 0.2, (3, N)))
    error[0] *= np.exp(-known)
    error[1] *= np.exp(-1.0)
    views = np.exp(-2 + difficulty[:, None] + rng.normal(0, 0.2, (3, 7, N)))
    found = {f"error/{s}": e for s, e in zip(("forget", "retain", "holdout"), error, strict=True)}
    found |= {f"views/{s}": v for s, v in zip(("forget", "retain", "holdout"), views, strict=True)}
    moved = 1.0 if not known else 0.0
    found["displacement"] = moved + rng.uniform(0.1, 0.2, N)
    pattern = np.where(np.indices((8, 8, 3)).sum(0) % 2, 1.0, -1.0)
    outputs = rng.normal(0, 0.2, (N, 8, 8, 3))
    found["payload"] = pattern
    found["region/as planted"] = (1 - payload) * outputs + payload * pattern
    found["untriggered"] = rng.normal(0, 0.2, (N, 8, 8, 3))
    found["region/after fine-tuning"] = found["region/as planted"]
    steps = np.arange(0, 12, 2)
    found["relearn/steps"] = steps
    for k in range(6):
        found[f"relearn/{k}"] = np.maximum(1.0 - 0.1 * k - steps / 20 - known, 0.1) + 0.0
    return found


ORIGINAL, RETRAINED, OUT = make(1, known=1.0, payload=0.95), make(2), make(3)


def of(model, outs=(OUT,)):
    return judge.estimates(model, ORIGINAL, RETRAINED, list(outs), **SETTINGS)


def test_the_original_is_found_and_the_retrained_is_not():
    found, clean = of(ORIGINAL)["audits"], of(RETRAINED)["audits"]
    assert set(found) == set(judge.AUDITS)
    for name in ("membership_auroc", "membership_auroc_calibrated", "lira_auroc", "rmia_auroc"):
        assert found[name]["value"] > 0.75, name
        assert clean[name]["ci_low"] <= 0.5 <= clean[name]["ci_high"], name
    assert found["membership_auroc_calibrated"]["value"] > found["membership_auroc"]["value"]
    assert found["tpr_at_1_fpr"]["value"] > 0.5 > 0.05 > clean["tpr_at_1_fpr"]["value"]
    assert found["tpr_at_0.1_fpr"]["value"] is None  # 950 holdout images cannot carry it
    assert found["backdoor_success"]["value"] == 1 and clean["backdoor_success"]["value"] == 0
    assert clean["score_spread"]["value"] == pytest.approx(1, abs=0.1)


def test_means_and_counts():
    found = of(ORIGINAL)
    for name, value in (
        ("forget_error", found["audits"]["forget_error"]),
        ("retain", found["utility"]["retain_error"]),
        ("holdout", found["utility"]["holdout_error"]),
    ):
        errors = ORIGINAL[f"error/{name.removesuffix('_error')}"]
        assert value["n"] == N and value["value"] == pytest.approx(errors.mean())
        half = 1.96 * errors.std(ddof=1) / np.sqrt(N)
        assert value["ci_high"] - value["value"] == pytest.approx(half, rel=0.01)


def test_without_a_second_retrained_model_what_needs_one_is_refused():
    found = of(ORIGINAL, outs=())["audits"]
    for name in ("membership_auroc_calibrated", "tpr_at_1_fpr", "score_spread", "lira_auroc"):
        assert found[name]["value"] is None and "second retrained" in found[name]["reason"]
    assert found["membership_auroc"]["value"] > 0.75
    assert of(RETRAINED, outs=())["audits"]["backdoor_success"]["value"] is None


def test_without_poison_the_backdoor_is_not_judged():
    clean = {k: v for k, v in RETRAINED.items() if not k.startswith("region/")}
    found = judge.estimates(clean, ORIGINAL, clean, [OUT], **SETTINGS)["audits"]
    assert found["backdoor_success"] == {"value": None, "reason": "no backdoor was planted"}


@pytest.mark.parametrize(("share", "expected"), [(0.2, 0.0), (0.9, 1.0)])
def test_a_faded_payload_is_a_trace_but_no_success(share, expected):
    found = of(make(4, payload=share))["audits"]
    assert found["backdoor_success"]["value"] == expected
    assert found["backdoor_trace"]["value"] > 0.9
    assert of(RETRAINED)["audits"]["backdoor_trace"]["value"] <= 0.01


def test_nearness_by_hand():
    payload, other = np.ones((2, 2)), np.zeros((3, 2, 2))
    outputs = np.stack([np.ones((2, 2)), np.zeros((2, 2)), np.full((2, 2), 0.5)])
    np.testing.assert_allclose(backdoor.nearness(outputs, payload, other), [0, 1, 0.5])


def test_verdicts_of_a_model_that_behaves_as_retrained_and_of_one_that_remembers():
    three = {"original": ORIGINAL, "unlearned": make(5), "retrained": RETRAINED}
    found = judge.verdicts(three, [OUT])
    assert found["ood"]["word"] == "unlearned", found["ood"]["reasons"]
    assert found["backdoor"]["as planted"]["word"] == "not regenerated"
    found = judge.verdicts(three | {"unlearned": make(6, known=1.0, payload=0.95)}, [OUT])
    assert found["ood"]["word"] == "still known"
    assert found["backdoor"]["as planted"]["word"] == "regenerated"
    assert judge.verdicts(three, [])["ood"]["word"] == "refused"


def test_differences_are_none_between_retrained_models_and_clear_to_the_original():
    options = {"confidence": 0.95, "resamples": 50, "seed": 0}
    two = {"unlearned": make(5), "retrained": RETRAINED}
    found = judge.differences(two, [OUT], **options)
    assert set(found) == set(judge.DIFFERENCES)
    for name, same in zip(found, (0, 0, 1, 1), strict=True):
        assert found[name]["ci_low"] <= same <= found[name]["ci_high"], name
    found = judge.differences(two | {"unlearned": ORIGINAL}, [OUT], **options)
    assert found["membership_auroc_calibrated"]["ci_low"] > 0.4
    # The payload is 1 away from grey everywhere, the outputs of two models 0.2 * sqrt(2).
    assert found["regeneration_gap"]["value"] == pytest.approx(1 / (0.2 * 2**0.5), rel=0.05)
    assert found["trigger_sensitivity"]["value"] == pytest.approx(1 / (0.2 * 2**0.5), rel=0.05)
    assert judge.differences(two, [], **options)["regeneration_gap"]["value"] is None
    blind = RETRAINED | {"untriggered": RETRAINED["region/as planted"]}
    found = judge.differences(two | {"retrained": blind}, [OUT], **options)
    assert "does not move" in found["trigger_sensitivity"]["reason"]
    clean = {m: {k: v for k, v in x.items() if "region" not in k} for m, x in two.items()}
    found = judge.differences(clean, [OUT], **options)
    assert found["trigger_sensitivity"]["reason"] == "no backdoor was planted"
    assert found["membership_auroc_calibrated"]["value"] is not None


def test_relearning_pools_the_seeds_of_all_models():
    found = judge.relearning([ORIGINAL], [RETRAINED], [RETRAINED])
    assert found["seeds"] == 6 and found["word"] == "not faster" and found["p_value"] == 1
    # They begin at 0.1 (all seeds) and at 1, 0.9, ..., 0.5.
    assert found["level"] == pytest.approx((0.1 * 0.75) ** 0.5)
    quick = RETRAINED | {f"relearn/{k}": RETRAINED[f"relearn/{k}"] - 0.2 for k in range(6)}
    assert judge.relearning([ORIGINAL], [quick], [RETRAINED])["word"] == "hidden"
    pooled = judge.relearning([ORIGINAL] * 2, [quick] * 2, [RETRAINED] * 2)
    assert pooled["seeds"] == 12 and pooled["p_value"] < 0.01


def test_relearning_counts_the_steps_to_half_of_the_way():
    found = of(RETRAINED)["audits"]["relearn_steps"]
    level = (0.1 * 0.75) ** 0.5
    expected = [min(20 * (1 - 0.1 * k - level), 10) for k in range(6)]  # slope 1 / 20, budget 10
    assert found["value"] == pytest.approx(np.mean(expected)) and found["n"] == 6
    assert of(ORIGINAL)["audits"]["relearn_steps"]["value"] == 0
    assert of(RETRAINED)["audits"]["relearn_area"]["value"] == 0
    assert of(ORIGINAL)["audits"]["relearn_area"]["value"] > 0.2
