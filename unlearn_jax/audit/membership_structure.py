"""Membership by the structure of the completion, whatever its colours."""

from unlearn_jax.audit.witness import MEMBERSHIP, calibrated, witness


@witness(
    family="recall",
    label="Membership, structure",
    unit="AUROC of the share of the hole's variance that the completion does not explain linearly",
    statistics=MEMBERSHIP,
)
def membership_structure(model, references):
    """Fit the colours of each completion to the truth, and guess from what is left.

    A completion that is shifted, faded or inverted has the error of a guess, and shows the image.

    Guarantee: AUROC .5 for a model that saw neither set, if the request is random.
    Power: that of the calibrated loss where colours were changed; low where completions are smooth.
    Cost: none, it is computed of the completions that others need.
    Source: this package.
    """
    return {"": calibrated(model, references, "structure/{}")}
