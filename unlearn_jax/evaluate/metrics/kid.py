"""Kernel distance (KID): squared maximum mean discrepancy of two sets of features, unbiased."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from unlearn_jax.registry import UserError

Features = Float[np.ndarray, "_ d"]

BLOCK = 1000  # images of a block, as published


class Blocks(NamedTuple):
    """The distances of the blocks that are full, and the rows of the one that is not."""

    x: Float[np.ndarray, "m d"]
    y: Float[np.ndarray, "m d"]
    filled: Int[np.ndarray, ""]
    values: Float[np.ndarray, "k"]


def mmd2(x: Features, y: Features, *, paired: bool = False) -> float:
    """Estimate MMD^2, unbiased, with the kernel (x . y / d + 1)^3; 0 in the mean for equal sets.

    It is negative as often as positive there. If row i of y belongs to row i of x (a completion and
    its original), only `paired` is unbiased, which leaves the pairs out of the cross term; with
    them, sets that are equal row by row would come out negative.

    Raises:
      UserError: not two sets of equally many features, 2 or more, of one length, all finite.

    Source: Bińkowski et al., "Demystifying MMD GANs", arXiv 1801.01401, section 4; paired: Gretton
    et al., "A kernel two-sample test", JMLR 2012, the U-statistic of Lemma 6.
    """
    if x.shape != y.shape or len(x) < 2:
        raise UserError(
            "Kernel distance: expected two sets of equally many features, 2 or more, got "
            f"{list(x.shape)} and {list(y.shape)}."
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise UserError("Kernel distance: expected finite features.")
    m = len(x)
    x, y = np.float64(x), np.float64(y)
    within = sum(_off_diagonal(_kernel(z, z)) for z in (x, y)) / (m * (m - 1))
    between = _kernel(x, y)
    if paired:
        return float(within - 2 * _off_diagonal(between) / (m * (m - 1)))
    return float(within - 2 * between.sum() / m**2)


def subsets(
    x: Features, y: Features, rows_x: Int[np.ndarray, "s m"], rows_y: Int[np.ndarray, "s m"]
) -> Float[np.ndarray, "s"]:
    """Compute MMD^2 of each pair of subsets.

    torch-fidelity and clean-fid compute KID so, from 100 subsets of 1,000.

    KID is their mean; torch-fidelity also gives their population standard deviation. Subsets
    overlap, so that is not a standard error.
    """
    return np.array([mmd2(x[i], y[j]) for i, j in zip(rows_x, rows_y, strict=True)])


def order(n: int, key: PRNGKeyArray) -> Int[np.ndarray, "n"]:
    """Order the positions 0..n-1 as blocks want their images, at random by the key."""
    return np.asarray(jax.random.permutation(key, n))


def empty(d: int, block_size: int) -> Blocks:
    """Return no block yet.

    Raises:
      UserError: a block would hold fewer than 2 rows.
    """
    if block_size < 2:
        raise UserError(f"Kernel distance: expected blocks of 2 or more, got {block_size}.")
    rows = np.zeros((block_size, d), np.float32)
    return Blocks(rows, rows, np.array(0), np.zeros(0))


def update(blocks: Blocks, x: Features, y: Features, valid: Bool[np.ndarray, "n"]) -> Blocks:
    """Add the valid rows to the blocks, pairs (x_i, y_i) in the order of the stream.

    Memory does not grow with the stream: of a full block only its `mmd2`, paired, is kept.
    """
    x, y = x[valid], y[valid]
    while len(x):
        filled = int(blocks.filled)
        taken = min(len(blocks.x) - filled, len(x))
        full_x, full_y = (
            np.concatenate([old[:filled], new[:taken], old[filled + taken :]])
            for old, new in ((blocks.x, x), (blocks.y, y))
        )
        filled, values = filled + taken, blocks.values
        if filled == len(full_x):
            filled, values = 0, np.append(values, mmd2(full_x, full_y, paired=True))
        blocks = Blocks(full_x, full_y, np.array(filled), values)
        x, y = x[taken:], y[taken:]
    return blocks


def merge(a: Blocks, b: Blocks) -> Blocks:
    """Merge the blocks of both; what is left over on both sides is filled into blocks, too."""
    a = a._replace(values=np.concatenate([a.values, b.values]))
    left = int(b.filled)
    return update(a, b.x[:left], b.y[:left], np.ones(left, bool))


def estimate(blocks: Blocks) -> dict[str, float | None]:
    """Estimate MMD^2 over disjoint blocks: {"mean", "std", "standard_error", "blocks", "n"}.

    The blocks are disjoint samples of the two distributions if the stream is in `order`: the mean
    is an unbiased estimate of MMD^2, std (n - 1 in the denominator) its spread for that block size,
    and std / sqrt(blocks) its standard error, both None for one block. torch-fidelity's mean
    over 100 overlapping subsets of 1,000 has the same expectation and less noise per subset size;
    its standard deviation is over subsets of the same images, and no standard error. Rows that do
    not fill a block are left out.

    Raises:
      UserError: not one block is full.
    """
    k, m = len(blocks.values), len(blocks.x)
    if not k:
        raise UserError(
            f"Kernel distance: expected {m} images or more (one block), got {int(blocks.filled)}. "
            "Take a smaller block_size."
        )
    std = float(blocks.values.std(ddof=1)) if k > 1 else None
    error = None if std is None else std / k**0.5
    mean = float(blocks.values.mean())
    return {"mean": mean, "std": std, "standard_error": error, "blocks": k, "n": k * m}


def _kernel(x: Features, y: Features) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _off_diagonal(matrix: np.ndarray) -> float:
    return matrix.sum() - np.trace(matrix)
