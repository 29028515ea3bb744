"""Vision transformer parts: against plain numpy in double precision, and published numbers."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearn_jax.models import stacking, vit

KEY = jax.random.key(0)


@pytest.mark.long
def test_what_a_gradient_reads_at_once_does_not_grow_with_the_depth(monkeypatch):
    def operands(depth):
        blocks = vit.Blocks(depth, heads=2)
        x = jax.ShapeDtypeStruct((2, 5, 16), jnp.float32)
        params = jax.eval_shape(blocks.init, KEY, x)
        loss = lambda params, x: blocks.apply(params, x).sum()  # noqa: E731
        text = jax.jit(jax.grad(loss)).lower(params, x).compile().as_text()
        return max(found.count("%") for found in re.findall(r" fusion\((.*?)\)", text))

    assert operands(7) > 1.2 * operands(4)  # several devices: as XLA likes it
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert operands(7) == operands(4)


@pytest.mark.parametrize("layout", [lambda params: params, stacking.stack])
def test_what_is_compiled_does_not_grow_with_the_depth(layout):
    def products(depth):
        blocks = vit.Blocks(depth, heads=2, remat=True)
        x = jax.ShapeDtypeStruct((2, 5, 16), jnp.float32)
        params = jax.eval_shape(lambda key: layout(blocks.init(key, jnp.zeros(x.shape))), KEY)
        loss = lambda params, x: blocks.apply(params, x).sum()  # noqa: E731
        return jax.jit(jax.grad(loss)).lower(params, x).as_text().count("stablehlo.dot_general")

    assert 0 < products(8) == products(12) < products(7) / 4


@pytest.mark.long
@pytest.mark.parametrize(("depth", "remat"), [(3, False), (3, True), (2, True)])
@pytest.mark.parametrize(("dtype", "close"), [("float32", 1e-6), ("bfloat16", 0.05)])
def test_blocks_are_one_after_the_other(dtype, close, depth, remat, monkeypatch):
    """Also in their gradients, stacked or not, with tokens that are not visible."""
    for module in (stacking, vit):
        monkeypatch.setattr(module, "DEEP", 3)  # compiled one by one, eight would take long
    blocks = vit.Blocks(depth, heads=2, dtype=dtype, remat=remat)
    x = jax.random.normal(KEY, (2, 5, 16))
    visible = jnp.array([[True] * 5, [True, False, True, True, False]])
    params = random_like(jax.eval_shape(blocks.init, KEY, x))

    def in_turn(params, x):
        x = x.astype(dtype)
        for i in range(depth):
            block = {"params": params["params"][f"block{i}"]}
            x = vit.Block(heads=2, dtype=dtype).apply(block, x, visible)
        return x

    def gradients(apply, params):
        loss = lambda params, x: jnp.square(apply(params, x).astype(jnp.float32)).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x)

    want = gradients(in_turn, params)
    got = gradients(lambda params, x: blocks.apply(params, x, visible), params)
    packed = gradients(lambda params, x: blocks.apply(params, x, visible), stacking.stack(params))
    for found in (got, stacking.unstack(packed)):
        assert jax.tree.structure(found) == jax.tree.structure(want)
        for mine, other in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(mine, other, rtol=close, atol=close * np.abs(other).max())


def random_like(tree, scale=0.3):
    leaves, treedef = jax.tree.flatten(tree)
    random = np.random.RandomState(0)
    return treedef.unflatten([jnp.asarray(scale * random.randn(*x.shape), "f4") for x in leaves])


def numpy_block(p, x, heads, visible=None, epsilon=1e-6):
    """The block of one row of tokens [n d], from its definition."""

    def norm(x, p):
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * p["scale"]
            + (p["bias"])
        )

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    d = x.shape[-1]
    size = d // heads
    qkv, mixed = dense(norm(x, p["norm1"]), p["attn"]["qkv"]), np.zeros_like(x)
    for head in range(heads):
        q, k, v = (qkv[:, i * d + head * size :][:, :size] for i in range(3))
        weights = np.exp(q @ k.T / math.sqrt(size))
        if visible is not None:
            weights = weights * visible
        mixed[:, head * size : (head + 1) * size] = weights / weights.sum(1, keepdims=True) @ v
    x = x + dense(mixed, p["attn"]["proj"])
    hidden = dense(norm(x, p["norm2"]), p["mlp"]["fc1"])
    hidden = hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2
    return x + dense(hidden, p["mlp"]["fc2"])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("epsilon", [1e-6, 1e-5])
def test_block_is_its_definition(masked, epsilon):
    random = np.random.RandomState(1)
    x = random.randn(2, 5, 12) * 0.01  # so small that the epsilon shows
    visible = random.rand(2, 5) < 0.6 if masked else None
    block = vit.Block(heads=3, epsilon=epsilon)
    params = random_like(jax.eval_shape(block.init, jax.random.key(0), jnp.asarray(x, "f4")))
    got = jax.jit(block.apply)(params, x.astype("f4"), visible)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    rows = [None] * 2 if visible is None else visible
    want = [numpy_block(exact, row, 3, v, epsilon) for row, v in zip(x, rows, strict=True)]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_nobody_looks_at_what_is_not_visible():
    blocks = vit.Blocks(depth=2, heads=2)
    x = jax.random.normal(jax.random.key(0), (1, 4, 8))
    visible = jnp.array([[True, False, True, False]])
    params = random_like(jax.eval_shape(blocks.init, jax.random.key(1), x))
    apply = jax.jit(blocks.apply)
    got = apply(params, x.at[:, 1::2].set(7.0), visible)
    np.testing.assert_array_equal(got[:, ::2], apply(params, x, visible)[:, ::2])
    gathered = apply(params, x[:, ::2])
    np.testing.assert_allclose(got[:, ::2], gathered, rtol=1e-5, atol=1e-6)


def test_norms_and_softmax_are_float32_and_the_rest_is_of_the_dtype():
    blocks = vit.Blocks(depth=1, heads=2, dtype=jnp.bfloat16)
    x = jnp.zeros((1, 4, 8))
    params = jax.eval_shape(blocks.init, jax.random.key(1), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert jax.eval_shape(blocks.apply, params, x).dtype == jnp.bfloat16
    text = str(jax.make_jaxpr(blocks.apply)(params, x))
    for line in text.splitlines():
        if " exp " in line or "rsqrt" in line:
            assert ":f32[" in line
    assert text.count(" exp ") == 1 and text.count("rsqrt") == 2


def test_dense_layers_start_as_published():
    init = jax.jit(vit.Block(heads=2).init)
    params = init(jax.random.key(0), jnp.zeros((1, 4, 64)))["params"]
    kernel = params["attn"]["qkv"]["kernel"]
    bound = math.sqrt(6 / (64 + 192))
    assert 0.98 * bound < np.abs(kernel).max() <= bound
    assert not np.any(params["mlp"]["fc1"]["bias"])


def test_sincos_has_the_published_values():
    table = vit.sincos_2d(1024, 14)
    assert table.shape == (196, 1024) and table.dtype == np.float32
    token = table[14 * 1 + 2, [0, 1, 256, 512, 768]]  # row 1, column 2
    want = [0.9092974, 0.9364147, -0.4161468, 0.841471, 0.5403023]
    np.testing.assert_allclose(token, want, rtol=1e-6)


@pytest.mark.parametrize(
    "dim,side,total", [(1024, 14, 92849.197918), (512, 14, 46340.333103), (768, 16, 89660.316408)]
)
def test_sincos_has_the_published_sums(dim, side, total):
    assert vit.sincos_2d(dim, side).astype(np.float64).sum() == pytest.approx(total, rel=1e-8)


def test_sincos_needs_a_multiple_of_four():
    with pytest.raises(ValueError, match="expected a multiple of 4 channels, got 30"):
        vit.sincos_2d(30, 2)


def test_patches_are_row_by_row_with_the_channel_last():
    image = np.random.RandomState(0).rand(2, 6, 6, 3).astype(np.float32)
    patches = vit.patchify(jnp.asarray(image), 2)
    assert patches.shape == (2, 9, 12)
    for i in range(9):
        row, column = 2 * (i // 3), 2 * (i % 3)
        want = image[:, row : row + 2, column : column + 2].reshape(2, -1)
        np.testing.assert_array_equal(patches[:, i], want)
    np.testing.assert_array_equal(vit.unpatchify(patches, 2, (3, 3)), image)
