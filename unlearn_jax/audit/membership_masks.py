"""Membership by the loss where other parts of the image are to be generated."""

import numpy as np

from unlearn_jax.audit.witness import MEMBERSHIP, calibrated, witness

MASKS = 4  # of each image


def moved(masks, index, k, seed):
    """Move each mask [h w 1] by up to a quarter of the image, at random; every second k cuts it.

    Args:
      masks: [b h w 1], 1 = to be generated; what is moved out comes in on the other side.
      index: [b] of the images; with k and seed, it is all that a move depends on.
      k: which of `MASKS`; odd ones keep what is in two moved masks (if that is anything): smaller.
      seed: of the audit.
    """

    def one(mask, i):
        rng = np.random.default_rng([seed, int(i) % 2**32, k])  # padding has -1
        most = [max(1, side // 4) for side in mask.shape[:2]]
        moves = rng.integers(1, most, size=(2, 2), endpoint=True) * rng.choice((-1, 1), (2, 2))
        first, second = (np.roll(mask, move, (0, 1)) for move in moves)
        both = np.minimum(first, second)
        return both if k % 2 and both.any() else first

    return np.stack([one(*of) for of in zip(masks, index, strict=True)])


def loss_of_one_draw(lab):
    """Return (params, batch) -> the loss on the first draw, [b]."""
    return lambda params, batch: lab.losses_of(params, batch, (0,))[:, 0]


def measure(lab):
    """Return (params, original) -> the loss with other masks, "masks/SET" [n 4]."""
    compiled, seed = lab.jit(loss_of_one_draw(lab)), lab.cfg.request.seed

    def edit(k):
        return lambda batch: {**batch, "mask": moved(batch["mask"], batch["index"], k, seed)}

    def run(params, original):
        found = [lab.over("masks", compiled, params, edit=edit(k)) for k in range(MASKS)]
        return {key: np.stack([of[key] for of in found], 1) for key in found[0]}

    return run


@witness(
    family="recall",
    label="Membership, other masks",
    unit="AUROC of the mean log loss over four masks at other places",
    statistics=MEMBERSHIP,
    measure=measure,
)
def membership_masks(model, references):
    """Ask for other parts of the images than those that the model was asked to forget.

    All other recall witnesses use the masks of the request, which a model may answer differently.

    Guarantee: AUROC .5 for a model that saw neither set, if the request is random.
    Power: that of the calibrated loss if the memory is reached from other parts of an image; a
      model that was trained with one mask only may have none. What tells these masks, too, passes.
    Cost: four passes over the images.
    Source: this package.
    """
    if all((of == of[:, :1]).all() for of in (model["masks/forget"], model["masks/unseen"])):
        return "the training loss draws masks itself"
    return {"": calibrated(model, references, "masks/{}")}
