"""Where arrays live: one mesh `data x fsdp`, rules for parameters, batches split over both axes."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

FSDP_MIN_BYTES = 4 * 2**20  # below this, gathering costs more than the memory it saves


def make_mesh(*, data: int = -1, fsdp: int = 1) -> Mesh:
    """A mesh over all devices; one axis may be -1, "what is left".

    Raises:
      ValueError: the axes do not multiply to the number of devices.
    """
    n = jax.device_count()
    sizes = {"data": data, "fsdp": fsdp}
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    shape = tuple(n // known if size == -1 else size for size in sizes.values())
    if np.prod(shape) != n or list(sizes.values()).count(-1) > 1:
        raise ValueError(
            f"Expected mesh axes that multiply to the {n} devices there are, got {sizes}. "
            "Set one of --config.mesh.data and --config.mesh.fsdp to -1 to fill it in."
        )
    # Auto, not the default Explicit: FSDP matrix products need the compiler to choose.
    return jax.make_mesh(shape, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def leaf_path(path: tuple) -> str:
    """A tree path as "encoder/down0/kernel"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def params_sharding(
    params: Any, mesh: Mesh, rules: Sequence[tuple[str, Any]] = ((".*", "fsdp"),)
) -> Any:
    """A tree of shardings for params, or for any tree with leaves of their shapes.

    Args:
      params: arrays or ShapeDtypeStructs.
      mesh: from `make_mesh`.
      rules: (regex on the leaf's path, spec); the first match wins. A spec is "replicate", "fsdp"
        (split the largest divisible dimension of leaves of at least 4 MB) or a sequence of axis
        names.
    """

    def shard(path, leaf):
        name = leaf_path(path)
        spec = next((spec for regex, spec in rules if re.search(regex, name)), "replicate")
        if spec == "replicate":
            return NamedSharding(mesh, P())
        if spec != "fsdp":
            return NamedSharding(mesh, P(*spec))
        size = mesh.shape["fsdp"]
        dims = [d for d in range(len(leaf.shape)) if leaf.shape[d] % size == 0]
        if size == 1 or not dims or leaf.size * leaf.dtype.itemsize < FSDP_MIN_BYTES:
            return NamedSharding(mesh, P())
        largest = max(dims, key=lambda d: leaf.shape[d])
        return NamedSharding(mesh, P(*["fsdp" if d == largest else None for d in range(leaf.ndim)]))

    return jax.tree_util.tree_map_with_path(shard, params)


def abstract(tree: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs of tree's leaves, with those shardings."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises ValueError, with the nearest sizes that fit, unless all devices get equal rows."""
    devices = mesh.size
    if batch_size % devices:
        near = {batch_size // devices * devices, -(-batch_size // devices) * devices} - {0}
        raise ValueError(
            f"Expected a batch_size divisible by the {devices} devices, got {batch_size}. "
            f"Set --config.batch_size={' or '.join(map(str, sorted(near)))}."
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over all devices."""
    return NamedSharding(mesh, P(("data", "fsdp")))


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


def split_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The global batch, from all of its rows on every process."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_callback(rows.shape, sharding, rows.__getitem__)
        for name, rows in batch.items()
    }
