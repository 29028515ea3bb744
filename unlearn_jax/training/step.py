"""One update of the model: the state, the loss with the package's only sign flip, the step."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from unlearn_jax.methods import Terms
from unlearn_jax.methods.combine import total
from unlearn_jax.models import Batch, Model, Params
from unlearn_jax.models.params import overlay

Metrics = dict[str, Float[Array, ""]]
Objective = Callable[[Model, Params, Params, Batch, PRNGKeyArray], Terms]
Combine = Callable[[Params, Params, Metrics], Params]
Parts = tuple[Float[Array, ""], Float[Array, ""]]
_KEY = jax.dtypes.prng_key
_DRAWING = ("encode", "decode", "predict", "loss", "encode_noise", "noisy_loss")  # take `draws`


@struct.dataclass
class UnlearnState:
    """What a phase changes. (The same tree holds shapes or shardings, so leaves are untyped.)"""

    step: Any  # int32 [], updates done (from the noised phase of a run on: in its phase)
    params: Params  # the trainable leaves only, see `overlay`
    opt_state: optax.OptState
    key: Any  # of the run; step k uses fold_in(key, k)


def masked_mean(values: Float[Array, "b"], mask: Bool[Array, "b"]) -> Float[Array, ""]:
    """Average the rows where mask is set, 0 if there is none (whatever the other rows hold)."""
    total = jnp.where(mask, values, 0.0).sum(dtype=jnp.float32)
    return total / jnp.maximum(mask.sum(), 1)


def unlearn_parts(
    params: Params,
    target: Params,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    model: Model,
    objective: Objective,
    retain_weight: float,
    forget_weight: float,
) -> tuple[Parts, Metrics]:
    """Return ((retain_weight * mean retain term, -forget_weight * mean forget term), means).

    Args:
      params: trainable leaves.
      target: the frozen original; its leaves stand wherever `params` has none. May be empty if
        every leaf is trainable and the objective has no use for it.
      batch: rows flagged by `is_forget`; rows that are not `valid` count nowhere.
      key: shared by student and target.
      model: the architecture.
      objective: a method with its options bound.
      retain_weight: at least 0.
      forget_weight: at least 0.
    """
    terms = objective(model, overlay(target, params), target, batch, key)
    retain = masked_mean(terms.retain, batch["valid"] & ~batch["is_forget"])
    forget = masked_mean(terms.forget, batch["valid"] & batch["is_forget"])
    # The one sign flip of the package: forget terms are ascended. A term of no weight is left out,
    # not multiplied by 0, which the compiler may not drop.
    zero = jnp.float32(0)
    parts = (
        retain_weight * retain if retain_weight else zero,
        -forget_weight * forget if forget_weight else zero,
    )
    metrics = {"loss": parts[0] + parts[1]}
    if retain_weight:
        metrics["retain"] = retain
    if forget_weight:
        metrics["forget"] = forget
    return parts, metrics


def unlearn_loss(
    params: Params, target: Params, batch: Batch, key: PRNGKeyArray, **settings: Any
) -> tuple[Float[Array, ""], Metrics]:
    """Return (the sum of `unlearn_parts`, its metrics)."""
    (retain, forget), metrics = unlearn_parts(params, target, batch, key, **settings)
    return retain + forget, metrics


def unlearn_grad(
    params: Params,
    target: Params,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    combine: Combine = total,
    accumulate: int = 1,
    rows: NamedSharding | None = None,
    **settings: Any,
) -> tuple[Params, Metrics]:
    """Return (the gradient to descend, the metrics): one backward pass for `total`, else two.

    Args:
      params: see `unlearn_parts`, as for all up to key.
      target: the frozen original.
      batch: of both kinds of rows.
      key: of this step.
      combine: of combine.py, with its options bound.
      accumulate: slices of the batch, computed one after the other. The result is the same but for
        the order of float32 sums: means and draws are those of the whole batch. What is not drawn
        by row, Palette's dropout and whatever else uses the key, is drawn for each slice.
      rows: the sharding of the batch, if it is sliced.
      settings: the rest of the arguments of `unlearn_parts`.
    """
    if accumulate > 1:
        options = {"accumulate": accumulate, "rows": rows, "combine": combine}
        return _in_slices(params, target, batch, key, **options, **settings)
    if combine is total:
        return jax.grad(unlearn_loss, has_aux=True)(params, target, batch, key, **settings)

    def parts(params):
        return unlearn_parts(params, target, batch, key, **settings)

    _, pull_back, metrics = jax.vjp(parts, params, has_aux=True)
    one, zero = jnp.float32(1), jnp.float32(0)
    (retain_grad,), (forget_grad,) = pull_back((one, zero)), pull_back((zero, one))
    return combine(retain_grad, forget_grad, metrics), metrics


def _in_slices(params, target, batch, key, accumulate, rows, model, combine, **settings):
    draws, zero = model.draw(batch, key) if model.draw else {}, jnp.float32(0)

    def counts(batch):
        return [(batch["valid"] & kind).sum() for kind in (~batch["is_forget"], batch["is_forget"])]

    def add(sums, i):
        def take(x):  # row r is in slice r % accumulate: of each device's rows the same share
            if not x.ndim:
                return jax.random.fold_in(x, i) if jnp.issubdtype(x.dtype, _KEY) else x
            x = x.reshape(-1, accumulate, *x.shape[1:])
            x = jax.lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False)
            return jax.lax.with_sharding_constraint(x, rows)

        part, drawn = jax.tree.map(take, (dict(batch), draws))
        own = jax.random.fold_in(key, i)
        given = {"batch": part, "key": own, "model": _with_draws(model, own, drawn)}
        parts = partial(unlearn_parts, target=target, **given, **settings)
        values, pull_back, means = jax.vjp(parts, params, has_aux=True)
        retain, forget = (n / jnp.maximum(m, 1) for n, m in zip(counts(part), whole, strict=True))
        weights = ((retain, forget),) if combine is total else ((retain, zero), (zero, forget))
        share = {"retain": retain, "forget": forget}
        metrics = {name: share[name] * means[name] for name in share if name in means}
        metrics["loss"] = retain * values[0] + forget * values[1]
        return optax.tree.add(sums, [pull_back(weight)[0] for weight in weights]), metrics

    whole = counts(batch)
    sums = [optax.tree.zeros_like(params)] * (1 if combine is total else 2)
    sums, metrics = jax.lax.scan(add, sums, jnp.arange(accumulate))
    metrics = {name: values.sum() for name, values in metrics.items()}
    return (sums[0] if combine is total else combine(*sums, metrics)), metrics


def _with_draws(model: Model, key: PRNGKeyArray, draws: dict[str, Any]) -> Model:
    """Return the model, made to take `draws` wherever it is called with this very key."""

    def call(method, *args, **kwargs):
        mine = any(x is key for x in (*args, *kwargs.values()))
        return method(*args, **({"draws": draws} if mine else {}), **kwargs)

    given = copy.copy(model)
    for name in _DRAWING if draws else ():
        if getattr(model, name):
            object.__setattr__(given, name, partial(call, getattr(model, name)))
    return given


def unlearn_step(
    state: UnlearnState,
    target: Params,
    batch: Batch,
    noised: dict[str, Any] | None = None,
    *,
    grad_fn: Callable[[Params, Params, Batch, PRNGKeyArray], tuple[Params, Metrics]],
    tx: optax.GradientTransformation,
    clip_norm_l2: float = 0.0,
) -> tuple[UnlearnState, Metrics]:
    """Update the state once; return it with the metrics of the update.

    The randomness of step k is `fold_in(state.key, k)`: a resumed run draws what the
    uninterrupted one would have drawn. `noised`: what `certify.noisy.noisy_sgd` needs. With
    `clip_norm_l2` there is a metric `clipped`: 1 if the gradient was longer, else 0.
    """
    key = jax.random.fold_in(state.key, state.step)
    grads, metrics = grad_fn(state.params, target, batch, key)
    more = noised | {"step": state.step} if noised else {}
    updates, opt_state = tx.update(grads, state.opt_state, state.params, **more)
    metrics |= {"grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
    if clip_norm_l2:
        metrics["clipped"] = (metrics["grad_norm"] > clip_norm_l2).astype(jnp.float32)
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics


def jit_step(
    model: Model,
    objective: Objective,
    tx: optax.GradientTransformation,
    *,
    retain_weight: float,
    forget_weight: float,
    combine: Combine = total,
    state_sharding: Any,
    target_sharding: Any,
    batch_sharding: NamedSharding,
    replicated: NamedSharding,
    noised_sharding: Any = None,
    clip_norm_l2: float = 0.0,
    accumulate: int = 1,
) -> Callable[..., tuple[UnlearnState, Metrics]]:
    """Compile the `unlearn_step` of one phase. The state is donated, the target is not.

    With `noised_sharding` it takes `noised` as a fourth argument. `accumulate`: see `unlearn_grad`.
    """
    grad_fn = partial(
        unlearn_grad,
        combine=combine,
        accumulate=accumulate,
        rows=batch_sharding,
        model=model,
        objective=objective,
        retain_weight=retain_weight,
        forget_weight=forget_weight,
    )
    return jax.jit(
        partial(unlearn_step, grad_fn=grad_fn, tx=tx, clip_norm_l2=clip_norm_l2),
        in_shardings=(state_sharding, target_sharding, batch_sharding)
        + ((noised_sharding,) if noised_sharding else ()),
        out_shardings=(state_sharding, replicated),
        donate_argnums=0,
    )
