"""What becomes of the retain gradient and the forget gradient: one gradient to descend.

`COMBINE` maps a phase's `combine` to a function

    (retain_grad, forget_grad, metrics, **options) -> gradient

`retain_grad` is the gradient of retain_weight * mean retain term, `forget_grad` that of
-forget_weight * mean forget term: both are to be descended. `metrics` holds the two means, "retain"
and "forget", without weights or signs. Options come from the phase's `combine_kw`.

The gradient goes to the phase's optimizer. What is said of directions holds for "sgd"; "adam"
rescales each coordinate.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from unlearn_jax import registry
from unlearn_jax.models import Params
from unlearn_jax.registry import UserError

CONTROLS = ("violation", "norm")
Metrics = Mapping[str, Float[Array, ""]]


def total(retain_grad: Params, forget_grad: Params, metrics: Metrics) -> Params:
    """Add both gradients: that of the weighted loss. The step needs one backward pass for it."""
    del metrics
    return optax.tree.add(retain_grad, forget_grad)


def orthogonal(
    retain_grad: Params, forget_grad: Params, metrics: Metrics, *, conflict_only: bool = False
) -> Params:
    """Add to the retain gradient the part of the forget gradient that is orthogonal to it.

    To first order, what is done to forget costs the retain term nothing and gains it nothing: with
    g_r, g_f the two gradients, g = g_r + g_f - (<g_f, g_r> / |g_r|^2) g_r.

    This is gradient surgery as in PCGrad (Yu et al. 2020, arXiv 2001.06782), on one of two tasks.
    UNO (Mandal & Gottwald, arXiv 2506.04712) is not this: it descends the retain loss plus a
    penalty on the squared cosine between both loss gradients, through second derivatives, and
    neither ascends nor projects; its variant UNO-S alternates that step with surgery, which, in
    code that seems to be theirs, removes from g_r its part along g_f and applies nothing of g_f.
    Here g_f is applied, and there is no penalty, alternation or classifier's loss.

    Args:
      retain_grad: kept whole.
      forget_grad: projected.
      metrics: unused.
      conflict_only: project only if <g_f, g_r> < 0, as PCGrad does.
    """
    del metrics
    inner = optax.tree.vdot(forget_grad, retain_grad)
    along = _divide(inner, optax.tree.norm(retain_grad, squared=True))
    along = jnp.minimum(along, 0.0) if conflict_only else along
    return jax.tree.map(lambda r, f: r + (f - along * r), retain_grad, forget_grad)


def epsilon_constrained(
    retain_grad: Params,
    forget_grad: Params,
    metrics: Metrics,
    *,
    epsilon: float,
    beta: float = 1.0,
    control: str = "violation",
) -> Params:
    """Add to the retain gradient as much of the forget gradient as the constraint asks for.

    Minimises the retain term subject to (mean forget term) >= epsilon, by the dynamic barrier
    method (Gong, Liu & Liu, NeurIPS 2021): g = g_r + lambda g_f is the direction nearest to g_r
    with <g, g_f> >= phi, so lambda = max((phi - <g_f, g_r>) / |g_f|^2, 0). Feng et al. (arXiv
    2408.01689) use it to unlearn image-to-image models, in two phases that differ in the control
    function phi: first the limit of what can be forgotten is found, then a point between that and
    the original is chosen by epsilon. Written from their summary, not from their full text: the
    constraint, the direction and the role of phi are theirs, the two phi below are those of Gong et
    al., who take the smaller of both at each step. Their forget term is a distance to noise, as in
    the objective "l2_encoder".

    With exact gradients and a small step a violation shrinks at least like exp(-beta t); where the
    constraint holds, a decrease of the forget term is allowed to use it up at that rate only.
    Both are estimated from the batch. Leave forget_weight at 1: it does not move the constraint,
    it only divides beta ("violation") or multiplies it ("norm").

    Args:
      retain_grad: g_r.
      forget_grad: g_f.
      metrics: its "forget" is compared with epsilon.
      epsilon: in units of the forget term; of a distance that enters with a minus sign, minus the
        largest distance that is tolerated. Unused with "norm".
      beta: rate, above 0.
      control: "violation" is phi = beta * (epsilon - mean forget term), negative where the
        constraint holds. "norm" is phi = beta * |g_f|^2: forget as far as possible, and improve the
        retain term only where that is not in the way.

    Raises:
      UserError: another control.
    """
    if control not in CONTROLS:
        raise UserError(f"combine_kw.control: expected one of {CONTROLS}, got {control!r}.")
    squared = optax.tree.norm(forget_grad, squared=True)
    phi = beta * (squared if control == "norm" else epsilon - metrics["forget"])
    inner = optax.tree.vdot(forget_grad, retain_grad)
    multiplier = jnp.maximum(_divide(phi - inner, squared), 0.0)
    return jax.tree.map(lambda r, f: r + multiplier * f, retain_grad, forget_grad)


COMBINE: dict[str, Callable[..., Params]] = {
    "sum": total,
    "orthogonal": orthogonal,
    "epsilon_constrained": epsilon_constrained,
}


def find(name: str) -> Callable[..., Params]:
    """Return the combination of that name, or of that "package.module:function"."""
    return registry.find(COMBINE, name, "combination")


def options(name: str) -> dict[str, Any]:
    """Return the options of a combination with their default values."""
    return registry.options(find(name))


def build(name: str, **combine_kw: Any) -> Callable[[Params, Params, Metrics], Params]:
    """Bind the options of a combination: (retain_grad, forget_grad, metrics) -> gradient."""
    return partial(find(name), **combine_kw) if combine_kw else find(name)


def _divide(a: Float[Array, ""], b: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1.0), 0.0)
