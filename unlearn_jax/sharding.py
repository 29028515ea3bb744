"""Where arrays live: one mesh `data x fsdp`, rules for parameters, batches split over both axes."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from unlearn_jax.stacking import STACK

# Smaller leaves stay whole. At 1 MB that is 0.5 to 2 % of MAGE-B, MAE-L and VQGAN (at 4 MB up to
# a quarter of them), in the norms and biases that are most of the leaves.
FSDP_MIN_BYTES = 2**20
# Embedding tables stay whole: one that is split, by features, splits those of all layers after it,
# on every device for all rows. (Of MAGE-B's step, each of 16 chips sent 8.9 GB instead of 1.2.)
RULES = (("/embedding$", "replicate"), (".*", "fsdp"))


def make_mesh(*, data: int = -1, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices; one axis may be -1, "what is left".

    Several slices (TPU pods, GPU hosts) are joined by a slower network, which is given to the data
    axis as far as its size allows: gradients cross it once a step, parameters for every layer.

    Args:
      data: its size is what divides the batch only.
      fsdp: its size divides the batch, the parameters and the optimizer's state.
      devices: by default all there are; those of a topology to compile for what is not there.

    Raises:
      ValueError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    n = len(devices)
    sizes = {"data": data, "fsdp": fsdp}
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    shape = tuple(n // known if size == -1 else size for size in sizes.values())
    if np.prod(shape) != n or list(sizes.values()).count(-1) > 1:
        raise ValueError(
            f"Expected mesh axes that multiply to the {n} devices there are, got {sizes}. "
            "Set one of --config.mesh.data and --config.mesh.fsdp to -1 to fill it in."
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        across = math.gcd(shape[0], slices)
        across = across, slices // across
        within = tuple(size // slow for size, slow in zip(shape, across, strict=True))
        placed = mesh_utils.create_hybrid_device_mesh(
            within, across, devices, allow_split_physical_axes=True
        )
    # Auto, not the default Explicit: FSDP matrix products need the compiler to choose.
    return Mesh(placed, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def leaf_path(path: tuple) -> str:
    """A tree path as "encoder/down0/kernel"; a stack of equal blocks has the name of the first."""
    keys = (str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
    return "/".join("block0" if key == STACK else key for key in keys)


def params_sharding(
    params: Any,
    mesh: Mesh,
    rules: Sequence[tuple[str, Any]] = RULES,
    min_bytes: int = FSDP_MIN_BYTES,
) -> Any:
    """A tree of shardings for params, or for any tree with leaves of their shapes.

    Args:
      params: arrays or ShapeDtypeStructs.
      mesh: from `make_mesh`.
      rules: (regex on the leaf's path, spec); the first match wins. A spec is "replicate", "fsdp"
        (split the largest divisible dimension of leaves that are large enough) or a sequence of
        axis names.
      min_bytes: of a leaf that "fsdp" splits.

    Raises:
      ValueError: a rule that is none, or does not fit a leaf.
    """

    def shard(path, leaf):
        if any(getattr(key, "key", "") == STACK for key in path):  # as each of the blocks
            one = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
            return NamedSharding(mesh, P(None, *spec_of(leaf_path(path), one)))
        return NamedSharding(mesh, spec_of(leaf_path(path), leaf))

    def spec_of(name, leaf):
        spec = next((spec for regex, spec in rules if re.search(regex, name)), "replicate")
        if spec == "replicate":
            return P()
        if spec != "fsdp":
            return _checked(spec, name, leaf.shape, mesh)
        size = mesh.shape["fsdp"]
        dims = [d for d in range(len(leaf.shape)) if leaf.shape[d] % size == 0]
        if size == 1 or not dims or leaf.size * leaf.dtype.itemsize < min_bytes:
            return P()
        largest = max(dims, key=lambda d: leaf.shape[d])
        return P(*["fsdp" if d == largest else None for d in range(len(leaf.shape))])

    return jax.tree_util.tree_map_with_path(shard, params)


def _checked(spec: Any, name: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    sizes = [mesh.shape.get(axis, 0) if axis else 1 for axis in spec]
    fits = len(sizes) <= len(shape) and not isinstance(spec, str)
    if not (fits and all(s and d % s == 0 for d, s in zip(shape, sizes, strict=False))):
        raise ValueError(
            f"config.sharding.rules: expected 'fsdp', 'replicate' or, for each dimension of {name} "
            f"{list(shape)}, None or an axis of {dict(mesh.shape)} that divides it, got {spec!r}."
        )
    return P(*spec)


def abstract(tree: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs of tree's leaves, with those shardings."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )


def check_batch_size(
    batch_size: int, mesh: Mesh, key: str = "batch_size", accumulate: int = 1
) -> None:
    """Raises ValueError, with the nearest sizes that fit, unless all devices get equal rows.

    key: of the config, where the size was set; accumulate: slices, in which they get equal rows.
    """
    unit = mesh.size * accumulate
    if batch_size % unit:
        near = {batch_size // unit * unit, -(-batch_size // unit) * unit} - {0}
        times = f", times accumulate={accumulate}" if accumulate > 1 else ""
        raise ValueError(
            f"Expected {key} divisible by the {mesh.size} devices{times}, got {batch_size}. "
            f"Set --config.{key}={' or '.join(map(str, sorted(near)))}."
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over all devices."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def jit_rows(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Compile a function of a batch, its outputs [b …] split over all devices.

    XLA left to itself splits what it computes from split parameters over `data` only, and all
    devices of an fsdp group do the same work: a VQGAN's sampler on 1 x 8 devices took as much
    memory on each as on a single one.
    """
    return jax.jit(function, out_shardings=batch_sharding(mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """The places in a global batch of the rows that the devices of this process hold, sorted."""
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.sort(np.concatenate([np.arange(batch_size)[index] for index in slices]))


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The global batch, from its `local_rows` on every process."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def last_rows(x: jax.Array, *, at_least: int, mesh: Mesh) -> jax.Array:
    """So many rows at the end of x [b …], or the next number that suits the devices, or all.

    They are split anew: in x they may lie on few of the devices, which would work for all others.
    TPUs get multiples of eight each: for fewer images, XLA folds space into the batch, and a
    convolution of 4 moves three times the bytes of one of 8 (counted for MAGE's tokenizer).
    """
    each = 8 if mesh.devices.flat[0].platform == "tpu" else 1
    multiple = each * mesh.size
    rows = min(-(-at_least // multiple) * multiple, len(x))
    return jax.lax.with_sharding_constraint(x[len(x) - rows :], batch_sharding(mesh))


def split_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The global batch, from all of its rows on every process."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_callback(rows.shape, sharding, rows.__getitem__)
        for name, rows in batch.items()
    }
