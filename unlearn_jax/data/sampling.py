"""Random rows with the class distribution of where they come from."""

import numpy as np
from jaxtyping import Int, Int64

Rows = Int64[np.ndarray, "_"]
Counts = dict[int, int]  # label -> number of rows
PICK = ("random", "first")


def sample_fraction(
    rows: Rows, labels: Int[np.ndarray, "_"], fraction: float, seeds: list[int]
) -> Rows:
    """Draw round(fraction * n) of the rows, every class within one row of its share."""
    shares = {c: fraction * n for c, n in count(labels[rows]).items()}
    counts = {c: int(share) for c, share in shares.items()}
    left = round(fraction * len(rows)) - sum(counts.values())
    by_remainder = sorted(shares, key=lambda c: (counts[c] - shares[c], c))
    for c in by_remainder[:left]:
        counts[c] += 1
    return sample(rows, labels, counts, seeds)


def sample(rows: Rows, labels: Int[np.ndarray, "_"], counts: Counts, seeds: list[int]) -> Rows:
    """Draw `counts[c]` rows of every class c at random; the result is sorted."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seeds)))
    parts = [rng.permutation(rows[labels[rows] == c])[:n] for c, n in counts.items()]
    return np.sort(np.concatenate(parts)) if parts else rows[:0]


def sample_per_class(rows: Rows, labels: Int[np.ndarray, "_"], n: int, seeds: list[int]) -> Rows:
    """Draw n rows of every class at random, or all where there are fewer; the result is sorted."""
    counts = {c: min(n, there) for c, there in count(labels[rows]).items()}
    return sample(rows, labels, counts, seeds)


def first_per_class(rows: Rows, labels: Int[np.ndarray, "_"], n: int) -> Rows:
    """Take the first n rows of every class, or all where there are fewer, in the rows' order."""
    of_class = labels[rows]
    order = np.argsort(of_class, kind="stable")
    starts = np.searchsorted(of_class[order], of_class[order])
    return rows[np.sort(order[np.arange(len(rows)) - starts < n])]


def count(labels: Int[np.ndarray, "_"]) -> Counts:
    """Count the rows of every label that occurs."""
    return dict(zip(*(a.tolist() for a in np.unique(labels, return_counts=True)), strict=True))
