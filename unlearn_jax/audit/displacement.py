"""Whether the outputs on forget images have moved away from the original's."""

import numpy as np

from unlearn_jax.audit.witness import Scores, witness


def relative_rms(forget, unseen, of_forget, of_unseen):
    """Divide the root mean square of the first by that of the second."""
    first, second = (
        w @ np.square(x) / w.sum(1) for w, x in ((of_forget, forget), (of_unseen, unseen))
    )
    return np.sqrt(first / second)


@witness(
    family="hidden",
    label="Displacement",
    unit="RMS distance to the original's output on forget images, over the model's own RMS error "
    "on unseen images",
    statistics={"relative": relative_rms},
    needs_memory=True,
)
def displacement(model, references):
    """Compare how far outputs have moved from the original's with how far off a guess is.

    The original knew these images: who is as far from it as from the truth of an unseen image
    knows nothing of what it knew. In units of the model's own error on unseen images, so that one
    that completes all images better is not taken for one that stayed.

    Guarantee: 0 for the original; near 1 for a model that never saw the images, whatever its seed,
    if the original knew them by heart. Where it did not, staying near its outputs is no memory, and
    this says nothing.
    Power: high; needs both models.
    Cost: one pass with both models.
    Source: Varshney & Torra (arXiv 2502.04260), T1.
    """
    del references
    moved, error = model["displacement/forget"], np.sqrt(model["error/unseen"])
    return {"": Scores(moved.astype(np.float64), error.astype(np.float64))}
