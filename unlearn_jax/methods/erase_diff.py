"""EraseDiff: forget rows are to be answered by noise."""

import jax
from jaxtyping import PRNGKeyArray

from unlearn_jax.methods.i2i import answers, distance
from unlearn_jax.methods.terms import Terms
from unlearn_jax.models import Batch, Model, Params

_NOISE = 0xE7A5  # folded into the key; far from the small numbers that models use


def erase_diff(
    model: Model, params: Params, target: Params, batch: Batch, key: PRNGKeyArray
) -> Terms:
    """Descend the model's own loss on retain rows; on forget rows, answer with uniform noise.

    retain = the model's own loss.
    forget = -|answer - u|^2 with u ~ U(0, 1), drawn anew in each step: the noise that a diffusion
    model predicts in the noised image (`answers`) is not the one that was added.

    EraseDiff (Wu et al. 2024, arXiv 2401.05779) descends the retain loss under the constraint that
    the forget loss is as low as some steps on it alone would bring it. Use it with
    combine="epsilon_constrained" and combine_kw={"control": "norm"}, which is its update with those
    steps' end taken as a constant. Cost: one forward and two backward passes; models whose loss
    looks at something else than `answers` need one forward pass more.
    """
    (mine,) = answers(model, (params,), target, batch, key)
    noise = jax.random.uniform(jax.random.fold_in(key, _NOISE), mine.shape)
    return Terms(retain=model.loss(params, batch, key), forget=-distance(mine, noise))
