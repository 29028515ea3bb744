"""Bounded ascent: push forget rows away, the less the further they have gone."""

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from unlearn_jax.methods.terms import Terms
from unlearn_jax.models import Batch, Model, Params
from unlearn_jax.registry import UserError


def npo(
    model: Model,
    params: Params,
    target: Params,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    beta: float = 1.0,
) -> Terms:
    """Descend the model's own loss on retain rows; on forget rows, ascend a bounded function of it.

    retain = the model's own loss.
    forget = (2 / beta) log sigmoid(beta (log loss(x) - log loss of the original(x))).

    Negative preference optimization (Zhang et al. 2024, arXiv 2404.05868), whose log likelihoods of
    texts are minus log losses of images here. It is at most 0, and the weight of a row falls with
    (loss / original's loss) ** -beta, so that a row that has gone far no longer pushes. To go up to
    a given loss and not beyond, take `calibrated` with distance="hinge". Cost: two forward passes
    and one backward pass.

    Args:
      beta: above 0; near 0 it is plain ascent of the log loss, large: rows stop soon.

    Raises:
      UserError: beta is 0; there is no original.
    """
    if not beta > 0:
        raise UserError(f"objective_kw.beta: expected above 0, got {beta!r}.")
    if not target:
        raise UserError("The objective 'npo' needs an original; use a stage with scratch=False.")
    loss = model.loss(params, batch, key)
    # A loss of exactly 0 has no logarithm; nothing real is below 1e-12.
    log, before = (jnp.log(jnp.maximum(x, 1e-12)) for x in (loss, model.loss(target, batch, key)))
    return Terms(retain=loss, forget=2 / beta * jax.nn.log_sigmoid(beta * (log - before)))
