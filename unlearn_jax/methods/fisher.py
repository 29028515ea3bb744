"""How much each parameter matters for some images: the diagonal of their Fisher information."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Int, PRNGKeyArray

from unlearn_jax import sharding
from unlearn_jax.methods.preparation import Context
from unlearn_jax.models import Batch, Model, Params
from unlearn_jax.models.flops import Counted
from unlearn_jax.models.params import overlay
from unlearn_jax.registry import UserError

ROWS = 1000  # of each set, at most: it is an average
_EACH = 4  # rows at once on each device, whose gradients are all there at once


def both(context: Context, params: Params) -> tuple[Params, Params, float]:
    """Return (that of forget rows, that of retain rows, FLOPs spent); at most 1,000 rows of each.

    Args:
      context: of a preparation.
      params: trainable leaves, where gradients are taken.

    Raises:
      UserError: there are no retain rows.
    """
    request, rng = context.request, np.random.default_rng(context.request.cfg.seed)
    sets = request.split.forget, request.split.retain
    if not len(sets[1]):
        raise UserError(
            "Fisher information compares forget with retain images, and there are none "
            "(retain.kind='none'). Take a phase without objective 'dampening' or shrink.by='layer'."
        )
    rows = [np.sort(rng.permutation(of)[:ROWS]) for of in sets]
    found = [make(request, of, params, context.target, context.key) for of in rows]
    return found[0][0], found[1][0], found[0][1] + found[1][1]


def make(
    request: Any, rows: Int[np.ndarray, "_"], params: Params, target: Params, key: PRNGKeyArray
) -> tuple[Params, float]:
    """Return (mean over rows of the squared gradient of the model's own loss, FLOPs spent).

    Each row draws from fold_in(key, its index). The gradient is that of the row alone, not of a
    batch, whose square would be smaller by the batch's size.

    Args:
      request: a `unlearn_jax.Request`.
      rows: of the source; at least one.
      params: trainable leaves.
      target: all other leaves.
      key: of masks and noise.
    """
    mesh = request.mesh
    shardings = sharding.params_sharding(params, mesh, **request.cfg.sharding)
    add = partial(add_squares, model=request.model)
    add = Counted(jax.jit(add, out_shardings=shardings, donate_argnums=0))
    total = jax.device_put(jax.tree.map(jnp.zeros_like, params), shardings)
    for batch in request.batches(rows, batch_size=_EACH * mesh.size):
        total = add(total, params, target, sharding.global_batch(batch, mesh), key)
    return optax.tree.scale(1 / len(rows), total), add.flops


def add_squares(
    total: Params, params: Params, target: Params, batch: Batch, key: PRNGKeyArray, *, model: Model
) -> Params:
    """Add the squared gradients of the losses of a batch's valid rows."""

    def loss(params, row):
        one = {name: values[None] for name, values in row.items()}
        own = jax.random.fold_in(key, row["index"])
        return jnp.where(row["valid"], model.loss(overlay(target, params), one, own)[0], 0.0)

    gradients = jax.vmap(jax.grad(loss), (None, 0))(params, dict(batch))
    return jax.tree.map(lambda t, g: t + jnp.square(g).sum(0), total, gradients)
