"""Membership by the loss, with how hard an image is taken out by another model."""

from unlearn_jax.audit.witness import MEMBERSHIP, calibrated, witness


@witness(
    family="recall",
    label="Membership, calibrated",
    unit="AUROC of the log loss of another model minus that of the model, forget against unseen",
    statistics=MEMBERSHIP,
)
def membership_calibrated(model, references):
    """Guess that images are known that another model, which never saw them, finds harder.

    Guarantee: AUROC .5 for a model that saw neither set, if the request is random.
    Power: high where images differ in difficulty.
    Cost: one pass, and a model trained by the attacker (here: retrained models of other seeds).
    Source: Watson et al. 2022 (arXiv 2111.08440).
    """
    if not references.outs:
        return "no second retrained model: set audit.shadows to 1 or more"
    return {"": calibrated(model, references, "loss/{}")}
