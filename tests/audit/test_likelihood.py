"""Likelihood ratios of each image: an independent formula, and planted leaks of known size."""

import numpy as np
import pytest
from scipy import stats

from unlearn_jax.audit import gap, panel
from unlearn_jax.audit.membership_likelihood import LEAST, log_ratio, membership_likelihood
from unlearn_jax.audit.witness import References

N = 150


def population(rng, k, known):
    """Measured of k models: images differ in difficulty, in memory, and in how much they vary."""
    images = np.random.default_rng(7)
    hard, sd = images.normal(0, 1, (2, N)), images.uniform(0.1, 0.6, (2, N))
    memory = images.uniform(0.3, 1.5, N)

    def one():
        logs = hard + sd * rng.normal(size=(2, N)) - np.array([memory, memory]) * known
        return {
            f"loss/{s}": np.exp(x)[:, None] for s, x in zip(("forget", "unseen"), logs, strict=True)
        }

    return [one() for _ in range(k)]


def remembers(rng, share):
    """A model that knows so many of the forget images as if it had been trained with them."""
    (seen,), (other,) = population(rng, 1, 1.0), population(rng, 1, 0.0)
    known = np.arange(N) < share * N
    return other | {
        "loss/forget": np.where(known[:, None], seen["loss/forget"], other["loss/forget"])
    }


def test_it_is_the_ratio_of_two_normal_densities():
    rng = np.random.default_rng(0)
    loss, ins, outs = rng.normal(size=5), rng.normal(-1, 0.5, (20, 5)), rng.normal(1, 2, (17, 5))
    for i, found in enumerate(log_ratio(loss, ins, outs)):
        densities = []
        for of in (ins[:, i], outs[:, i]):
            mean = sum(of) / len(of)
            variance = sum((x - mean) ** 2 for x in of) / (len(of) - 1)
            density = np.exp(-((loss[i] - mean) ** 2) / (2 * variance))
            densities.append(density / np.sqrt(2 * np.pi * variance))
        assert found == pytest.approx(np.log(densities[0] / densities[1]))


def test_too_few_models_are_one_line():
    rng = np.random.default_rng(1)
    models = population(rng, LEAST, 1.0)
    score = membership_likelihood.score
    assert "16 models trained with all these images and 15 without" in score(
        models[0], References(models[1:], models)
    )
    assert "0 models trained with" in score(models[0], References(models))
    assert isinstance(score(models[0], References(models, models)), dict)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_a_planted_leak_is_found_and_its_images_are_named(share):
    """At 1 % false positives a tenth of the images that stayed is found; the loss alone fails."""
    rng, repeats = np.random.default_rng(2), 60
    ins, outs = population(rng, 32, 1.0), population(rng, 32, 0.0)
    statistic, hits, plain, named = membership_likelihood.statistics["tpr_at_1_fpr"], [], [], []
    for _ in range(repeats):
        model = remembers(rng, share)
        scores = membership_likelihood.score(model, References(outs, ins))[""]
        hits.append(gap.values(statistic, scores, 0, 0)[0])
        alone = scores._replace(
            **{k: -np.log(model[f"loss/{k}"][:, 0]) for k in ("forget", "unseen")}
        )
        plain.append(gap.values(statistic, alone, 0, 0)[0])
        named += np.argsort(-scores.forget)[:5].tolist()
    if share == 0.0:  # 1 % by chance; exact over all images of all models
        total = round(sum(hits) * N)
        assert stats.binomtest(total, N * repeats, 0.01, alternative="greater").pvalue > 1e-3
    else:
        assert np.mean(hits) > 0.4 * share and np.mean(hits) > 3 * np.mean(plain)
        assert np.mean(np.array(named) < share * N) > 0.6  # by chance a tenth


def test_worst_images_are_by_likelihood_ratio_where_there_is_one():
    assert panel.CHOSEN["recall"][0] == "membership_likelihood"
