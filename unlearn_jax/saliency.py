"""Which parameters a phase may change: the salient ones of SalUn (Fan et al., ICLR 2024).

The mask of arXiv 2310.12508: 1 where |gradient of the forget loss at the original| reaches a
threshold, here the one that lets a given share of all trainable parameters through. The paper's
default is a share of one half. Its code sums gradients of batch means while it steps along them;
this is the gradient of the mean over all forget rows, at one point.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from unlearn_jax import data, metrics, sharding
from unlearn_jax.models import Batch, Model, Params
from unlearn_jax.setup import Setup
from unlearn_jax.step import overlay


def make(
    share: float, setup: Setup, params: Params, target: Params, key: PRNGKeyArray
) -> tuple[PyTree[Bool[Array, "..."]], float]:
    """(the mask over params, FLOPs spent); every forget row is looked at once.

    Args:
      share: of the numbers in params that may change, in (0, 1).
      setup: of the request; the model's own loss is what counts, whatever the phase's objective.
      params: the original's trainable leaves.
      target: the original.
      key: batch k draws from fold_in(key, k).
    """
    cfg, mesh, source, split, model = setup
    batches = data.make_eval(
        source,
        split.forget,
        batch_size=cfg.batch_size,
        task=cfg.task.to_dict(),
        seed=cfg.seed,
        is_forget=True,
        places=sharding.local_rows(cfg.batch_size, mesh),
        num_threads=cfg.data.num_threads,
        prefetch=cfg.data.prefetch,
    )
    add = jax.jit(partial(add_gradient, model=model), donate_argnums=0)
    gradient, flops, per_batch = jax.tree.map(jnp.zeros_like, params), 0.0, None
    for number, batch in enumerate(batches):
        inputs = params, target, sharding.global_batch(batch, mesh), jax.random.fold_in(key, number)
        if per_batch is None:
            per_batch = metrics.flops(add.lower(gradient, *inputs))
        gradient, flops = add(gradient, *inputs), flops + per_batch
    return largest(gradient, share), flops


def add_gradient(
    gradient: Params,
    params: Params,
    target: Params,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    model: Model,
) -> Params:
    """The gradient so far + that of the sum of the model's losses on the valid rows of a batch.

    The sum over all rows has the same largest coordinates as the mean.
    """

    def loss(params):
        rows = model.loss(overlay(target, params), batch, key)
        return jnp.where(batch["valid"], rows, 0.0).sum()

    return optax.tree.add(gradient, jax.grad(loss)(params))


@partial(jax.jit, static_argnames="share")
def largest(values: PyTree[Float[Array, "..."]], share: float) -> PyTree[Bool[Array, "..."]]:
    """True for the round(share * n) largest of all n numbers in the tree, by magnitude.

    Of equal ones the first in the order of the leaves are taken, so that their number is exact.
    """
    leaves, tree = jax.tree.flatten(values)
    flat = jnp.concatenate([jnp.abs(leaf).ravel() for leaf in leaves])
    order = jnp.argsort(flat, descending=True, stable=True)
    chosen = jnp.zeros(flat.shape, bool).at[order[: round(share * flat.size)]].set(True)
    parts = jnp.split(chosen, np.cumsum([leaf.size for leaf in leaves])[:-1])
    return tree.unflatten(p.reshape(x.shape) for p, x in zip(parts, leaves, strict=True))
