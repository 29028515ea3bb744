"""Membership of each image alone: how its loss is distributed in models with it and without it.

No command trains the models that this witness needs, so it is not in `AUDITS`: who has them names
it in `audit.own`, see docs/audits.md.
"""

import numpy as np
import scipy

from unlearn_jax.audit.witness import MEMBERSHIP, Scores, log_loss, witness

LEAST = 16  # models of each side: with fewer, a variance for each image is mostly chance


def log_ratio(loss, ins, outs):
    """Compute log N(x; in) - log N(x; out), x the log loss, a normal law for each image.

    Args:
      loss: [n], of the model.
      ins: [k n], of models trained with the images.
      outs: [l n], of models trained without them.

    Returns:
      [n], larger = better known.
    """
    laws = [(of.mean(0), np.maximum(of.std(0, ddof=1), 1e-6)) for of in (ins, outs)]
    known, unknown = (scipy.stats.norm.logpdf(loss, mean, sd) for mean, sd in laws)
    return known - unknown


@witness(
    family="recall",
    label="Membership, likelihood ratio",
    unit="AUROC of each image's likelihood ratio, models with it against models without it",
    statistics=MEMBERSHIP,
)
def membership_likelihood(model, references):
    """Compare an image's loss with what it is in models trained with it, and without it.

    Guarantee: AUROC .5 for a model that saw neither set, if the request is random.
    Power: the highest of all, at few false positives above all; it finds the one image that stayed.
    Cost: 32 models or more, half of them with all forget and unseen images, half with none.
    Source: Carlini et al. 2022 (arXiv 2112.03570), online, one query, variances of each image.
    """
    counts = len(references.ins), len(references.outs)
    if min(counts) < LEAST:
        return (
            f"{counts[0]} models trained with all these images and {counts[1]} without; {LEAST} of "
            "both are needed, which no command trains"
        )

    def score(images):
        key = f"loss/{images}"
        ins, outs = (
            np.stack([log_loss(of[key]) for of in models])
            for models in (references.ins, references.outs)
        )
        return log_ratio(log_loss(model[key]), ins, outs)

    return {"": Scores(score("forget"), score("unseen"))}
