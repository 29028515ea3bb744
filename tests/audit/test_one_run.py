"""Bounds of epsilon from one run: closed form, fair coins, and responses of known epsilon."""

import functools
import math

import numpy as np
import pytest
from scipy import optimize, stats

from configs import quickstart
from unlearn_jax.audit import one_run


def test_without_delta_it_is_the_closed_form_and_with_a_tiny_one_nearly_so():
    for pairs, correct in ((50, 50), (200, 140), (1000, 600)):
        found = one_run.epsilon(pairs, pairs, correct, 0.05, 0.0)
        # the epsilon at which so many right guesses have a probability of .05
        law = functools.partial(stats.binom.sf, correct - 1, pairs)
        expected = optimize.brentq(lambda e, law=law: law(1 / (1 + math.exp(-e))) - 0.05, 0, 20)
        assert found == pytest.approx(expected, rel=1e-6)
        assert one_run.epsilon(pairs, pairs, correct, 0.05, 1e-9) == pytest.approx(found, rel=1e-3)
        assert one_run.epsilon(pairs, pairs, correct, 0.05, 1e-3) < found
    assert one_run.epsilon(50, 50, 50, 0.05, 0.0) == pytest.approx(
        math.log(0.05 ** (1 / 50) / (1 - 0.05 ** (1 / 50)))
    )
    assert one_run.epsilon(100, 100, 52, 0.05, 0.0) == 0


def test_fair_coins_seldom_give_a_bound_and_a_leak_of_known_size_does():
    rng, n = np.random.default_rng(0), 400
    sure = rng.exponential(1, (n, 200))
    chance = [one_run.bound(x * rng.choice([-1, 1], 200))["epsilon"] > 0 for x in sure]
    assert stats.binomtest(sum(chance), n, 0.05, alternative="greater").pvalue > 0.05
    # randomised response: right with probability e^2 / (1 + e^2), a bound of more than 2 is wrong
    right = 1 / (1 + math.exp(-2.0))
    found = [one_run.bound(np.where(rng.random(200) < right, x, -x))["epsilon"] for x in sure]
    wrong = sum(e > 2.0 for e in found)
    assert stats.binomtest(wrong, n, 0.05, alternative="greater").pvalue > 0.05
    assert np.mean(found) > 1.3


def test_what_could_be_shown_is_said_beforehand_and_the_surest_guesses_are_made_first():
    margins = np.concatenate([np.full(50, 3.0), np.resize([-1.0, 1.0], 150)])
    found = one_run.bound(margins)
    assert (found["guesses"], found["correct"]) == (50, 50)
    assert found["epsilon"] == pytest.approx(one_run.epsilon(200, 50, 50, 0.025, 0.0))
    assert found["could_show"] == pytest.approx(one_run.epsilon(200, 200, 200, 0.025, 0.0))
    assert one_run.bound(np.zeros(100))["epsilon"] == 0  # ties are no guess


def test_pairs_are_of_one_class_and_of_different_images():
    forget, unseen = np.repeat([0, 1, 2], (5, 3, 4)), np.repeat([0, 1, 3], (4, 6, 5))
    found = one_run.pairs(forget, unseen, 0)
    assert len(found) == 4 + 3 and (forget[found[:, 0]] == unseen[found[:, 1]]).all()
    assert len(set(found[:, 0])) == len(set(found[:, 1])) == 7
    assert not np.array_equal(found, one_run.pairs(forget, unseen, 1))


def test_of_a_request_only_where_chance_has_chosen():
    cfg, rng, n = quickstart.get_config(), np.random.default_rng(0), 60
    loss = {
        "forget": np.exp(rng.normal(-2, 0.3, (n, 1))),
        "unseen": np.exp(rng.normal(0, 0.3, (n, 1))),
    }
    model = {f"loss/{s}": x for s, x in loss.items()}
    model |= {"index/forget": np.arange(n), "index/unseen": np.arange(n, 2 * n)}
    labels = np.zeros(2 * n, int)
    assert "holdout.split" in one_run.of_request(cfg, labels, model, [])["reason"]
    cfg.holdout.split = ""
    found = one_run.of_request(cfg, labels, model, [])
    assert (found["pairs"], found["correct"]) == (60, 60) and found["epsilon"] > 2.5
    hard = [{k: x.copy() for k, x in model.items()}]  # a model that finds the same ones easy
    assert one_run.of_request(cfg, labels, model, hard)["epsilon"] == 0
    cut = model | {f"{k}/forget": model[f"{k}/forget"][:10] for k in ("loss", "index")}
    assert "10 pairs; 20 are needed" in one_run.of_request(cfg, labels, cut, [])["reason"]
