import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from unlearn_jax import sharding


def test_mesh_fills_one_axis():
    assert sharding.make_mesh(data=-1, fsdp=4).shape == {"data": 2, "fsdp": 4}
    assert sharding.make_mesh().shape == {"data": 8, "fsdp": 1}


@pytest.mark.parametrize("sizes", [{"data": 3, "fsdp": 2}, {"data": -1, "fsdp": -1}, {"fsdp": 3}])
def test_mesh_that_does_not_fit_is_refused(sizes):
    with pytest.raises(ValueError, match="multiply to the 8 devices"):
        sharding.make_mesh(**sizes)


@dataclasses.dataclass(frozen=True)
class Device:
    """What the order of a mesh looks at."""

    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


@pytest.mark.parametrize(
    ("sizes", "slices", "rows"),
    [
        ({}, 2, [[0], [1], [2], [3], [4], [5], [6], [7]]),
        ({"fsdp": 4}, 2, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ({"fsdp": 2}, 2, [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ({"data": 2, "fsdp": -1}, 4, [[0, 1, 2, 3], [4, 5, 6, 7]]),  # fsdp over two slices each
        ({"fsdp": 8}, 2, [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ],
)
def test_slices_are_joined_by_the_data_axis(sizes, slices, rows):
    # Scrambled: devices need not come slice by slice.
    devices = [Device(id=i, slice_index=i * slices // 8) for i in (0, 4, 1, 5, 2, 6, 3, 7)]
    mesh = sharding.make_mesh(**sizes, devices=devices)
    assert np.vectorize(lambda d: d.id)(mesh.devices).tolist() == rows


def test_a_mesh_over_some_devices():
    mesh = sharding.make_mesh(fsdp=2, devices=jax.devices()[:4])
    assert mesh.shape == {"data": 2, "fsdp": 2}
    assert mesh.devices.ravel().tolist() == jax.devices()[:4]
    with pytest.raises(ValueError, match="multiply to the 4 devices"):
        sharding.make_mesh(fsdp=8, devices=jax.devices()[:4])


def test_fsdp_splits_the_largest_divisible_dimension_of_large_leaves():
    mesh = sharding.make_mesh(fsdp=8)
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)  # noqa: E731
    tree = {"large": shape(1001, 2000), "small": shape(8, 8), "odd": shape(1001, 3003)}
    specs = jax.tree.map(lambda s: s.spec, sharding.params_sharding(tree, mesh))
    assert specs == {"large": P(None, "fsdp"), "small": P(), "odd": P()}


def test_first_matching_rule_wins():
    mesh = sharding.make_mesh(fsdp=8)
    leaf = jax.ShapeDtypeStruct((2048, 1024), jnp.float32)
    tree = {"encoder": {"kernel": leaf, "other": leaf}, "decoder": {"kernel": leaf}}
    rules = [("encoder/kernel", ["data", "fsdp"]), ("encoder", "replicate"), (".*", "fsdp")]
    specs = jax.tree.map(lambda s: s.spec, sharding.params_sharding(tree, mesh, rules))
    assert specs["encoder"] == {"kernel": P("data", "fsdp"), "other": P()}
    assert specs["decoder"]["kernel"] == P("fsdp", None)


def test_leaves_below_min_bytes_stay_whole():
    mesh = sharding.make_mesh(fsdp=8)
    tree = {"w": jax.ShapeDtypeStruct((8, 16), jnp.float32), "b": jnp.zeros(8)}
    for least, specs in (
        (32, {"w": P(None, "fsdp"), "b": P("fsdp")}),
        (512, {"w": P(None, "fsdp"), "b": P()}),
        (513, {"w": P(), "b": P()}),
    ):
        found = sharding.params_sharding(tree, mesh, min_bytes=least)
        assert jax.tree.map(lambda s: s.spec, found) == specs


@pytest.mark.parametrize("spec", ["fdsp", ("fsdp", None, None), ("model",), (None, "fsdp")])
def test_a_rule_that_does_not_fit_is_refused(spec):
    mesh = sharding.make_mesh(fsdp=8)
    tree = {"encoder": {"kernel": jax.ShapeDtypeStruct((16, 9), jnp.float32)}}
    message = r"rules: expected .* of encoder/kernel \[16, 9\], .* got \S*" + re.escape(str(spec))
    with pytest.raises(ValueError, match=message):
        sharding.params_sharding(tree, mesh, [("kernel", spec)])


def test_global_batch_is_split_over_all_devices():
    mesh = sharding.make_mesh(data=2, fsdp=4)
    rows = np.arange(16.0).reshape(16, 1)
    batch = sharding.global_batch({"x": rows}, mesh)["x"]
    assert {s.data.shape for s in batch.addressable_shards} == {(2, 1)}
    np.testing.assert_array_equal(batch, rows)


@pytest.mark.parametrize(("at_least", "rows"), [(1, 8), (8, 8), (9, 16), (24, 24), (0, 0)])
def test_last_rows_are_split_anew(at_least, rows):
    mesh = sharding.make_mesh(data=2, fsdp=4)
    batch = sharding.global_batch({"x": np.arange(24.0)}, mesh)["x"]
    found = jax.jit(lambda x: sharding.last_rows(x, at_least=at_least, mesh=mesh))(batch)
    np.testing.assert_array_equal(found, np.arange(24.0)[24 - rows :])
    assert {s.data.shape for s in found.addressable_shards} == {(rows // 8,)}


@pytest.mark.parametrize(("at_least", "rows"), [(0, 0), (1, 64), (64, 64), (65, 96)])
def test_last_rows_of_tpus_are_eight_each_or_all(at_least, rows, monkeypatch):
    monkeypatch.setattr(jax.lax, "with_sharding_constraint", lambda x, _: x)
    devices = np.array([Device(i, 0, platform="tpu") for i in range(8)])
    mesh = jax.sharding.Mesh(devices.reshape(2, 4), ("data", "fsdp"))
    found = sharding.last_rows(jnp.arange(96.0), at_least=at_least, mesh=mesh)
    np.testing.assert_array_equal(found, np.arange(96.0)[96 - rows :])


def test_batch_size_error_names_sizes_that_fit():
    with pytest.raises(ValueError, match="8 devices, got 100.*batch_size=96 or 104"):
        sharding.check_batch_size(100, sharding.make_mesh())
    with pytest.raises(ValueError, match="got 3.*batch_size=8"):
        sharding.check_batch_size(3, sharding.make_mesh())
    with pytest.raises(ValueError, match="Expected audit.batch_size .*config.audit.batch_size=8"):
        sharding.check_batch_size(9, sharding.make_mesh(), "audit.batch_size")
