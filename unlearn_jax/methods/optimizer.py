"""Optimizers from config sections, as optax chains."""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from unlearn_jax.sharding import leaf_path

SCHEDULES = {
    "constant": lambda peak, steps: optax.constant_schedule(peak),
    "cosine": lambda peak, steps: optax.cosine_decay_schedule(peak, max(steps, 1)),
    "late_cosine": lambda peak, steps: optax.join_schedules(
        [optax.constant_schedule(peak), optax.cosine_decay_schedule(peak, max(_late(steps), 1))],
        [steps - _late(steps)],
    ),
}
OPTIMIZERS = ("sgd", "adam")


def _late(steps: int) -> int:
    return round(0.15 * steps)


def make_optimizer(
    *,
    name: str = "adam",
    learning_rate: float,
    steps: int,
    schedule: str = "constant",
    warmup_steps: int = 0,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.0,
    no_decay: Sequence[str] = (),
    clip_norm_l2: float = 0.0,
    masked: bool = False,
) -> optax.GradientTransformation:
    """Make the optax chain of a phase: clip the gradient, then the optimizer, then the mask.

    Args:
      name: "sgd", or "adam" (with decoupled weight decay, that is AdamW).
      learning_rate: its peak; multiplied by the schedule.
      steps: length of the phase, where cosines reach zero.
      schedule: "constant"; "cosine"; or "late_cosine", constant for 85 % of the steps, so that
        images that enter late are learned as well (the warmup-stable-decay of Hu et al. 2024).
      warmup_steps: linear rise from 0 over that many steps, before the schedule begins.
      b1: adam: decay of its mean gradient.
      b2: adam: decay of its mean squared gradient.
      weight_decay: pull towards zero, times the learning rate.
      no_decay: full-match regexes on the paths of leaves that are not pulled.
      clip_norm_l2: the gradient is scaled down to this global L2 norm if it is longer (0: never).
      masked: with `saliency_mask`, whose mask is then set by `with_mask`.
    """
    rate = SCHEDULES[schedule](learning_rate, steps - warmup_steps)
    if warmup_steps:
        warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
        rate = optax.join_schedules([warmup, rate], [warmup_steps])
    decayed = partial(_decayed, no_decay=tuple(no_decay))
    if name == "sgd":
        decay = optax.add_decayed_weights(weight_decay, mask=decayed)
        optimizer = optax.chain(decay, optax.sgd(rate))
    else:
        optimizer = optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=decayed)
    if clip_norm_l2:
        optimizer = optax.chain(optax.clip_by_global_norm(clip_norm_l2), optimizer)
    return optax.chain(optimizer, saliency_mask()) if masked else optimizer


def _decayed(params: Any, no_decay: Sequence[str]) -> Any:
    def decayed(path, leaf):
        return not any(re.fullmatch(regex, leaf_path(path)) for regex in no_decay)

    return jax.tree_util.tree_map_with_path(decayed, params)


class MaskState(NamedTuple):
    """What `saliency_mask` remembers; part of the optimizer's state, and saved with it."""

    mask: Any  # bool, with the shapes of the parameters


def saliency_mask() -> optax.GradientTransformation:
    """Set updates to 0 where the mask in its state is False; at first it is True everywhere.

    It must be last in a chain: weight decay and momentum move weights whose gradient is 0.
    """

    def init(params):
        return MaskState(jax.tree.map(lambda x: jnp.ones_like(x, bool), params))

    def update(updates, state, params=None):
        del params
        return jax.tree.map(lambda u, m: jnp.where(m, u, 0), updates, state.mask), state

    return optax.GradientTransformation(init, update)


def with_mask(opt_state: optax.OptState, mask: Any) -> optax.OptState:
    """Return the state of a `masked` optimizer with another mask."""
    optimizer, _ = opt_state
    return optimizer, MaskState(mask)
