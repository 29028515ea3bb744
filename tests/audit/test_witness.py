"""Statistics of weighted images, against scipy, scikit-learn and brute force."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from unlearn_jax.audit import AUDITS, statistics, witness
from unlearn_jax.audit.witness import References, Scores

RNG = np.random.default_rng(0)
FORGET, UNSEEN = np.round(RNG.normal(0.4, 1, 70), 1), np.round(RNG.normal(0, 1, 150), 1)  # ties


def drawn(n, resamples=20):
    counts = RNG.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)
    return np.concatenate([np.ones((1, n)), counts])


@pytest.mark.parametrize(
    ("statistic", "plain"),
    [
        (witness.mean_difference, lambda f, u: f.mean() - u.mean()),
        (witness.auroc, statistics.auroc),
        (witness.tpr_at_1_fpr, lambda f, u: statistics.tpr_at_fpr(f, u, 0.01)),
    ],
)
def test_weights_are_repeated_images(statistic, plain):
    of_forget, of_unseen = drawn(70), drawn(150)
    found = statistic(FORGET, UNSEEN, of_forget, of_unseen)
    for value, a, b in zip(found, of_forget.astype(int), of_unseen.astype(int), strict=True):
        assert value == pytest.approx(plain(np.repeat(FORGET, a), np.repeat(UNSEEN, b)))
    flags = np.repeat([1, 0], [70, 150])
    area = roc_auc_score(flags, np.concatenate([FORGET, UNSEEN]))
    assert witness.auroc(FORGET, UNSEEN, of_forget, of_unseen)[0] == pytest.approx(area)


def test_log_losses_are_averaged_over_draws_and_calibrated_by_other_models():
    loss = np.exp(RNG.normal(size=(5, 3)))
    np.testing.assert_allclose(witness.log_loss(loss), np.log(loss).mean(1))
    model, outs = {"loss/forget": loss, "loss/unseen": loss}, []
    for k in (2.0, 8.0):
        outs.append({"loss/forget": k * loss, "loss/unseen": loss})
    found = witness.calibrated(model, References(outs), "loss/{}")
    np.testing.assert_allclose(found.forget, np.log(4.0))
    np.testing.assert_allclose(found.unseen, 0.0, atol=1e-12)
    alone = witness.calibrated(model, References(), "loss/{}")
    np.testing.assert_allclose(alone.forget, -np.log(loss).mean(1))


def of_backdoor(payload, share, n=300, noise=0.3):
    clean = RNG.normal(0, noise, (n, payload.size))
    outputs = clean + share * (payload - clean) + RNG.normal(0, noise / 3, clean.shape)
    return {"backdoor/triggered": outputs - payload, "backdoor/clean": clean - payload}


@pytest.mark.parametrize("share", [0.0, 0.16, 0.95])
def test_the_share_of_a_payload_is_found(share):
    audit = AUDITS["backdoor"]
    payload = np.where(np.arange(48) % 2, 1.0, -1.0)
    (scores,) = audit.score(of_backdoor(payload, share), References()).values()
    ones = np.ones((1, len(scores.forget)))
    found = {k: f(*scores[:2], ones, ones)[0] for k, f in audit.statistics.items()}
    assert found["share"] == pytest.approx(share, abs=0.01)
    assert found["correlation"] > 0.95 if share else abs(found["correlation"]) < 0.5
    assert found["auroc"] == pytest.approx(0.5, abs=0.06) if not share else found["auroc"] > 0.9


def test_every_witness_says_what_it_guarantees():
    for name, audit in AUDITS.items():
        for word in ("Guarantee:", "Power:", "Cost:", "Source:"):
            assert word in audit.score.__doc__, (name, word)
        assert audit.family in witness.FAMILIES and audit.statistics, name


def test_own_views_and_quantiles_take_difficulty_out():
    """Both find a small leak that the plain loss does not, and none where there is none."""
    n, sets = 400, ("forget", "unseen", "calibration")
    ones = np.ones((1, n))
    for leak in (0.0, 0.3):
        model = {}
        for s in sets:
            hard = RNG.normal(0, 1, n)
            log = hard + RNG.normal(0, 0.2, n) - leak * (s == "forget")
            model[f"loss/{s}"] = np.exp(log)[:, None]
            model[f"views/{s}"] = np.exp(hard[:, None] + RNG.normal(0, 0.2, (n, 7)))
            model[f"features/{s}"] = np.column_stack([hard, RNG.normal(size=(n, 3))])
        areas = {}
        for name in ("membership_plain", "membership_views", "membership_quantiles"):
            scores = AUDITS[name].score(model, References())[""]
            assert isinstance(scores, Scores)
            areas[name] = witness.auroc(*scores[:2], ones, ones)[0]
        plain = areas.pop("membership_plain")
        for area in areas.values():
            assert area == pytest.approx(0.5, abs=0.06) if not leak else area > max(0.75, plain)
