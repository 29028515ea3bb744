"""Membership by the loss on noisy copies of the visible part."""

import jax
import jax.numpy as jnp

from unlearn_jax.audit.witness import MEMBERSHIP, calibrated, witness

COPIES, NOISE = 6, 0.1  # of each image; standard deviation, images are in [-1, 1]


def losses_of_copies(lab):
    """Return (params, batch) -> the loss on noisy copies, [b 6]; noise is by index."""

    def losses(params, batch):
        def copy(k):
            keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(lab.key, k), i))
            shape = batch["image"].shape[1:]
            noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys(batch["index"]))
            image = batch["image"] + NOISE * noise * (1 - batch["mask"])
            return lab.losses_of(params, {**batch, "image": image.clip(-1, 1)}, (k,))[:, 0]

        return jnp.stack([copy(k) for k in range(COPIES)], 1)

    return losses


def measure(lab):
    """Return (params, original) -> the loss on noisy copies, "noise/SET" [n 6]."""
    compiled = lab.jit(losses_of_copies(lab))
    return lambda params, original: lab.over("noise", compiled, params)


@witness(
    family="recall",
    label="Membership, noise-averaged",
    unit="AUROC of the mean log loss over six noisy copies of the visible part",
    statistics=MEMBERSHIP,
    measure=measure,
)
def membership_noise(model, references):
    """Average the loss over copies with noise in the visible part.

    What was learned by heart reaches a neighbourhood of the image; what is luck does not.

    Guarantee: AUROC .5 for a model that saw neither set, if the request is random.
    Power: above that of a single loss where a method has fitted the loss on the image itself.
    Cost: six passes over the images.
    Source: as in attacks by augmentation, Choquette-Choo et al. 2021 (arXiv 2007.14321).
    """
    return {"": calibrated(model, references, "noise/{}")}
