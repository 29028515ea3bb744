"""Every method as a pure function that returns per-example terms.

`OBJECTIVES` maps a name in the config to a function

    (model, params, target, batch, key, **options) -> Terms

Options are keyword-only; they come from the phase's `objective_kw` and are checked against the
signature by `config.validate`. A method of your own needs no entry here: name it in the config as
"my_package.my_module:my_function".
"""

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from unlearn_jax.models import Batch, Model, Params


class Terms(NamedTuple):
    """What an objective says about every row; which rows count is decided by the step.

    Attributes:
      retain: minimised on retain rows.
      forget: maximised on forget rows.
    """

    retain: Float[Array, "b"]
    forget: Float[Array, "b"]


def reconstruction(
    model: Model, params: Params, target: Params, batch: Batch, key: PRNGKeyArray
) -> Terms:
    """The model's own loss on retain rows, nothing on forget rows.

    Pretraining, retraining and the retain phase. Cost: one forward and one backward pass.
    """
    del target
    loss = model.loss(params, batch, key)
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
    """The model's own loss on both sides: descended on retain rows, ascended on forget rows.

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


OBJECTIVES: dict[str, Callable[..., Terms]] = {
    "reconstruction": reconstruction,
    "gradient_ascent": gradient_ascent,
}


def find(name: str) -> Callable[..., Terms]:
    """The objective function of that name, or of that "package.module:function".

    Raises:
      ValueError: no such objective; the message lists what there is.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    module, _, function = name.partition(":")
    if function:
        try:
            return getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"Cannot import the objective {name!r}: {error}.") from error
    raise ValueError(
        f"Unknown objective {name!r}. Expected one of {sorted(OBJECTIVES)} or "
        '"package.module:function" for your own.'
    )


def options(name: str) -> dict[str, Any]:
    """The options of an objective with their default values."""
    parameters = inspect.signature(find(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def build(name: str, **objective_kw: Any) -> Callable[..., Terms]:
    """The objective with its options bound: (model, params, target, batch, key) -> Terms."""
    return partial(find(name), **objective_kw)
