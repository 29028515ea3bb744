"""Membership by the loss alone."""

from unlearn_jax.audit.witness import MEMBERSHIP, Scores, log_loss, witness


@witness(
    family="recall",
    label="Membership, loss alone",
    unit="AUROC, forget against unseen images",
    statistics=MEMBERSHIP,
)
def membership_plain(model, references):
    """Guess that images with a small training loss were trained on.

    Guarantee: AUROC .5 for a model that saw neither set, if the request is random.
    Power: low: how hard an image is differs more than what is remembered of it.
    Cost: one pass over the images.
    Source: Yeom et al. 2018 (arXiv 1709.01604).
    """
    del references
    return {"": Scores(*(-log_loss(model[f"loss/{s}"]) for s in ("forget", "unseen")))}
