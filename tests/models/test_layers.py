"""The layers against `lax.conv_general_dilated` and `lax.conv_transpose`, and their gradients."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from unlearn_jax import models
from unlearn_jax.models import layers

LAYOUT = ("NHWC", "HWIO", "NHWC")


def reference_down(x, kernel):
    return lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=LAYOUT)


def reference_up(x, kernel):
    return lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=LAYOUT)


@partial(jax.jit, static_argnums=0)
def value_and_gradients(f, *args):
    return f(*args), *jax.grad(objective(f), (0, 1))(*args)


PAIRS = [(layers.conv_down, reference_down), (layers.conv_up, reference_up)]


def arrays(c, o, dtype=jnp.float32):
    """Not square, so that a swap of height and width shows."""
    x, kernel = jax.random.split(jax.random.key(0))
    x = jax.random.normal(x, (8, 6, 10, c), dtype)
    return x, jax.random.normal(kernel, (4, 4, c, o), dtype) / 4


def objective(f):
    """A loss whose cotangent differs at every output pixel."""

    def loss(x, kernel):
        y = f(x, kernel).astype(jnp.float32)
        return jnp.sum(jnp.sin(jnp.arange(y.size).reshape(y.shape)) * y + 0.1 * y**2)

    return loss


@pytest.mark.parametrize("c,o", [(3, 5), (8, 3)])
@pytest.mark.parametrize("ours,reference", PAIRS)
def test_values_and_gradients(ours, reference, c, o):
    x, kernel = arrays(c, o)
    got, want = (value_and_gradients(f, x, kernel) for f in (ours, reference))
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5 * np.abs(w).max())


@pytest.mark.parametrize("ours,reference", PAIRS)
def test_accelerator_branch_gradients(ours, reference, monkeypatch):
    """What other platforms lower, run here."""
    monkeypatch.setattr(lax, "platform_dependent", lambda *a, cpu, default: default(*a))
    x, kernel = arrays(3, 5)
    # A fresh function, so that nothing compiled before the patch is reused.
    got = value_and_gradients(lambda x, kernel: ours(x, kernel), x, kernel)
    want = value_and_gradients(reference, x, kernel)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5 * np.abs(w).max())


def test_each_platform_gets_its_own_form():
    x, kernel = arrays(3, 5)
    export = jax.export.export(jax.jit(jax.grad(objective(layers.conv_down), 1)), platforms=["tpu"])
    assert "while" not in export(x, kernel).mlir_module()
    assert "while" in jax.jit(jax.grad(objective(layers.conv_down), 1)).lower(x, kernel).as_text()


@pytest.mark.parametrize("ours,reference", PAIRS)
def test_per_example_gradients(ours, reference):
    x, kernel = arrays(3, 5)

    def per_example(f):
        loss = objective(f)
        return jax.vmap(jax.grad(lambda k, x: loss(x[None], k)), (None, 0))(kernel, x)

    got, want = (
        jax.jit(per_example, static_argnums=0)(ours),
        jax.jit(per_example, static_argnums=0)(reference),
    )
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("ours,reference", PAIRS)
def test_bfloat16(ours, reference):
    x, kernel = arrays(8, 5, jnp.bfloat16)
    got = value_and_gradients(ours, x, kernel)
    assert all(a.dtype == jnp.bfloat16 for a in got)
    full = (x.astype(jnp.float32), kernel.astype(jnp.float32))
    want = value_and_gradients(reference, *full)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g.astype(jnp.float32), w, atol=2e-2 * np.abs(w).max())


@pytest.mark.parametrize("ours,reference", PAIRS)
def test_batch_sharded_over_devices(ours, reference):
    x, kernel = arrays(4, 8)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    step = jax.jit(lambda x, k: (ours(x, k), jax.grad(objective(ours), 1)(x, k)))
    y, gradient = step(sharded, kernel)
    assert len(y.sharding.device_set) == 8 and y.addressable_shards[0].data.shape[0] == 1
    np.testing.assert_allclose(y, reference(x, kernel), rtol=1e-5, atol=1e-5)
    want = jax.grad(objective(reference), 1)(x, kernel)
    np.testing.assert_allclose(gradient, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    compiled = step.lower(sharded, kernel).compile().as_text()
    assert "all-gather" not in compiled and "all-to-all" not in compiled


def test_modules_add_the_bias_and_keep_float32_parameters():
    for module, f in ((layers.Down, reference_down), (layers.Up, reference_up)):
        x = arrays(3, 5)[0]
        params = module(5, jnp.bfloat16).init(jax.random.key(1), x)["params"]
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        assert module(5, jnp.bfloat16).apply({"params": params}, x).dtype == jnp.bfloat16
        params["bias"] = jnp.arange(5.0)
        want = f(x, params["kernel"]) + jnp.arange(5.0)
        got = module(5).apply({"params": params}, x)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
        scale = jnp.sqrt(jnp.mean(module(256).init_with_output(jax.random.key(2), x)[0] ** 2))
        assert 1.1 < scale < 1.6  # He: variance 2, a little less at the border


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_group_norm_is_flax_s_and_so_are_its_gradients(dtype):
    x = 3 + 2 * jax.random.normal(jax.random.key(1), (4, 6, 10, 12), dtype)
    ours = layers.GroupNorm(4, epsilon=1e-5)
    theirs = nn.GroupNorm(4, epsilon=1e-5, dtype=jnp.float32, use_fast_variance=False)
    params = {"scale": jnp.linspace(0.5, 2, 12), "bias": jnp.linspace(-1, 1, 12)}
    made = ours.init(jax.random.key(0), x)["params"]
    assert jax.tree.structure(made) == jax.tree.structure(params)
    assert ours.apply({"params": params}, x).dtype == jnp.float32

    def loss(norm, params, x):
        y = norm.apply({"params": params}, x)
        return jnp.sum(jnp.sin(jnp.arange(y.size).reshape(y.shape)) * y**2)

    def of(norm):
        both = jax.value_and_grad(partial(loss, norm), (0, 1))
        return norm.apply({"params": params}, x), jax.jit(both)(params, x)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.float32(a), np.float32(b), rtol=1e-2 if dtype == jnp.bfloat16 else 1e-4, atol=2e-3
        ),
        *map(of, (ours, theirs)),
    )


@pytest.mark.parametrize("name", models.MODELS)
def test_float16_is_refused_with_what_to_take_instead(name):
    assert models.build(name, dtype="bfloat16").dtype == "bfloat16"
    with pytest.raises(ValueError, match=r"dtype must be one of .* 'float16'; .*, bfloat16 has"):
        models.build(name, dtype="float16")


@pytest.mark.parametrize(
    ("name", "field"), [("mae", "depth"), ("mage", "decoder_depth"), ("palette", "res_blocks")]
)
def test_more_blocks_than_anybody_would_wait_for_are_refused(name, field):
    models.build(name, **{field: 1000})
    with pytest.raises(ValueError, match=f"model.{field}: expected at most 1,000 blocks, got 1,0"):
        models.build(name, **{field: 1001})
