"""Membership by the loss against that on the image's own mirrored and turned copies."""

import jax.numpy as jnp
import numpy as np

from unlearn_jax.audit.witness import MEMBERSHIP, Scores, log_loss, witness
from unlearn_jax.methods import goals

LEAST = 20  # images for the fit


def losses_of_views(lab):
    """Return (params, batch) -> the loss on mirrored and turned copies, [b 7] (3 if not square)."""

    def losses(params, batch):
        views = [{**batch, "image": view} for view in goals.views(batch["image"])]
        return jnp.stack([lab.losses_of(params, view, (0,))[:, 0] for view in views], 1)

    return losses


def measure(lab):
    """Return (params, original) -> the loss on mirrored and turned copies, "views/SET" [n 7]."""
    compiled = lab.jit(losses_of_views(lab))
    sets = ("forget", "unseen", "calibration")
    return lambda params, original: lab.over("views", compiled, params, sets=sets)


@witness(
    family="recall",
    label="Membership, own views",
    unit="AUROC of the residual of the log loss on those of the image's own views",
    statistics=MEMBERSHIP,
    measure=measure,
)
def membership_views(model, references):
    """Predict an image's loss from its mirrored and turned copies; guess from the residual.

    The regression is fitted on calibration images, which no one trained on.

    Guarantee: AUROC .5 for a model that saw neither set, if the request is random.
    Power: no second model is needed; low if the model was trained on such copies.
    Cost: eight passes over the images.
    Source: this package.
    """
    del references
    if len(model.get("views/calibration", ())) < LEAST:
        return f"fewer than {LEAST} calibration images to fit on: a larger holdout"

    def design(name):
        log = np.log(np.maximum(model[f"views/{name}"].astype(np.float64), 1e-12))
        return np.column_stack([log, np.ones(len(log))])

    own = {s: log_loss(model[f"loss/{s}"]) for s in ("forget", "unseen", "calibration")}
    fit = np.linalg.lstsq(design("calibration"), own["calibration"], rcond=None)[0]
    return {"": Scores(*(design(s) @ fit - own[s] for s in ("forget", "unseen")))}
