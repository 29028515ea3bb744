"""A model that functions show, for the command line."""

import numpy as np

CALLS = []


def grey(images, masks, seed):
    return np.where(masks > 0, 0, images)


def broken(images, masks, seed):
    raise ValueError("no such weights")


def dark(images, masks, seed):
    """Needs the masks of the task "left" at first; later ones may be moved."""
    if not CALLS:
        assert masks[:, :, 0].all() and not masks[:, :, -1].any()
    CALLS.append(len(masks))
    return np.where(masks > 0, -0.5, images)
