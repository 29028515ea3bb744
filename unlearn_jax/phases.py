"""What a phase of a config compiles: its optimizer and its step.

`train` runs them, and `launch.aot` compiles them for devices that are not there.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from unlearn_jax import combine, objectives, optim, sharding, stacking
from unlearn_jax.certify import run as certified
from unlearn_jax.models import Model, Params
from unlearn_jax.step import jit_step


def make_optimizer(phase: ConfigDict) -> optax.GradientTransformation:
    """Make that of a phase: with its noise, if any, and with room for a mask of saliency."""
    if phase.noise.std:
        return certified.optimizer(phase)
    masked = 0 < phase.saliency < 1
    return optim.make_optimizer(**phase.optimizer, steps=phase.steps, masked=masked)


def make_layout(
    cfg: ConfigDict, stage: ConfigDict, whole: Params, trainable: Sequence[str], mesh: Mesh
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Return what makes the layout of parameters that a stage computes with, and what undoes it.

    Equal blocks are one in the loop, see `stacking`, and have their names in checkpoints.
    Nothing is done without `model.remat`: a loop would keep all features of all blocks, of which
    the compiler else keeps few (MAGE-B, 256 rows on a v5e: 69 GiB instead of 14). Nor where there
    are no such blocks, or something tells them apart: what is trained or decays, or a rule of
    sharding. Nor with noise: certificates are of parameters under their own names.

    Args:
      cfg: a valid config.
      stage: one of its stages.
      whole: the model's parameters, or their shapes.
      trainable: what the stage trains.
      mesh: over which the layout is split.
    """
    phases = [cfg.phases[name] for name in stage.phases]
    decays = [pattern for phase in phases for pattern in phase.optimizer.no_decay]
    if (
        not cfg.model.get("remat")
        or jax.tree.structure(jax.eval_shape(stacking.stack, whole)) == jax.tree.structure(whole)
        or any(phase.noise.std for phase in phases)
        or not stacking.alike(whole, [*trainable, *decays])
        or not stacking.alike(whole, [pattern for pattern, _ in cfg.sharding.rules], re.search)
    ):
        return (lambda tree: tree), (lambda tree: tree)

    def pack(tree: Any) -> Any:
        shapes = jax.eval_shape(stacking.stack, tree)
        where = sharding.params_sharding(shapes, mesh, **cfg.sharding)
        return jax.jit(stacking.stack, out_shardings=where)(tree)

    return pack, jax.jit(stacking.unstack)


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
    """Compile the `step.unlearn_step` of a phase.

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
