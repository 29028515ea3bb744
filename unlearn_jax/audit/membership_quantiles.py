"""Membership by the loss against what is usual for images that look like it."""

import numpy as np

from unlearn_jax.audit.witness import MEMBERSHIP, Scores, log_loss, witness
from unlearn_jax.methods.features import features

LEVELS = (0.25, 0.5, 0.75)
LEAST, MOST = 50, 1000  # calibration images for the fit


def measure(lab):
    """Return (params, original) -> "features/SET" [n 8], which depend on the images only."""
    compiled = lab.jit(features)
    sets = ("forget", "unseen", "calibration")
    return lambda params, original: lab.over("features", compiled, sets=sets)


@witness(
    family="recall",
    label="Membership, quantile regression",
    unit="AUROC of the log loss below its conditional median, in conditional quartile ranges",
    statistics=MEMBERSHIP,
    measure=measure,
)
def membership_quantiles(model, references):
    """Fit the law of the log loss given what anybody sees of an image; guess from the rank in it.

    Linear quantile regression on calibration images, for quartiles and median.

    Guarantee: AUROC .5 for a model that saw neither set, if the request is random.
    Power: between the plain loss and a calibrated one; no model is trained.
    Cost: seconds on the host.
    Source: Bertran et al. 2023 (arXiv 2307.03694).
    """
    from sklearn.linear_model import QuantileRegressor  # a second, which no other command waits for

    del references
    n = len(model.get("features/calibration", ()))
    if n < LEAST:
        return f"{n} calibration images, {LEAST} are needed to fit: a larger holdout"
    chosen = np.random.default_rng(0).permutation(n)[:MOST]
    known = model["features/calibration"][chosen].astype(np.float64)
    centre, scale = known.mean(0), known.std(0) + 1e-9
    own = {s: log_loss(model[f"loss/{s}"]) for s in ("forget", "unseen", "calibration")}
    fits = [
        QuantileRegressor(quantile=q, alpha=0.0, solver="highs").fit(
            (known - centre) / scale, own["calibration"][chosen]
        )
        for q in LEVELS
    ]
    least = 0.1 * np.subtract(*np.quantile(own["calibration"], (0.75, 0.25)))

    def score(name):
        x = (model[f"features/{name}"].astype(np.float64) - centre) / scale
        low, middle, high = (fit.predict(x) for fit in fits)
        return (middle - own[name]) / np.maximum(high - low, max(least, 1e-9))

    return {"": Scores(score("forget"), score("unseen"))}
