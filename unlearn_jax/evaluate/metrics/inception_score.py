"""Inception Score: how sure a classifier is of images, and how many classes it sees in them."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, PRNGKeyArray
from scipy.special import entr, log_softmax

from unlearn_jax.registry import UserError

SPLIT_ORDERS = ("class_grouped", "shuffled")


class Sums(NamedTuple):
    """Sums of each split: images, p, and p log p over images and classes."""

    n: Int[np.ndarray, "s"]
    p: Float[np.ndarray, "s c"]
    p_log_p: Float[np.ndarray, "s"]


def assignment(
    n: int, splits: int = 10, *, order: str = "class_grouped", key: PRNGKeyArray | None = None
) -> Int[np.ndarray, "n"]:
    """Assign a split to each position 0..n-1; -1 to the last n % splits, which belong to none.

    "class_grouped": consecutive blocks of n // splits. Where the stream lists one class after the
    other, a block has few classes and the score is bounded by their number: about 10 for 5,000
    images of 100 classes. That is how Li et al. score MAGE (protocol 5.3). "shuffled": the same
    blocks of a random order, which the key decides.

    Raises:
      UserError: an unknown order, "shuffled" without key, or fewer images than splits.
    """
    if order not in SPLIT_ORDERS:
        raise UserError(f"is_split_order: expected one of {SPLIT_ORDERS}, got {order!r}.")
    if not 1 <= splits <= n:
        raise UserError(
            f"Inception Score: expected 1 to {n} splits of {n} images, got {splits}. Take fewer "
            "splits or more images."
        )
    split = np.arange(n) // (n // splits)
    split = np.where(split < splits, split, -1)
    if order == "class_grouped":
        return split
    if key is None:
        raise UserError('is_split_order: "shuffled" needs a key.')
    return split[np.asarray(jax.random.permutation(key, n))]


def empty(classes: int, splits: int = 10) -> Sums:
    """Return the sums of no images."""
    return Sums(np.zeros(splits, np.int64), np.zeros((splits, classes)), np.zeros(splits))


def update(
    sums: Sums,
    logits: Float[np.ndarray, "b c"],
    split: Int[np.ndarray, "b"],
    valid: Bool[np.ndarray, "b"],
) -> Sums:
    """Add the valid rows to the sums, each to its split (-1: to none)."""
    kept = valid & (split >= 0)
    log_p = log_softmax(np.float64(logits[kept]), axis=1)
    p, split = np.exp(log_p), split[kept]
    n, sum_p, p_log_p = (part.copy() for part in sums)
    np.add.at(n, split, 1)
    np.add.at(sum_p, split, p)
    np.add.at(p_log_p, split, (p * log_p).sum(1))
    return Sums(n, sum_p, p_log_p)


def merge(a: Sums, b: Sums) -> Sums:
    """Merge the sums of two processes."""
    return Sums(*(x + y for x, y in zip(a, b, strict=True)))


def score(sums: Sums) -> dict[str, float]:
    """Score: {"mean", "std", "splits", "n"} over splits of exp(mean over images of KL(p

    mean p)).

    From 1 (the same prediction for every image) to the number of classes (sure, and all classes
    alike); std is the population's, as everybody reports it.

    Raises:
      UserError: a split without images; logits that were not finite.

    Source: Salimans et al., "Improved techniques for training GANs", arXiv 1606.03498.
    """
    if not sums.n.all():
        raise UserError(
            f"Inception Score: expected images in all splits, got {sums.n.tolist()}. Was the "
            "stream complete?"
        )
    q = sums.p / sums.n[:, None]
    scores = np.exp(sums.p_log_p / sums.n + entr(q).sum(1))
    if not np.isfinite(scores).all():
        raise UserError("Inception Score: the classifier's outputs are not finite numbers.")
    return {
        "mean": float(scores.mean()),
        "std": float(scores.std()),
        "splits": len(scores),
        "n": int(sums.n.sum()),
    }
