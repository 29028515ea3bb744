"""gelu, pick, spread and one_pass of layers.py, and attention on the CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from unlearn_jax.models import layers

KEY = jax.random.key(0)


def test_gelu_and_its_slope_are_those_of_the_normal_distribution():
    x = np.linspace(-6, 6, 101)
    value, slope = jax.vmap(jax.value_and_grad(layers.gelu))(jnp.float32(x))
    np.testing.assert_allclose(value, x * norm.cdf(x), atol=1e-6)
    np.testing.assert_allclose(slope, norm.cdf(x) + x * norm.pdf(x), atol=1e-6)


def test_gelu_in_bfloat16_is_that_of_float32_rounded_once():
    x = jax.random.normal(KEY, (999,), jnp.bfloat16)
    wide = layers.gelu(x.astype(jnp.float32))
    np.testing.assert_array_equal(layers.gelu(x), wide.astype(jnp.bfloat16))
    slope = jax.grad(lambda x: layers.gelu(x).astype(jnp.float32).sum())(x)
    assert slope.dtype == jnp.bfloat16


@pytest.mark.parametrize("values", [[1.5, -2], [np.nan, 1], [np.inf, 1], [-np.inf, np.nan]])
def test_settle_changes_nothing(values, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    x = jnp.array(values)
    np.testing.assert_array_equal(jax.jit(layers.settle)(x), x)
    slope = jax.jit(jax.grad(lambda x, g: (layers.settle(x) * g).sum()))(jnp.ones(2), x)
    np.testing.assert_array_equal(slope, x)
    np.testing.assert_array_equal(jax.vmap(layers.settle)(jnp.stack([x, x])), [values, values])


@pytest.fixture(name="masking")
def make_masking():
    """Of 5 of 9 tokens, in any order; a different choice in each of three rows."""
    order = jax.vmap(lambda key: jax.random.permutation(key, 9))(jax.random.split(KEY, 3))
    place = jnp.argsort(order, axis=1)
    return order[:, :5], place, place >= 5


def test_pick_and_spread_are_a_loop_over_tokens(masking):
    kept, _, hidden = masking
    x = jax.random.normal(KEY, (3, 9, 2))
    picked = layers.pick(x, masking)
    expected = np.zeros((3, 9, 2))
    for row in range(3):
        for i, token in enumerate(kept[row]):
            np.testing.assert_array_equal(picked[row, i], x[row, token])
            expected[row, token] = x[row, token]
    np.testing.assert_array_equal(layers.spread(picked, masking), expected)
    assert (np.abs(expected).sum(-1) == 0).tolist() == hidden.tolist()


@pytest.mark.parametrize(("name", "tokens"), [("pick", 9), ("spread", 5)])
def test_gradients_are_those_of_a_gather(name, tokens, masking):
    kept, place, hidden = masking

    def gather(x):
        if name == "pick":
            return jnp.take_along_axis(x, kept[..., None], axis=1)
        rows = jnp.take_along_axis(x, jnp.minimum(place, 4)[..., None], axis=1)
        return jnp.where(hidden[..., None], 0, rows)

    x = jax.random.normal(KEY, (3, tokens, 2))
    ours, pull = jax.vjp(lambda x: getattr(layers, name)(x, masking), x)
    theirs, pull_theirs = jax.vjp(gather, x)
    np.testing.assert_array_equal(ours, theirs)
    g = jax.random.normal(jax.random.key(1), ours.shape)
    np.testing.assert_array_equal(pull(g)[0], pull_theirs(g)[0])


def test_spread_where_all_tokens_are_kept_and_some_are_hidden():
    everything = jnp.arange(4)[None]
    masking = everything, everything, jnp.array([[True, False, True, False]])
    x = jnp.arange(1.0, 5.0).reshape(1, 4, 1)
    y, pull = jax.vjp(lambda x: layers.spread(x, masking), x)
    assert y.ravel().tolist() == [0, 2, 0, 4]
    assert pull(jnp.ones_like(y))[0].ravel().tolist() == [0, 1, 0, 1]


def test_attention_looks_at_visible_tokens_only():
    q, k, v = (jax.random.normal(key, (2, 5, 3, 8)) for key in jax.random.split(KEY, 3))
    visible = jnp.array([[True] * 5, [True, True, False, True, False]])
    logits = np.einsum("bnhc,bmhc->bhnm", q, k) / 8**0.5
    weights = np.exp(logits) * np.asarray(visible)[:, None, None]
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bhnm,bmhc->bnhc", weights, v)
    np.testing.assert_allclose(layers.attention(q, k, v, visible), expected, atol=1e-5)


def test_a_norm_reads_half_precision_once_and_float32_as_torch():
    assert [layers.one_pass(d) for d in ("bfloat16", jnp.float16, "float32")] == [1, 1, 0]
