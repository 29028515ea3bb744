"""The word on earlier requests, against AUROCs that are known by construction."""

import numpy as np
import pytest
from scipy import stats

from unlearn_jax.audit import earlier


def measured(shift, n, seed):
    """Log-normal errors, the earlier set's smaller by `shift`: the AUROC is Phi(shift / √2)."""
    rng = np.random.default_rng(seed)
    errors = {
        "error/unseen": rng.lognormal(0, 1, n),
        "error/earlier0": rng.lognormal(-shift, 1, n),
    }
    return {key: value.astype(np.float32) for key, value in errors.items()}


def judged(unlearned, retrained, n=4000, confidence=0.95):
    models = {"original": 2.0, "unlearned": unlearned, "retrained": retrained}
    made = {m: measured(shift, n, seed=i) for i, (m, shift) in enumerate(models.items())}
    (found,) = earlier.still_forgotten(made, ["Forget it."], confidence)
    return found


def test_the_auroc_is_that_of_the_distributions():
    found = judged(0.5, 0.0, confidence=0.999)
    for name, shift in (("original", 2.0), ("unlearned", 0.5), ("retrained", 0.0)):
        assert found["models"][name] == pytest.approx(stats.norm.cdf(shift / 2**0.5), abs=0.02)
    gap = stats.norm.cdf(0.5 / 2**0.5) - 0.5
    assert found["difference"]["value"] == pytest.approx(gap, abs=0.02)
    assert found["difference"]["ci_low"] < gap < found["difference"]["ci_high"]


@pytest.mark.parametrize(
    ("unlearned", "n", "word"),
    [
        (0.0, 4000, "still forgotten"),
        (-0.5, 4000, "still forgotten"),  # harder than for a model that never saw them
        (0.5, 4000, "returned"),
        (2.0, 40, "returned"),
        (0.2, 40, "unclear"),  # neither shown
    ],
)
def test_words(unlearned, n, word):
    assert judged(unlearned, 0.0, n)["word"] == word


def test_too_few_images_give_no_answer():
    found = judged(2.0, 0.0, n=29)
    assert found["word"] == "unclear" and "30 of each needed" in found["reason"]
    assert "difference" not in found and judged(2.0, 0.0, n=30)["word"] == "returned"
