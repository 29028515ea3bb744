"""Phases of a stage: the optimizer, state, batches and compiled step of each.

`train` runs them, and `launch.aot` compiles their steps for devices that are not there.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from unlearn_jax import data, methods, sharding
from unlearn_jax.config import certified
from unlearn_jax.data import slices
from unlearn_jax.methods import combine, optimizer
from unlearn_jax.models import Model, Params, stacking
from unlearn_jax.request import Request
from unlearn_jax.training import noisy
from unlearn_jax.training.step import UnlearnState, jit_step


@dataclass(frozen=True)
class Phase:
    """One phase of a stage, resolved; its methods say what the loop does with it.

    Attributes:
      index: its place in the stage.
      name: of the config's `phases`.
      spec: its part of the config.
      tx: its optimizer.
      rows: {"retain_rows", "forget_rows"} of its batches; None for a set that it does not use.
      batch_size: rows per step over all devices.
      accumulate: slices of each batch.
      noised: it or a phase before it adds noise: nothing of the original may enter it.
      shapes: its state as ShapeDtypeStructs with shardings, in the layout of the loop.
      segments: which rows its batches are of, from which of its steps on; none without slices.
    """

    index: int
    name: str
    spec: ConfigDict
    tx: optax.GradientTransformation
    rows: Mapping[str, np.ndarray | None]
    batch_size: int
    accumulate: int
    noised: bool
    shapes: UnlearnState
    segments: Sequence[slices.Segment] = ()

    @property
    def shardings(self) -> UnlearnState:
        """Return the shardings of its state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.shapes)

    def new_state(self, params: Params, step: int, key: Any) -> UnlearnState:
        """Make the state that it begins with, of copies: a step donates its state.

        Args:
          params: the trainable leaves.
          step: updates done in earlier phases.
          key: of the run.
        """
        make = jax.jit(_new_state, static_argnums=(3, 4), out_shardings=self.shardings)
        return make(params, key, step, self.tx.init, self.index if self.noised else None)

    def batches(
        self, request: Request, columns: Mapping[str, np.ndarray], first_step: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield this process's part of the batches from `first_step` of the phase on.

        Args:
          request: whose images they are.
          columns: more of each row, from what the phase has prepared.
          first_step: steps of this phase that are done.
        """
        cfg = request.cfg
        common = {
            "batch_size": self.batch_size,
            "task": cfg.task.to_dict(),
            "places": sharding.local_rows(self.batch_size, request.mesh),
            "num_threads": cfg.data.num_threads,
            "prefetch": cfg.data.prefetch,
            "columns": columns,
        }
        if self.segments:
            return self._sliced(request, first_step, common)
        return data.make_train(
            request.source,
            **self.rows,
            forget_fraction=self.spec.forget_fraction,
            seed=_seed(cfg.seed, self.index),
            first_step=first_step,
            num_steps=self.spec.steps - first_step,
            **common,
        )

    def _sliced(
        self, request: Request, first_step: int, common: Mapping[str, Any]
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield batches of one segment after the other: two streams, the second of the newest."""
        cfg = request.cfg
        for part in self.segments:
            first = max(first_step, part.first)
            if first >= part.last:
                continue
            batches = data.make_train(
                request.source,
                retain_rows=part.earlier,
                forget_rows=part.newest,
                forget_fraction=cfg.data.slices.newest,
                seed=_seed(cfg.seed, self.index, part.slice),
                first_step=first - part.first,
                num_steps=part.last - first,
                **common,
            )
            with closing(batches):
                for batch in batches:
                    yield batch | {"is_forget": np.zeros_like(batch["is_forget"])}

    def make_step(self, request: Request, target: Params, constants: Sequence[Any]) -> Any:
        """Return its step for `jax.jit`: (state, target, batch, *constants) -> (state, metrics)."""
        where = partial(jax.tree.map, lambda leaf: leaf.sharding)
        fraction = self.spec.forget_fraction
        return make_step(
            self.spec,
            request.model,
            self.tx,
            request.mesh,
            forget_count=data.forget_count(self.batch_size, fraction, **self.rows),
            accumulate=self.accumulate,
            state_sharding=self.shardings,
            target_sharding=where(target),
            noised_sharding=where(constants[0]) if constants else None,
        )


def _seed(*of: int) -> int:
    return int(np.random.SeedSequence(of).generate_state(1)[0])


def _new_state(params, key, step, init, noised_index):
    if noised_index is not None:
        # How many steps came before may depend on the forget set: no randomness may tell.
        step, key = 0, jax.random.fold_in(key, noised_index)
    params = jax.tree.map(jnp.copy, params)
    return UnlearnState(jnp.int32(step), params, init(params), jnp.copy(key))


def make_phases(request: Request, params: Params, key: Any) -> list[Phase]:
    """Resolve the phases of the stage that a request's config chooses.

    Args:
      request: the request.
      params: the trainable leaves, or their shapes.
      key: of the run, or its shape.

    Raises:
      UserError: a batch size that the devices cannot share equally.
    """
    cfg, mesh, split = request.cfg, request.mesh, request.split
    stage, noised_from = cfg.stages[cfg.stage], certified.position(cfg)
    phases, begins, segments = [], 0, []
    if stage.scratch and cfg.data.slices.count:
        segments = slices.segments(request.source, getattr(split, stage.rows), cfg)
    for i, name in enumerate(stage.phases):
        spec = cfg.phases[name]
        batch_size = spec.batch_size or cfg.batch_size
        accumulate = spec.accumulate or cfg.accumulate
        sharding.check_batch_size(batch_size, mesh, f"phases.{name}.batch_size", accumulate)
        tx, noised = make_optimizer(spec), noised_from is not None and i >= noised_from
        shapes = jax.eval_shape(
            partial(_new_state, step=0, init=tx.init, noised_index=i if noised else None),
            params, key,
        )  # fmt: skip
        shardings = sharding.params_sharding(shapes, mesh, **cfg.sharding)
        rows = {
            "retain_rows": getattr(split, stage.rows) if spec.retain_weight else None,
            "forget_rows": split.forget if spec.forget_weight else None,
        }
        shapes = sharding.abstract(shapes, shardings)
        parts = slices.within(segments, begins, spec.steps)
        begins += spec.steps
        phases.append(Phase(i, name, spec, tx, rows, batch_size, accumulate, noised, shapes, parts))
    return phases


def make_optimizer(spec: ConfigDict) -> optax.GradientTransformation:
    """Build a phase's optimizer: noisy SGD with noise, a mask as last transform for saliency."""
    if spec.noise.std:
        return noisy.noisy_sgd(
            learning_rate=spec.optimizer.learning_rate,
            noise_std=spec.noise.std,
            clip_norm_l2=spec.optimizer.clip_norm_l2 or math.inf,
            weight_decay=spec.optimizer.weight_decay,
            model_clip_norm=spec.noise.model_clip or math.inf,
        )
    masked = 0 < spec.saliency < 1
    return optimizer.make_optimizer(**spec.optimizer, steps=spec.steps, masked=masked)


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
        methods.build(phase.objective, forget_part=forget_part, **phase.objective_kw),
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
