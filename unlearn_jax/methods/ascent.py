"""Objectives made of the model's own loss."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from unlearn_jax.methods.terms import Terms
from unlearn_jax.models import Batch, Model, Params
from unlearn_jax.registry import UserError


def reconstruction(
    model: Model, params: Params, target: Params, batch: Batch, key: PRNGKeyArray
) -> Terms:
    """Train on retain rows with the model's own loss; nothing happens on forget rows.

    Pretraining, retraining and the retain phase. Cost: one forward and one backward pass.
    """
    del target
    loss = model.loss(params, batch, key)
    return Terms(retain=loss, forget=jnp.zeros_like(loss))


def tokenizer(
    model: Model, params: Params, target: Params, batch: Batch, key: PRNGKeyArray
) -> Terms:
    """Train the model's tokenizer on retain rows; nothing happens on forget rows.

    The first phase of training a token model from scratch; the second, `reconstruction`, leaves the
    tokenizer as it is. Cost: one forward and one backward pass of the tokenizer.

    Raises:
      UserError: the model has none.
    """
    del target
    if not model.tokenizer_loss:
        raise UserError(f"The objective 'tokenizer': {type(model).__name__} has no tokenizer.")
    loss = model.tokenizer_loss(params, batch, key)
    return Terms(retain=loss, forget=jnp.zeros_like(loss))


def gradient_ascent(
    model: Model,
    params: Params,
    target: Params,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    forget_cap: float = 0.0,
) -> Terms:
    """Descend the model's own loss on retain rows, ascend it on forget rows.

    The decoupling phase of Varshney & Torra (arXiv 2502.04260): ascend the loss of D_f until the
    outputs have moved by at least lambda. The paper's text on how the ascent is bounded is not
    public in full; here the gradient is clipped by the phase's optimizer (`clip_norm_l2`), and
    `forget_cap` bounds the loss of each example. Cost: one forward and one backward pass.

    Args:
      forget_cap: a forget row whose loss has reached this value no longer pushes, its gradient is
        exactly zero (units of the model's loss; 0 means no cap).
    """
    del target
    loss = model.loss(params, batch, key)
    return Terms(retain=loss, forget=jnp.minimum(loss, forget_cap) if forget_cap > 0 else loss)


def gradient_difference(
    model: Model,
    params: Params,
    target: Params,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    forget_cap: float = 0.0,
) -> Terms:
    """Return the terms of `gradient_ascent`, for a phase where both weights are positive.

    Gradient difference (Liu, Liu & Stone 2022, arXiv 2203.12817): mean loss on retain rows minus
    mean loss on forget rows, each over its own rows. Cost: one forward and one backward pass.

    Args:
      forget_cap: see `gradient_ascent`; not part of the original method, which is unbounded.
    """
    return gradient_ascent(model, params, target, batch, key, forget_cap=forget_cap)


def max_loss(
    model: Model, params: Params, target: Params, batch: Batch, key: PRNGKeyArray
) -> Terms:
    """Weigh the model's own loss on both sides by each set's share of the batch.

    The baseline "Max Loss" of Li et al. (ICLR 2024, arXiv 2402.00351) in the normalisation of its
    release: both sums are divided by the size of the whole batch. Unbounded. The release counts
    masked tokens, here it is rows, whose losses are means already. Cost: one forward and one
    backward pass.
    """
    del target
    loss = model.loss(params, batch, key)
    retain, forget = (
        loss * share(batch, flag) for flag in (~batch["is_forget"], batch["is_forget"])
    )
    return Terms(retain=retain, forget=forget)


def share(batch: Batch, rows: Bool[Array, "b"]) -> Float[Array, ""]:
    """Return the share of these rows in the valid rows of the batch, in [0, 1]."""
    valid = batch["valid"]
    return (rows & valid).sum() / jnp.maximum(valid.sum(), 1).astype(jnp.float32)
