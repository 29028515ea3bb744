"""The autoencoder: its loss by hand, its gradients by differences, its validation."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearn_jax.models import Autoencoder, build

SMALL = {"image_size": 8, "channels": (4, 8)}


@cache
def initial(latent_dim=0):
    """Parameters of the small model, made once; do not change them in place."""
    return jax.jit(Autoencoder(**SMALL, latent_dim=latent_dim).init)(jax.random.key(1))


def make_batch(b=8, size=8, channels=3):
    image = jax.random.uniform(jax.random.key(0), (b, size, size, channels), minval=-1)
    mask = jnp.zeros((b, size, size, 1)).at[:, 2:5, 3:7].set(1)
    return {"image": image, "mask": mask}


@pytest.mark.parametrize("latent_dim,latent", [(0, (8, 2, 2, 8)), (6, (8, 6))])
def test_shapes_and_parameter_names(latent_dim, latent):
    model = Autoencoder(**SMALL, latent_dim=latent_dim)
    params = jax.eval_shape(model.init, jax.random.key(1))
    args = params, make_batch(), jax.random.key(2)
    assert jax.eval_shape(model.encode, *args).shape == latent
    assert jax.eval_shape(model.generate, *args).shape == (8, 8, 8, 3)
    assert params["encoder"]["down0"]["kernel"].shape == (4, 4, 4, 4)
    assert params["decoder"]["up1"]["kernel"].shape == (4, 4, 4, 3)
    assert ("bottleneck" in params["encoder"]) == (latent_dim > 0)


def test_default_has_331k_parameters():
    shapes = jax.eval_shape(Autoencoder().init, jax.random.key(0))
    kernels = 16 * (4 * 32 + 32 * 64 + 64 * 128 + 128 * 64 + 64 * 32 + 32 * 3)
    biases = 32 + 64 + 128 + 64 + 32 + 3
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == kernels + biases


def test_loss_is_the_two_means():
    model = Autoencoder(**SMALL, visible_weight=0.25)
    params, batch, key = initial(), make_batch(), jax.random.key(2)
    batch["mask"] = batch["mask"].at[0].set(0).at[1].set(1)  # no hole; nothing but a hole
    image = np.asarray(model.decode(params, model.encode(params, batch, key), batch, key))
    want = []
    for got, true, mask in zip(image, batch["image"], batch["mask"], strict=True):
        error, hole = (got - np.asarray(true)) ** 2, np.asarray(mask)[..., 0] == 1
        parts = error[hole], error[~hole]
        want.append(sum(w * p.mean() for w, p in zip((1, 0.25), parts, strict=True) if p.size))
    np.testing.assert_allclose(model.loss(params, batch, key), want, rtol=1e-5)


def test_hole_is_not_seen_and_mask_is():
    model = Autoencoder(**SMALL)
    params, batch, key = initial(), make_batch(), jax.random.key(2)
    before = model.encode(params, batch, key)
    hidden = batch | {"image": jnp.where(batch["mask"] == 1, 0.5, batch["image"])}
    np.testing.assert_array_equal(model.encode(params, hidden, key), before)
    shown = batch | {"image": batch["image"].at[:, 0, 0].add(0.5)}
    assert np.abs(model.encode(params, shown, key) - before).max() > 1e-3
    blank = batch | {"image": jnp.zeros_like(batch["image"])}
    other = blank | {"mask": jnp.zeros_like(batch["mask"])}
    difference = model.encode(params, blank, key) - model.encode(params, other, key)
    assert np.abs(difference).max() > 1e-3


def test_generate_clips_and_decode_does_not():
    model = Autoencoder(**SMALL)
    params, batch, key = initial(), make_batch(), jax.random.key(2)
    shifted = params["decoder"]["up1"] | {"bias": jnp.array([3.0, -3.0, 0.0])}
    params = params | {"decoder": params["decoder"] | {"up1": shifted}}
    decoded = model.decode(params, model.encode(params, batch, key), batch, key)
    assert decoded.max() > 1 and decoded.min() < -1
    np.testing.assert_array_equal(model.generate(params, batch, key), np.clip(decoded, -1, 1))


def test_gradient_is_the_finite_difference():
    latent_dim = 6
    model = Autoencoder(**SMALL, latent_dim=latent_dim)
    params, batch, key = initial(latent_dim), make_batch(), jax.random.key(2)
    loss = jax.jit(lambda p: model.loss(p, batch, key).mean())
    gradient = jax.jit(jax.grad(loss))(params)  # the rest in numpy, which compiles nothing
    params, gradient = jax.tree.map(np.asarray, (params, gradient))
    norm = np.sqrt(sum(np.vdot(g, g) for g in jax.tree.leaves(gradient)))
    step = 1e-2 / norm
    plus, minus = (
        jax.tree.map(lambda p, g, s=s: p + s * g, params, gradient) for s in (step, -step)
    )
    np.testing.assert_allclose((loss(plus) - loss(minus)) / (2 * step), norm**2, rtol=2e-2)


def test_per_example_gradients_sum_to_the_batch_gradient():
    model = Autoencoder(**SMALL)
    params, batch, key = initial(), make_batch(), jax.random.key(2)

    def one(params, example):
        return model.loss(params, jax.tree.map(lambda a: a[None], example), key)[0]

    each = jax.jit(jax.vmap(jax.grad(one), (None, 0)))(params, batch)
    total = jax.jit(jax.grad(lambda p: model.loss(p, batch, key).sum()))(params)
    for a, b in zip(jax.tree.leaves(each), jax.tree.leaves(total), strict=True):
        np.testing.assert_allclose(a.sum(0), b, rtol=1e-4, atol=1e-4)


def test_bfloat16_computes_close_to_float32():
    params, batch, key = (
        initial(),
        make_batch(),
        jax.random.key(2),
    )
    half = Autoencoder(**SMALL, dtype="bfloat16").loss(params, batch, key)
    full = Autoencoder(**SMALL).loss(params, batch, key)
    assert half.dtype == jnp.float32 and not np.array_equal(half, full)
    np.testing.assert_allclose(half, full, rtol=3e-2)


def test_lists_become_tuples_so_that_the_model_is_hashable():
    model = build("autoencoder", channels=[4, 8], trainable=["encoder/.*"])
    assert hash(model) == hash(Autoencoder(channels=(4, 8), trainable=("encoder/.*",)))


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"image_size": 20}, "image_size must be divisible by 8"),
        ({"image_size": 0}, "image_size must be positive, got 0"),
        ({"image_channels": -1}, "image_channels must be positive"),
        ({"channels": ()}, "channels is empty"),
        ({"channels": (8, 0)}, "channels must be positive"),
        ({"latent_dim": -1}, "latent_dim must be 0"),
        ({"dtype": "float8"}, "dtype must be one of"),
        ({"visible_weight": -0.5}, "visible_weight must be finite and at least 0"),
        ({"visible_weight": float("nan")}, "visible_weight must be finite"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Autoencoder(**fields)


def test_wrong_image_size():
    model = Autoencoder(**SMALL)
    params = initial()
    with pytest.raises(ValueError, match=r"expects images \[b, 8, 8, 3\], got \[8, 16, 16, 3\]"):
        model.loss(params, make_batch(size=16), jax.random.key(2))
