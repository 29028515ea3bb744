"""What a phase of a config compiles: its optimizer and its step.

`train` runs them, and `launch.aot` compiles them for devices that are not there.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from unlearn_jax import combine, objectives, optim, sharding
from unlearn_jax.certify import run as certified
from unlearn_jax.models import Model
from unlearn_jax.step import jit_step


def make_optimizer(phase: ConfigDict) -> optax.GradientTransformation:
    """That of a phase: with its noise, if it has some, and with room for a mask of saliency."""
    if phase.noise.std:
        return certified.optimizer(phase)
    masked = 0 < phase.saliency < 1
    return optim.make_optimizer(**phase.optimizer, steps=phase.steps, masked=masked)


def make_step(
    phase: ConfigDict,
    model: Model,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    forget_count: int,
    accumulate: int,
    state_sharding: Any,
    target_sharding: Any,
    noised_sharding: Any = None,
) -> Callable[..., Any]:
    """The compiled `step.unlearn_step` of a phase.

    Args:
      phase: of a valid config.
      model: the architecture.
      tx: from `make_optimizer`.
      mesh: over which batches are split.
      forget_count: rows at the end of every batch that are forget rows, `data.forget_count`.
      accumulate: in how many slices, see `step.unlearn_grad`.
      state_sharding: of an `UnlearnState` with the state of tx.
      target_sharding: of the frozen original; {} if there is none.
      noised_sharding: of "secret" and "reference", if the phase has noise.
    """
    forget_part = partial(sharding.last_rows, at_least=-(-forget_count // accumulate), mesh=mesh)
    return jit_step(
        model,
        objectives.build(phase.objective, forget_part=forget_part, **phase.objective_kw),
        tx,
        retain_weight=phase.retain_weight,
        forget_weight=phase.forget_weight,
        combine=combine.build(phase.combine, **phase.combine_kw),
        state_sharding=state_sharding,
        target_sharding=target_sharding,
        batch_sharding=sharding.batch_sharding(mesh),
        replicated=sharding.replicated(mesh),
        noised_sharding=noised_sharding,
        clip_norm_l2=phase.optimizer.clip_norm_l2 if phase.noise.std else 0.0,
        accumulate=accumulate,
    )
