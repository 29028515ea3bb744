"""Whether the images of requests that were served before are still forgotten."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unlearn_jax.audit import gap, statistics
from unlearn_jax.audit.witness import log_loss

MARGIN = 0.05  # of the AUROC


def still_forgotten(
    models: Mapping[str, Mapping[str, np.ndarray]], texts: Sequence[str], confidence: float
) -> list[dict[str, Any]]:
    """Return, for each request that was served before, whether its images are still forgotten.

    The loss attack's AUROC of its images against unseen ones, for each model, and the difference
    unlearned minus retrained on the same images: "still forgotten" if the interval of the
    difference stays below 0.05, "returned" if it lies above 0, else "unclear".

    Args:
      models: what was measured of "original", "unlearned" and "retrained".
      texts: the requests in words, in the order of `earlier0`, `earlier1`, …
      confidence: of the intervals.
    """
    found = []
    for k, text in enumerate(texts):
        pairs = {
            name: tuple(-log_loss(of[f"error/{s}"]) for s in (f"earlier{k}", "unseen"))
            for name, of in models.items()
        }
        n = len(pairs["unlearned"][0])
        if min(n, len(pairs["unlearned"][1])) < gap.LEAST:
            reason = f"{n} images, and as many unseen ones; {gap.LEAST} of each needed"
            found.append({"text": text, "n": n, "word": "unclear", "reason": reason})
            continue
        difference = statistics.auroc_difference(pairs["unlearned"], pairs["retrained"], confidence)
        word = "returned" if difference["ci_low"] > 0 else "unclear"
        word = "still forgotten" if difference["ci_high"] < MARGIN else word
        aurocs = {name: statistics.auroc(*pair) for name, pair in pairs.items()}
        found.append(
            {"text": text, "n": n, "word": word, "difference": difference, "models": aurocs}
        )
    return found
