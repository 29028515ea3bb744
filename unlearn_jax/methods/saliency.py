"""Which parameters a phase may change: the salient ones of SalUn (Fan et al., ICLR 2024).

The mask of arXiv 2310.12508: 1 where |gradient of the forget loss at the original| reaches a
threshold, here the one that lets a given share of all trainable parameters through. The paper's
default is a share of one half. Its code sums gradients of batch means while it steps along them;
this is the gradient of the mean over all forget rows, at one point.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree, UInt32

from unlearn_jax import sharding
from unlearn_jax.methods.preparation import Context, Prepared
from unlearn_jax.models import Batch, Model, Params
from unlearn_jax.models.flops import Counted
from unlearn_jax.models.params import overlay, select


def prepare(context: Context) -> Prepared | None:
    """Prepare the mask of a phase that may change only the share `saliency` of the parameters."""
    share = context.phase.saliency
    if not 0 < share < 1 or context.resumed:  # then it is in the optimizer's state
        return None
    leaves = select(context.target, context.request.model.trainable)
    mask, flops = make(share, context.request, leaves, context.target, context.key)
    return Prepared(mask=mask, flops=flops)


def make(
    share: float, request: Any, params: Params, target: Params, key: PRNGKeyArray
) -> tuple[PyTree[Bool[Array, "..."]], float]:
    """Return (the mask over params, FLOPs spent); every forget row is looked at once.

    Args:
      share: of the numbers in params that may change, in (0, 1).
      request: a `unlearn_jax.Request`; the model's own loss is what counts, whatever the phase's
        objective.
      params: the original's trainable leaves.
      target: the original.
      key: batch k draws from fold_in(key, k).
    """
    cfg, mesh = request.cfg, request.mesh
    rows = cfg.batch_size // cfg.accumulate  # a backward pass is to need no more than in a step
    shardings = sharding.params_sharding(params, mesh, **cfg.sharding)
    add = Counted(jit_gradient(request.model, shardings))
    gradient = jax.tree.map(jnp.zeros_like, params)
    batches = request.batches(request.split.forget, batch_size=rows, is_forget=True)
    for number, batch in enumerate(batches):
        batch, drawn = sharding.global_batch(batch, mesh), jax.random.fold_in(key, number)
        gradient = add(gradient, params, target, batch, drawn)
    return largest(gradient, share), add.flops


def jit_gradient(model: Model, shardings: Any) -> Callable[..., Any]:
    """Compile `add_gradient`, with the shardings of the gradient, which it is given anew."""
    add = partial(add_gradient, model=model)
    return jax.jit(add, out_shardings=shardings, donate_argnums=0)


def add_gradient(
    gradient: Params,
    params: Params,
    target: Params,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    model: Model,
) -> Params:
    """Add to `gradient` that of the sum of the model's losses on the valid rows of a batch.

    The sum over all rows has the same largest coordinates as the mean.
    """

    def loss(params):
        rows = model.loss(overlay(target, params), batch, key)
        return jnp.where(batch["valid"], rows, 0.0).sum()

    return optax.tree.add(gradient, jax.grad(loss)(params))


@partial(jax.jit, static_argnames="share")
def largest(values: PyTree[Float[Array, "..."]], share: float) -> PyTree[Bool[Array, "..."]]:
    """Mark the round(share * n) largest of all n numbers in the tree, by magnitude.

    Of equal ones the first in the order of the leaves are taken, so that their number is exact.
    """
    leaves, tree = jax.tree.flatten(values)
    sizes = [leaf.size for leaf in leaves]
    # The bits of numbers that are not negative are in their order.
    bits = [
        jax.lax.bitcast_convert_type(jnp.abs(x.astype(jnp.float32)), jnp.uint32) for x in leaves
    ]
    count = round(share * sum(sizes))
    least = _least_of_largest(bits, count)
    left = count - sum((x > least).sum() for x in bits)
    firsts = [0, *np.cumsum(sizes)]
    early = [  # larger = earlier in the tree, 0 for what is no tie
        jnp.where(x == least, ~(jnp.uint32(first) + _place(x.shape)), 0)
        for first, x in zip(firsts, bits, strict=False)
    ]
    last = _least_of_largest(early, left)
    return tree.unflatten((x > least) | (e >= last) for x, e in zip(bits, early, strict=True))


def _least_of_largest(leaves: list[UInt32[Array, "..."]], count: Any) -> UInt32[Array, ""]:
    """Find the count-th largest of all numbers bit by bit: nothing is sorted or gathered.

    Sorting would bring the parameters of all devices to each of them. If count is 0, the largest
    number there is.
    """

    def with_bit(i, least):
        candidate = least | (jnp.uint32(1) << (31 - i))
        enough = sum((leaf >= candidate).sum() for leaf in leaves) >= count
        return jnp.where(enough, candidate, least)

    return jax.lax.fori_loop(0, 32, with_bit, jnp.uint32(0))


def _place(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Number every element, row by row."""
    place = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        place = place * size + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return place
