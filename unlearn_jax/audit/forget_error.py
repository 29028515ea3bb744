"""Whether forget images are completed better than unseen ones."""

from unlearn_jax.audit.witness import Scores, log_loss, mean_difference, witness


@witness(
    family="recall",
    label="Forget error",
    unit="mean log training loss on unseen images minus that on forget images",
    statistics={"difference": mean_difference},
)
def forget_error(model, references):
    """Compare the training loss on forget images with the model's own on unseen images.

    Own unseen images are subtracted, so that a model that completes everything better (or worse)
    than a retrained one is not taken for one that remembers (or was damaged).

    Guarantee: for a random request, both sets are equally hard for a model that saw neither, so
    that its value is 0 up to the choice of images.
    Power: the highest of all for memory of many images; none for a method that fits the mean.
    Cost: one pass over the images.
    Source: Yeom et al. 2018, as a difference of means.
    """
    del references
    return {"": Scores(*(-log_loss(model[f"loss/{s}"]) for s in ("forget", "unseen")))}
