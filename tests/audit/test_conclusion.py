"""The conclusion is what the numbers say, and the panel finds what was planted."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from tests.helpers.made_models import Images
from unlearn_jax.audit import AUDITS, conclusion, gap, panel

SETTINGS = {"confidence": 0.95, "resamples": 100, "seed": 0}
PLANTED = {  # what a leak is planted in -> the witnesses that must see it
    "loss": ("forget_error", "membership_calibrated", "membership_views", "membership_quantiles"),
    "noise": ("membership_noise",),
    "masks": ("membership_masks",),
    "structure": ("membership_structure",),
    "visible": ("membership_visible",),
    "resurfacing": ("resurfacing",),
    "relearning": ("relearning",),
    "quantised": ("quantised",),
    "displacement": ("displacement",),
    "backdoor": ("backdoor",),
}


def judge(seed, audits=AUDITS):
    return conclusion.judge(audits, [seed], **SETTINGS)


@pytest.fixture(scope="module")
def repeated():
    """Rows of 29 requests, a leak of half of the memory in everything, and of 60 without any."""
    leaky = [panel.rows(AUDITS, [Images(k).seed_of(0.5)], **SETTINGS) for k in range(29)]
    clean = [panel.rows(AUDITS, [Images(k).seed_of(0.0)], **SETTINGS) for k in range(60)]
    return leaky, clean


@pytest.mark.long
def test_each_witness_finds_a_planted_leak(repeated):
    """29 of 29: power above .9 at level .05, by the exact binomial bound."""
    assert stats.binom.pmf(29, 29, 0.9) < 0.05
    for name, audit in AUDITS.items():
        if audit.family == "information":
            continue
        own = [f"{name}.{s}" if k else name for k, s in enumerate(audit.statistics)]
        hits = [any(rows[r]["word"] == "refuted" for r in own) for rows in repeated[0]]
        assert sum(hits) == 29, name


@pytest.mark.long
def test_the_family_keeps_its_level(repeated):
    wrong = sum(any(r["word"] == "refuted" for r in rows.values()) for rows in repeated[1])
    assert stats.binomtest(wrong, 60, gap.LEVEL, alternative="greater").pvalue > 0.05
    for name in ("forget_error", "membership_calibrated", "membership_masks", "resurfacing"):
        floors = [rows[name]["floor"] for rows in repeated[1]]
        gaps = [rows[name]["gap"]["value"] for rows in repeated[1]]
        assert stats.ks_2samp(floors, gaps).pvalue > 0.01, name  # one more retraining, both


@pytest.mark.parametrize("only", PLANTED)
def test_a_leak_is_seen_by_the_witness_of_its_kind(only):
    found = judge(Images(1).seed_of(0.6, only))
    refuted = {k.partition(".")[0] for k, r in found["witnesses"].items() if r["word"] == "refuted"}
    assert set(PLANTED[only]) <= refuted
    others = {w for key, ws in PLANTED.items() if key != only for w in ws}
    assert not refuted & others
    assert found["conclusion"]["word"] == "refuted"
    assert found["conclusion"]["witness"].partition(".")[0] in refuted
    first = found["witnesses"][PLANTED[only][0]]  # an AUROC or a correlation says more than 0.6
    if not first["unit"].startswith("AUROC"):
        assert first["excess"]["value"] == pytest.approx(0.6, abs=0.1)


def test_staying_near_an_original_that_knew_nothing_is_no_memory():
    images = Images(3)
    original, retrained, further = (images.model(k) for k in (1, 3, 4))
    original["displacement/forget"] = 0 * original["displacement/forget"]
    stayed = images.model(2, 1.0, "displacement")
    assert not stayed["displacement/forget"].any()
    found = judge(panel.Seed(original, stayed, retrained, [further]))
    assert not found["gate"]["passed"] and found["conclusion"]["word"] == "not tested"
    row = found["witnesses"]["displacement"]
    assert row["word"] == "not measured" and "no memory of them" in row["reason"]
    knowing = judge(Images(3).seed_of(1.0, "displacement"))["witnesses"]["displacement"]
    assert knowing["word"] == "refuted"


def test_a_forgotten_request_is_not_refuted_and_the_file_is_plain_json():
    found = judge(Images(2).seed_of(0.0))
    assert found["conclusion"]["word"] == "not refuted" and not found["conclusion"]["missing"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["headline"]["recall_excess"]["value"] < 0.1
    assert found["damage"]["retain_memory"]["value"] == pytest.approx(1, abs=0.1)
    assert found["damage"]["unseen_loss"]["value"] == pytest.approx(0, abs=0.05)
    half = judge(Images(2).seed_of(0.0, retain=0.5))["damage"]["retain_memory"]
    assert half["value"] == pytest.approx(0.5, abs=0.1) and half["ci_low"] > 0.4
    assert found["images"] is None and len(found["worst_images"]) == 10


def test_too_much_forgetting_is_refuted_too():
    found = judge(Images(2).seed_of(-0.6, "loss"))
    assert found["conclusion"]["word"] == "refuted"
    assert found["witnesses"]["forget_error"]["word"] == "refuted"


def test_what_is_lacking_is_said():
    images = Images(3)
    full = images.seed_of(0.0)
    alone = judge(full._replace(further=[]))
    assert alone["conclusion"]["word"] == "not tested"
    assert "audit.shadows" in alone["conclusion"]["text"]
    assert alone["witnesses"]["membership_calibrated"]["word"] == "not measured"
    shown = {k: w for k, w in AUDITS.items() if w.family == "recall"}
    only_recall = judge(full, shown)
    assert only_recall["conclusion"]["word"] == "not tested"
    nothing = judge(full._replace(original=images.model(9)))
    assert nothing["conclusion"]["word"] == "not tested" and not nothing["gate"]["passed"]
    assert "nothing to forget that we could measure" in nothing["conclusion"]["text"]
    for found in (alone, only_recall, nothing):
        for row in found["witnesses"].values():
            assert row["reason"] or row["word"] in ("refuted", "not refuted")


def test_not_refuted_needs_power():
    """With 32 images nothing is refuted, and nothing would have been."""
    chosen = {k: AUDITS[k] for k in ("membership_plain", "resurfacing")}
    found = judge(Images(3, n=32).seed_of(0.0), chosen)
    assert found["witnesses"]["membership_plain"]["has_power"]
    assert found["witnesses"]["membership_plain"]["power"] < conclusion.POWER
    assert found["witnesses"]["membership_plain"]["word"] != "refuted"
    assert found["conclusion"]["word"] == "not tested"
    assert "would have seen a quarter" in found["conclusion"]["text"]


def test_the_worst_variant_pays_for_the_choice():
    seed = Images(7).seed_of(0.15)
    statistic = AUDITS["resurfacing"].statistics["difference"]
    witness = dataclasses.replace(AUDITS["resurfacing"], statistics={"difference": statistic})
    row = panel.rows({"resurfacing": witness}, [seed], **SETTINGS)["resurfacing"]
    scored = panel.scores(witness, seed)
    found = {v: gap.compare(statistic, [m], **SETTINGS) for v, m in scored.items()}
    apart, noise = (np.array([np.mean([f[k] for f in found.values()])]) for k in ("apart", "noise"))
    between = gap.between_models(apart, noise)
    ps = {v: gap.test(f, between)["p_value"] for v, f in found.items()}
    assert len(ps) == 2 and row["p_value"] == pytest.approx(2 * min(ps.values()))
    assert row["variant"] == min(ps, key=ps.get) and 0 < row["p_value"] < 1


def test_the_gate_is_the_auroc_on_the_same_images():
    seed = Images(4).seed_of()
    a, b = (np.log(m["loss/forget"][:, 0]) for m in (seed.original, seed.retrained))
    gate = judge(seed, {"forget_error": AUDITS["forget_error"]})["gate"]
    assert gate["value"] == pytest.approx((a[:, None] < b).mean()) and gate["passed"]


def few(images, k, known):
    """The same, with k forget images."""

    def cut(model):
        kept = {key: v for key, v in model.items() if not key.startswith("backdoor")}
        return {key: v[:k] if key.endswith("/forget") else v for key, v in kept.items()}

    seed = images.seed_of(known)
    return panel.Seed(*map(cut, seed[:3]), [cut(m) for m in seed.further])


def test_few_images_get_an_answer_each():
    images = Images(5, n=1500)
    found = judge(few(images, 5, 1.0))
    assert found["conclusion"]["word"] == "refuted" and "exact tests" in found["conclusion"]["text"]
    assert found["images"]["rows"] == [0, 1, 2, 3, 4]
    for name, test in found["images"]["tests"].items():
        assert max(test["p_holm"]) <= 0.05, name
    assert found["witnesses"]["forget_error"]["word"] == "no power"
    clean = judge(few(images, 5, 0.0))
    assert clean["conclusion"]["word"] == "not tested"  # a quarter would not be seen
    assert min(clean["images"]["tests"]["resurfacing"]["p_holm"]) > 0.05


def test_p_values_of_images_are_exact():
    """For images as unseen ones, P(p <= t) <= t; by brute force for one image."""
    seed = few(Images(6, n=300), 3, 0.4)
    tests = panel.images(AUDITS, seed)["tests"]
    scores = panel.scores(AUDITS["membership_calibrated"], seed)[""].unlearned
    for p, score in zip(tests["membership_calibrated"]["p_values"], scores.forget, strict=True):
        assert p == (1 + (scores.unseen >= score).sum()) / 301
    both = panel.scores(AUDITS["resurfacing"], seed).values()
    ps = [
        [(1 + (of.unseen >= x).sum()) / 301 for x in of.forget]
        for of in (m.unlearned for m in both)
    ]
    np.testing.assert_allclose(tests["resurfacing"]["p_values"], np.minimum(1, 2 * np.min(ps, 0)))
    ps = []
    for k in range(150):
        tests = panel.images(AUDITS, few(Images(100 + k, n=40), 4, 0.0))["tests"].values()
        ps.append(min(min(t["p_holm"]) for t in tests) <= 0.1)
    assert stats.binomtest(sum(ps), 150, 0.1, alternative="greater").pvalue > 0.05
