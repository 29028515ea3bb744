"""Membership by how well the visible part is reconstructed."""

from unlearn_jax.audit.witness import MEMBERSHIP, calibrated, witness


@witness(
    family="recall",
    label="Membership, visible part",
    unit="AUROC of the error on the visible part",
    statistics=MEMBERSHIP,
)
def membership_visible(model, references):
    """Guess from what the model makes of the part that it was shown.

    Methods act on the part to be generated; nobody looks at the other.

    Guarantee: AUROC .5 for a model that saw neither set, if the request is random.
    Power: that of a method's blind spot; none in models that copy the visible part.
    Cost: one pass over the images.
    Source: this package.
    """
    if not model["visible/forget"].any():
        return "the model copies the visible part, or there is none"
    return {"": calibrated(model, references, "visible/{}")}
