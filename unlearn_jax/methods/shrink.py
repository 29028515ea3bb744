"""Shrink and perturb: a start part-way between the trained parameters and ones that know nothing.

What a network has memorised of single images goes before what it has learned of all: parameters
moved towards a fresh initialisation forget, and a short training on retained rows repairs them. It
needs no goal, and no forget image unless layers differ. Shrinking and perturbing is of Ash & Adams,
"On warm-starting neural network training" (NeurIPS 2020), where it is meant for warm starts.
"""

from typing import Any

import jax
import numpy as np
from flax import traverse_util

from unlearn_jax.methods import fisher
from unlearn_jax.methods.preparation import Context, Prepared
from unlearn_jax.models import Params
from unlearn_jax.models.params import select
from unlearn_jax.registry import UserError

TOWARDS, BY = ("initial", "reference"), ("", "layer")
_STREAM = 0x5481  # of the context's key, so that the initialisation is not the original's own


def prepare(context: Context) -> Prepared | None:
    """Prepare the start of a phase with `shrink.alpha`: (1 − α) params + α other.

    `shrink.towards` says what the other is: "initial", parameters freshly drawn as
    `Model.init` draws them, or "reference", those of `config.reference_from`. Trainable leaves
    only. With `shrink.by="layer"`, each layer has an α of its own, see `alphas`. Cost: one pass
    over the parameters, no FLOPs counted; by layer one forward and backward pass over at most 1,000
    rows of both sets.

    Raises:
      UserError: towards a reference that is not there.
    """
    alpha = context.phase.shrink.alpha
    if not alpha or context.resumed:  # then the state has started from it
        return None
    if context.phase.shrink.towards == "reference":
        if context.reference is None:
            raise UserError(
                "shrink.towards='reference' needs a reference model. Say where it is: "
                "--config.reference_from=WORKDIR."
            )
        other = select(context.reference, context.request.model.trainable)
    else:
        other = context.fresh(jax.random.fold_in(context.key, _STREAM))
    flops = 0.0
    if context.phase.shrink.by == "layer":
        forget, retain, flops = fisher.both(context, context.params)
        alpha = alphas(forget, retain, alpha)
    else:
        alpha = jax.tree.map(lambda _: alpha, context.params)
    return Prepared(params=mix(context.params, other, alpha), flops=flops)


@jax.jit
def mix(params, other, alpha):
    """Return (1 − alpha) params + alpha other, leaf by leaf; alpha is a tree of numbers."""
    return jax.tree.map(lambda p, o, a: (1 - a) * p + a * o, params, other, alpha)


def alphas(forget: Params, retain: Params, alpha: float) -> Any:
    """Give more of alpha to layers that matter more to forget than to retain images.

    Of layer l, min(c √(F_forget / F_retain), 1), where F is the mean over its parameters of the
    squared gradients, and c is such that the mean over all parameters is alpha before the min.

    Args:
      forget: squared gradients of forget rows, leaf by leaf; a layer is all leaves beside another.
      retain: those of retain rows.
      alpha: in [0, 1].

    Returns:
      A tree of numbers.
    """
    sums: dict[Any, Any] = {}
    flat = [traverse_util.flatten_dict(tree) for tree in (forget, retain)]
    for path in flat[0]:
        of = np.array([float(tree[path].sum()) for tree in flat] + [flat[0][path].size])
        sums[path[:-1]] = sums.get(path[:-1], 0) + of
    ratio = {layer: np.sqrt(of[0] / max(of[1], 1e-30)) for layer, of in sums.items()}
    mean = sum(ratio[k] * of[2] for k, of in sums.items()) / sum(of[2] for of in sums.values())
    given = {path: float(min(alpha * ratio[path[:-1]] / mean, 1.0)) for path in flat[0]}
    return traverse_util.unflatten_dict(given)
