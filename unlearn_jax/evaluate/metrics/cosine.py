"""Cosine of an image's embedding and that of its original, per pair and in the mean."""

from typing import Any

import numpy as np
from jaxtyping import Float

from unlearn_jax.evaluate.metrics.reconstruction import interval
from unlearn_jax.registry import UserError


def paired(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n"]:
    """Compute the cosine of row i of a and row i of b, -1 to 1; 1 for equal directions.

    Raises:
      UserError: a row that is zero or not finite.
    """
    a, b = np.float64(a), np.float64(b)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if bad.size:
        raise UserError(
            f"Cosine: {bad.size} of {len(a)} pairs have an embedding that is zero or not finite, "
            f"the first in row {bad[0]}."
        )
    return (a * b).sum(1) / lengths


def summary(
    values: Float[np.ndarray, "n"], *, confidence: float, resamples: int, seed: int
) -> dict[str, Any]:
    """Summarise the cosines: {"mean", "ci_low", "ci_high", "n"}, bootstrap over examples.

    Higher is closer to the original. Unlike a distance of distributions it needs every image's own
    original, and its mean has no bias from the number of images.
    """
    return interval(values, confidence=confidence, resamples=resamples, seed=seed)
