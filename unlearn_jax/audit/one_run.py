"""A lower bound of epsilon from one run: which image of each pair was trained on, and forgotten?

In a pair, one image is to be forgotten and one was never trained on. If chance alone decided which
of the two it is, each pair is a canary with a fair coin, tossed before training: so it is where the
program drew both sets at random from the same images, within the pair's class. Whoever guesses
coins better than by chance, from the released model, bounds its epsilon from below.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from unlearn_jax.audit.statistics import clopper_pearson_lower, one_run_p_value
from unlearn_jax.audit.witness import Measured, References, calibrated

GUESSED = (1.0, 0.25)  # shares of the pairs, the surest, of which one bound each is made
SIGNIFICANCE = 0.05  # of all bounds together
LEAST = 20  # pairs


def lacking(cfg: ConfigDict) -> str:
    """Return why a request has no fair coins; "" if it has some."""
    if cfg.request.kind == "random" and not cfg.holdout.split:
        return ""
    return (
        "only if chance alone decides which images are to be forgotten and which are never trained "
        "on: set request.kind to random and holdout.split to '', before the original is trained"
    )


def pairs(
    forget: Int[np.ndarray, "m"], unseen: Int[np.ndarray, "n"], seed: int
) -> Int[np.ndarray, "k 2"]:
    """Pair images of one class at random, as many as there are of both: places in either set.

    Args:
      forget: the class of each forget image.
      unseen: the class of each unseen image.
      seed: of the pairing.
    """
    rng, found = np.random.default_rng([seed, 4]), []
    for label in np.intersect1d(forget, unseen):
        both = [rng.permutation(np.flatnonzero(of == label)) for of in (forget, unseen)]
        found += list(zip(*both, strict=False))
    return np.array(found, int).reshape(-1, 2)


def epsilon(pairs: int, guesses: int, correct: int, significance: float, delta: float) -> float:
    """Bound epsilon from below by guesses of fair coins, in nats: the largest that is refuted.

    Without delta it is the logit of Clopper and Pearson's lower bound of the share that is correct;
    with it, `one_run_p_value` is inverted by bisection. 0 without evidence.
    """
    low, high = 0.0, 64.0
    share = clopper_pearson_lower(correct, guesses, significance)
    if share <= 0.5 or one_run_p_value(pairs, guesses, correct, 0.0, delta) > significance:
        return 0.0
    if not delta:
        return math.log(share / (1 - share))
    for _ in range(60):
        middle = (low + high) / 2
        refuted = one_run_p_value(pairs, guesses, correct, middle, delta) <= significance
        low, high = (middle, high) if refuted else (low, middle)
    return low


def bound(
    margins: Float[np.ndarray, "k"], delta: float = 0.0, significance: float = SIGNIFICANCE
) -> dict[str, Any]:
    """Bound epsilon by the surest guesses of each share in `GUESSED`; the best of them counts.

    {"epsilon", "pairs", "guesses", "correct", "could_show", "delta", "significance"}. How sure a
    guess is must not depend on the coin: it is |margin|. `could_show`: the largest bound that so
    many pairs could have given, all guesses being right. A tie is a wrong guess.

    Args:
      margins: score of the forget image minus that of the unseen one, of each pair.
      delta: of the claim, within [0, 1).
      significance: of all bounds together.
    """
    order, found = np.argsort(-np.abs(margins), kind="stable"), []
    for share in GUESSED:
        guesses = max(1, round(share * len(margins)))
        correct = int((margins[order[:guesses]] > 0).sum())
        level = significance / len(GUESSED)
        values = [epsilon(len(margins), guesses, x, level, delta) for x in (correct, guesses)]
        found.append((values[0], guesses, correct, values[1]))
    best, guesses, correct, _ = max(found)
    values = {"epsilon": best, "pairs": len(margins), "guesses": guesses, "correct": correct}
    most = max(of[-1] for of in found)
    return values | {"could_show": most, "delta": delta, "significance": significance}


def of_request(
    cfg: ConfigDict, labels: Int[np.ndarray, "_"], model: Measured, outs: Sequence[Measured]
) -> dict[str, Any]:
    """Bound epsilon of the unlearned model, see `bound`; without coins {"epsilon": None, "reason"}.

    Args:
      cfg: of the request.
      labels: of all images.
      model: measured of the released model.
      outs: of models that saw neither image of any pair.
    """
    reason = lacking(cfg)
    rows = [model[f"index/{name}"] for name in ("forget", "unseen")]
    chosen = pairs(*(labels[of] for of in rows), cfg.request.seed)
    if not reason and len(chosen) < LEAST:
        reason = f"{len(chosen)} pairs; {LEAST} are needed: more images to forget, or to hold out"
    if reason:
        return {"epsilon": None, "reason": reason}
    scores = calibrated(model, References(outs), "loss/{}")
    return bound(scores.forget[chosen[:, 0]] - scores.unseen[chosen[:, 1]])
