"""The programs of a config, by shape only: unlearning step, evaluation step and sampler."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.experimental import mesh_utils, topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from launch.aot.chips import Topology, parse_mesh
from unlearn_jax import data, models, sharding
from unlearn_jax.data.sizes import sides
from unlearn_jax.models import Model, Params, flops
from unlearn_jax.models.params import select
from unlearn_jax.registry import UserError
from unlearn_jax.training import phases
from unlearn_jax.training.step import UnlearnState, masked_mean

NAMES = ("step", "evaluation", "sampler")
AXES = ("data", "fsdp")


class Program(NamedTuple):
    """A jitted function and what it is called with.

    Attributes:
      fn: of `jax.jit`.
      args: trees of ShapeDtypeStructs with shardings.
      batch: rows per call, over all devices.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    batch: int

    def argument_bytes(self) -> int:
        """Count the bytes that the arguments take on each device."""
        arrays = [x for x in jax.tree.leaves(self.args) if isinstance(x, jax.ShapeDtypeStruct)]
        return bytes_per_device(arrays)

    def lower(self) -> Any:
        """Lower the program for the devices of its arguments' shardings."""
        return self.fn.lower(*self.args)

    def flops(self) -> flops.Flops:
        """Count FLOPs of one call, over all devices, with equal parts computed once."""
        return flops.executed(self.fn.trace(*self.args).jaxpr)


def make_mesh(topology: Topology, text: str, default: Mapping[str, int]) -> Mesh:
    """Make the mesh over a topology's devices, as `sharding.make_mesh` does over those at hand.

    Args:
      topology: of `chips.parse_topology`; what libtpu can compile for is on no machine needed.
      text: "DATA:FSDP", or "" for the default.
      default: a config's section `mesh`.

    Raises:
      UserError: the axes do not fit the devices.
    """
    text = text or "{data}:{fsdp}".format(**default)
    if topology.name == "local":
        return sharding.make_mesh(**parse_mesh(text, jax.device_count()))
    axes = parse_mesh(text, topology.chips, topology.slices)
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name=topology.name, **topology.options()
    ).devices
    shape = tuple(axes[name] for name in AXES)
    if topology.slices == 1:
        found = mesh_utils.create_device_mesh(shape, devices)
    else:  # neighbours on the data axis may be in different slices, on the other never
        n = topology.slices
        found = mesh_utils.create_hybrid_device_mesh((shape[0] // n, shape[1]), (n, 1), devices)
    return Mesh(found, AXES)


def phase_of(cfg: ConfigDict, name: str = "") -> tuple[str, bool]:
    """Find (the phase, whether it starts from scratch): the one of that name, or what unlearns.

    That is the last phase of the stage "unlearned" with both weights, else with a forget weight,
    else the last.

    Raises:
      UserError: no stage has such a phase.
    """
    stages = _stages(cfg)
    if name and name not in stages:
        raise UserError(f"Expected --phase as one of {', '.join(sorted(stages))}; got {name!r}.")
    if not name:

        def rank(phase: str) -> tuple[bool, bool]:
            forget, retain = cfg.phases[phase].forget_weight, cfg.phases[phase].retain_weight
            return forget > 0 and retain > 0, forget > 0

        name = max(reversed(cfg.stages.unlearned.phases), key=rank)
    return name, stages[name].scratch


def _stages(cfg: ConfigDict) -> dict[str, ConfigDict]:
    return {phase: stage for stage in cfg.stages.values() for phase in stage.phases}


def batch_like(cfg: ConfigDict, mesh: Mesh, rows: int, phase: ConfigDict | None = None) -> Any:
    """Describe a batch of `data.make_train` for the phase, or of `data.make_eval`."""
    size = sides(cfg.data.image_size)
    columns = {"image": ((*size, 3), np.float32), "mask": ((*size, 1), np.float32)}
    columns |= {name: ((), np.int32) for name in ("label", "index")}
    columns |= {name: ((), bool) for name in ("is_forget", "valid")}
    if phase and phase.goal:
        columns["goal"] = ((), np.float32)
        if phase.objective_kw.get("direction", 0) > 0:
            columns["view_output"] = ((*size, 3), np.float16)
    batch = {name: rows_like(mesh, rows, *column) for name, column in columns.items()}
    if phase and phase.cache_tokens:
        model = models.of(cfg)
        codes = jax.eval_shape(model.tokens, params_like(cfg, model, mesh), batch)
        batch["tokens"] = rows_like(mesh, rows, codes.shape[1:], np.int32)
    return batch


def rows_like(mesh: Mesh, rows: int, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """Describe an array of so many rows of a shape, split over all devices."""
    return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding.batch_sharding(mesh))


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """Describe the leaves of a tree as ShapeDtypeStructs, whole on every device."""
    return sharding.abstract(tree, jax.tree.map(lambda _: sharding.replicated(mesh), tree))


def anywhere(tree: Any) -> Any:
    """Describe leaves that are on no mesh, such as keys, as ShapeDtypeStructs."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def params_like(cfg: ConfigDict, model: Model, mesh: Mesh) -> Params:
    """Describe the model's parameters, as every binary has them."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return sharding.abstract(shapes, sharding.params_sharding(shapes, mesh, **cfg.sharding))


def layout_like(cfg: ConfigDict, stage: ConfigDict, model: Model, mesh: Mesh) -> Params:
    """Describe the model's parameters as a stage computes with them."""
    trainable = (".*",) if stage.scratch else model.trainable
    whole = params_like(cfg, model, mesh)
    pack, _ = phases.make_layout(cfg, stage, whole, trainable, mesh)
    whole = jax.eval_shape(pack, whole)
    return sharding.abstract(whole, sharding.params_sharding(whole, mesh, **cfg.sharding))


def step(cfg: ConfigDict, mesh: Mesh, *, phase: str, rows: int = 0, remat: bool = True) -> Program:
    """Build the training step of a phase: what `train.py` compiles for it.

    Args:
      cfg: a valid config.
      mesh: of any devices.
      phase: its name.
      rows: of a batch; 0: what the config says.
      remat: False counts the FLOPs of a model that computes nothing twice to save memory.

    Raises:
      UserError: the rows cannot be divided over the devices.
    """
    spec, stage = cfg.phases[phase], _stages(cfg)[phase_of(cfg, phase)[0]]
    rows, accumulate = rows or spec.batch_size or cfg.batch_size, accumulated(cfg, phase)
    sharding.check_batch_size(rows, mesh, accumulate=accumulate)
    model = models.of(cfg)
    if not remat and hasattr(model, "remat"):
        model = dataclasses.replace(model, remat=False)
    whole = layout_like(cfg, stage, model, mesh)
    params = select(whole, (".*",) if stage.scratch else model.trainable)
    tx = phases.make_optimizer(spec)

    def new_state(params: Params) -> UnlearnState:
        return UnlearnState(jnp.int32(0), params, tx.init(params), jax.random.key(0))

    state = jax.eval_shape(new_state, params)
    state = sharding.abstract(state, sharding.params_sharding(state, mesh, **cfg.sharding))
    target, more = ({} if stage.scratch else whole), ()
    if spec.noise.std:  # nothing of the original but what the centre shares with it
        trained = traverse_util.flatten_dict(params)
        target = {k: v for k, v in traverse_util.flatten_dict(whole).items() if k not in trained}
        target = traverse_util.unflatten_dict(target)
        secret = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 4))
        more = ({"secret": everywhere(secret, mesh), "reference": params},)
    some = {  # which rows does not matter
        f"{kind}_rows": np.zeros(1, int) if spec[f"{kind}_weight"] else None
        for kind in ("retain", "forget")
    }
    fn = phases.make_step(
        spec,
        model,
        tx,
        mesh,
        forget_count=data.forget_count(max(rows, 2), spec.forget_fraction, **some),
        accumulate=accumulate,
        state_sharding=shardings_of(state),
        target_sharding=shardings_of(target),
        noised_sharding=shardings_of(more[0]) if more else None,
    )
    return Program(fn, (state, target, batch_like(cfg, mesh, rows, spec), *more), rows)


def accumulated(cfg: ConfigDict, phase: str) -> int:
    """Count the slices in which the step of a phase computes its batch."""
    return cfg.phases[phase].accumulate or cfg.accumulate


def evaluation(cfg: ConfigDict, mesh: Mesh, *, rows: int = 0) -> Program:
    """Build the mean loss of held-out rows, as the probes and the audits have it of a batch."""
    model, rows = models.of(cfg), rows or evaluation_rows(cfg, mesh)
    sharding.check_batch_size(rows, mesh)

    loss = sharding.jit_rows(model.loss, mesh)

    def mean_loss(params, batch, key):
        return masked_mean(loss(params, batch, key), batch["valid"])

    return Program(jax.jit(mean_loss), _evaluated(cfg, model, mesh, rows), rows)


def sampler(cfg: ConfigDict, mesh: Mesh, *, rows: int = 0) -> Program:
    """Build the completion of a batch of images, as `evaluate` does it."""
    other = {"dtype": cfg.protocol.dtype} if cfg.protocol.dtype else {}
    model = models.of({"model": cfg.model.to_dict() | other, "data": cfg.data})
    rows = rows or evaluation_rows(cfg, mesh)
    sharding.check_batch_size(rows, mesh)
    return Program(
        sharding.jit_rows(model.generate, mesh), _evaluated(cfg, model, mesh, rows), rows
    )


def evaluation_rows(cfg: ConfigDict, mesh: Mesh) -> int:
    """Return the protocol's batch size, or the next larger one that the devices can divide."""
    return -(-cfg.protocol.batch_size // mesh.size) * mesh.size


def _evaluated(cfg: ConfigDict, model: Model, mesh: Mesh, rows: int) -> tuple[Any, ...]:
    key = anywhere(jax.random.key(0))
    return params_like(cfg, model, mesh), batch_like(cfg, mesh, rows), key


def shardings_of(tree: Any) -> Any:
    """List the leaves' shardings, as a tree."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def parameters(tree: Any) -> int:
    """Count the numbers in a tree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def bytes_per_device(tree: Any) -> int:
    """Count the bytes that the leaves of a tree take on each device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape)
        * _itemsize(leaf)
        for leaf in jax.tree.leaves(tree)
    )


def _itemsize(leaf: Any) -> int:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return 8  # two words of 32 bits
    return leaf.dtype.itemsize
