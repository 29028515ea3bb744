"""Selective synaptic dampening: shrink the parameters that matter more to forget rows."""

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from unlearn_jax.methods import fisher
from unlearn_jax.methods.ascent import reconstruction
from unlearn_jax.methods.preparation import Context, Prepared, prepares
from unlearn_jax.methods.terms import Terms
from unlearn_jax.models import Batch, Model, Params
from unlearn_jax.registry import UserError


def prepare(context: Context) -> Prepared | None:
    """Prepare the dampened parameters that the phase starts from.

    Raises:
      UserError: select is 0.
    """
    if context.resumed:  # then the state has started from them
        return None
    given = context.phase.objective_kw
    select, strength = given.get("select", 10.0), given.get("strength", 1.0)
    if not select > 0:
        raise UserError(f"objective_kw.select: expected above 0, got {select!r}.")
    forget, retain, flops = fisher.both(context, context.params)
    split = context.request.split
    share = len(split.forget) / (len(split.forget) + len(split.retain))
    whole = jax.tree.map(lambda f, r: share * f + (1 - share) * r, forget, retain)
    return Prepared(params=damped(context.params, forget, whole, select, strength), flops=flops)


@jax.jit
def damped(params, forget, whole, select, strength):
    """Multiply by min(strength * whole / forget, 1) where forget > select * whole."""

    def one(p, f, w):
        factor = jnp.minimum(strength * w / jnp.where(f > 0, f, 1.0), 1.0)
        return p * jnp.where(f > select * w, factor, 1.0)

    return jax.tree.map(one, params, forget, whole)


@prepares(prepare)
def dampening(
    model: Model,
    params: Params,
    target: Params,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    select: float = 10.0,
    strength: float = 1.0,
) -> Terms:
    """Dampen once, before the first step; then train on retain rows with the model's own loss.

    A parameter with F_forget > select * F_all is multiplied by min(strength * F_all / F_forget, 1),
    where F is the mean squared gradient (`fisher`) over forget rows and over all training rows.

    Selective synaptic dampening (Foster, Schoepf & Brintrup, AAAI 2024, arXiv 2308.07707), which
    squares gradients of batches; here they are of rows, at most 1,000 of each set. Theirs is
    without training: a phase with steps=0. Cost: one forward and backward pass over those rows,
    once; then as `reconstruction`.

    Args:
      select: the paper's alpha, above 0: the larger, the fewer parameters.
      strength: the paper's lambda: the smaller, the more they shrink.
    """
    del select, strength
    return reconstruction(model, params, target, batch, key)
