"""What a witness is: what is measured of one model, scores of images, and a statistic of them.

Measuring needs the model, see `measure`. All that follows is numpy: scores of forget and of unseen
images, one statistic of both, and then `gap` compares models, whatever the witness.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

Measured = Mapping[str, np.ndarray]
Weights = Float[np.ndarray, "b _"]  # how often each image counts, in each of b resamples
FAMILIES = ("recall", "hidden", "information")  # the last one never counts


class Scores(NamedTuple):
    """Scores of images, larger = better known to the model.

    Attributes:
      forget: [m …] of forget images.
      unseen: [n …] of images that no model was trained on.
      paired: both are of the same images, in one order (a trigger shown and not shown).
    """

    forget: np.ndarray
    unseen: np.ndarray
    paired: bool = False


class References(NamedTuple):
    """Other models that an attacker may have trained.

    Attributes:
      outs: without the forget set; neither the model under audit nor the one it is compared with.
        (A further retrained model, whose scores are for the floor only, is one of its own.)
      ins: with it and with the unseen images. A likelihood ratio for each image needs 16 of both.
    """

    outs: Sequence[Measured] = ()
    ins: Sequence[Measured] = ()


Statistic = Callable[[np.ndarray, np.ndarray, Weights, Weights], Float[np.ndarray, "b"]]
Score = Callable[[Measured, References], Mapping[str, Scores] | str]


@dataclasses.dataclass(frozen=True)
class Witness:
    """One audit.

    Attributes:
      score: (measured of the model, references) -> scores by variant ("" if there is one), or why
        there are none, in words.
      family: of `FAMILIES`.
      label: a few words, for a table.
      unit: of its first statistic, in words.
      statistics: by name; the first is the witness's own, others are rows "witness.name".
      measure: (lab) -> (params, original) -> arrays, by name; None: what all witnesses share.
      needs_memory: whether it says something only where the original knew the images.
    """

    score: Score
    family: str
    label: str
    unit: str
    statistics: Mapping[str, Statistic]
    measure: Callable[[Any], Callable[..., dict[str, np.ndarray]]] | None = None
    needs_memory: bool = False


def witness(**fields: Any) -> Callable[[Score], Witness]:
    """Declare, as a decorator of a `Score`, the rest of a witness."""
    return lambda score: Witness(score=score, **fields)


def log_loss(loss: Float[np.ndarray, "n *k"]) -> Float[np.ndarray, "n"]:
    """Average the log of each image's losses over its draws: each draw has its own difficulty."""
    log = np.log(np.maximum(loss.astype(np.float64), 1e-12))
    return log.reshape(len(log), -1).mean(1)


def calibrated(
    model: Measured, references: References, key: str, sets: tuple[str, str] = ("forget", "unseen")
) -> Scores:
    """Score by log loss of other models minus that of the model (Watson et al. 2022).

    It takes out how hard an image is, which otherwise dominates. Without other models: -log loss.

    Args:
      model: measured of it.
      references: models without the forget images.
      key: of the losses, with "{}" in the place of the set.
      sets: names of the forget and of the unseen images.
    """

    def score(name):
        outs = [log_loss(out[key.format(name)]) for out in references.outs]
        return (np.mean(outs, axis=0) if outs else 0.0) - log_loss(model[key.format(name)])

    return Scores(*map(score, sets))


# Statistics. Weights are counts of a resample; all ones give the sample itself.


def mean_difference(forget, unseen, of_forget, of_unseen):
    """Subtract the mean score of unseen images from that of forget images."""
    return of_forget @ forget / of_forget.sum(1) - of_unseen @ unseen / of_unseen.sum(1)


def auroc(forget, unseen, of_forget, of_unseen):
    """Compute P(forget score > unseen score), ties count half (Mann-Whitney)."""
    order = np.argsort(unseen, kind="stable")
    below = np.pad(np.cumsum(of_unseen[:, order], axis=1), ((0, 0), (1, 0)))
    first, last = (np.searchsorted(unseen[order], forget, side) for side in ("left", "right"))
    wins = ((below[:, first] + below[:, last]) / 2 * of_forget).sum(1)
    return wins / (of_forget.sum(1) * of_unseen.sum(1))


def tpr_at_1_fpr(forget, unseen, of_forget, of_unseen, fpr=0.01):
    """Compute the share of forget images above all but 1 % of the unseen ones; ties count out."""
    falling = np.sort(unseen)[::-1]
    weights = of_unseen[:, np.argsort(unseen, kind="stable")[::-1]]
    above = np.pad(np.cumsum(weights, axis=1), ((0, 0), (1, 0)))
    above = above[:, np.searchsorted(-falling, -falling, "left")]  # strictly above each score
    most = fpr * of_unseen.sum(1, keepdims=True) + 1e-9
    thresholds = falling[(above <= most).sum(1) - 1]
    order = np.argsort(forget, kind="stable")[::-1]
    hits = np.pad(np.cumsum(of_forget[:, order], axis=1), ((0, 0), (1, 0)))
    counts = np.searchsorted(-forget[order], -thresholds, "left")
    return hits[np.arange(len(hits)), counts] / of_forget.sum(1)


WORDS = {  # of a statistic that is not a witness's first: (in a label, its unit)
    "auroc": ("AUROC", "P(forget scores above unseen, or triggered above clean)"),
    "tpr_at_1_fpr": ("TPR at 1 % FPR", "share of forget images found at 1 % false positives"),
    "correlation": ("correlation", "correlation of the mean change with the way to the payload"),
}
MEMBERSHIP = {"auroc": auroc, "tpr_at_1_fpr": tpr_at_1_fpr}
