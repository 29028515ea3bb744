"""Shrink and perturb: a start part-way between the trained parameters and ones that know nothing.

What a network has memorised of single images goes before what it has learned of all: parameters
moved towards a fresh initialisation forget, and a short training on retained rows repairs them. It
needs no forget image and no goal. Shrinking and perturbing is of Ash & Adams, "On warm-starting
neural network training" (NeurIPS 2020), where it is meant for warm starts.
"""

import jax
import optax

from unlearn_jax.methods.preparation import Context, Prepared
from unlearn_jax.models.params import select
from unlearn_jax.registry import UserError

TOWARDS = ("initial", "reference")
_STREAM = 0x5481  # of the context's key, so that the initialisation is not the original's own


def prepare(context: Context) -> Prepared | None:
    """Prepare the start of a phase with `shrink.alpha`: (1 − α) params + α other.

    `shrink.towards` says what the other is: "initial", parameters freshly drawn as
    `Model.init` draws them, or "reference", those of `config.reference_from`. Trainable leaves
    only. Cost: one pass over the parameters, no FLOPs counted.

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
    return Prepared(params=mix(context.params, other, alpha))


@jax.jit
def mix(params, other, alpha):
    """Return (1 − alpha) params + alpha other, leaf by leaf."""
    return optax.tree.add_scale(optax.tree.scale(1 - alpha, params), alpha, other)
