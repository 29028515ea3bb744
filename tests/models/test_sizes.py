"""Models at sizes that are no squares, against the same model at other sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearn_jax import models
from unlearn_jax.complete import Completer
from unlearn_jax.models import vit

HOLE = {"name": "inpaint", "hole": 0.5}


def batch_of(size, n=2, seed=0):
    rng = np.random.default_rng(seed)
    mask = np.zeros((n, *size, 1), np.float32)
    mask[:, : size[0] // 2, size[1] // 4 : size[1] // 2] = 1
    image = rng.uniform(-1, 1, (n, *size, 3)).astype(np.float32)
    return {"image": jnp.asarray(image), "mask": jnp.asarray(mask), "index": jnp.arange(n)}


def params_of(model):
    """Random parameters, also where layers start at zero."""
    params, rng = jax.jit(model.init)(jax.random.key(0)), np.random.default_rng(1)
    noisy = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype("f4"), params)
    return noisy | {k: params[k] for k in ("schedule",) if k in params}


def turned(tree):
    """Swap rows and columns of images, and of kernels of convolutions."""
    return jax.tree.map(lambda x: jnp.asarray(x).swapaxes(-4, -3) if x.ndim == 4 else x, tree)


FIELDS = {
    "autoencoder": {"channels": (4, 8)},
    "palette": {"inner": 8, "mults": (1, 2), "res_blocks": 1, "groups": 4, "head_channels": 8,
                "timesteps": 3},
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", FIELDS)
def test_what_is_convolved_turns_with_its_image(name):
    """Exactly so: a network of turned kernels makes a turned image of a turned image."""
    wide = models.build(name, image_size=(8, 12), **FIELDS[name])
    high = models.build(name, image_size=[12, 8], **FIELDS[name])
    params, key, batch = params_of(wide), jax.random.key(2), batch_of((8, 12))
    across = {k: v.swapaxes(1, 2) if v.ndim == 4 else v for k, v in batch.items()}
    draws = {}
    if name == "palette":
        draws = {"draws": wide.draw(batch, key)}
        other = {k: v.swapaxes(1, 2) if v.ndim == 4 else v for k, v in draws["draws"].items()}
    found = jax.jit(wide.loss)(params, batch, key, **draws)
    expected = jax.jit(high.loss)(
        turned(params), across, key, **({"draws": other} if draws else {})
    )
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    latent = jax.tree.leaves(jax.eval_shape(wide.encode, params, batch, key))[-1]
    assert latent.shape[1] * 3 == latent.shape[2] * 2
    assert jax.eval_shape(wide.generate, params, batch, key).shape == (2, 8, 12, 3)


@pytest.mark.long
def test_mae_sees_the_same_tokens_in_another_grid():
    """2 x 8 patches are 4 x 4 patches in another order in space, with tables of their own."""
    fields = {"patch": 4, "dim": 32, "depth": 1, "heads": 2, "decoder_dim": 16,
              "decoder_depth": 1, "decoder_heads": 2, "masking": "task"}  # fmt: skip
    wide, square = (models.build("mae", image_size=s, **fields) for s in ((8, 32), 16))
    params, key, batch = params_of(wide), jax.random.key(2), batch_of((8, 32))

    def moved(x):
        return np.asarray(vit.unpatchify(vit.patchify(jnp.asarray(x), 4), 4, (4, 4)))

    other = {k: jnp.asarray(moved(v)) if v.ndim == 4 else v for k, v in batch.items()}
    np.testing.assert_allclose(
        jax.jit(wide.loss)(params, batch, key), jax.jit(square.loss)(params, other, key), rtol=1e-5
    )
    made = jax.jit(wide.generate)(params, batch, key)
    assert made.shape == (2, 8, 32, 3)
    np.testing.assert_allclose(moved(made), jax.jit(square.generate)(params, other, key), atol=1e-5)
    table, large = vit.sincos_2d(32, (2, 8)), vit.sincos_2d(32, 8)
    np.testing.assert_array_equal(table, large[:16])
    assert not np.allclose(table, vit.sincos_2d(32, (4, 4)))


def test_photos_of_any_size_are_completed():
    model = models.build("autoencoder", image_size=(8, 12), channels=(4,))
    found = Completer(model, params_of(model), (8, 12), HOLE)
    photo = np.random.default_rng(0).integers(0, 255, (40, 44, 3), np.uint8)
    made = found.complete(photo)
    changed = (made != photo).any(2)
    assert changed.any() and not changed[:9].any() and not changed[:, :10].any()
    exact = found.complete(photo[:8, :12])
    hole = np.zeros((8, 12), bool)
    hole[2:6, 3:9] = True
    np.testing.assert_array_equal(exact[~hole], photo[:8, :12][~hole])


def test_images_of_another_size_are_refused():
    model = models.build("palette", image_size=(8, 12), **FIELDS["palette"])
    params = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(ValueError, match=r"\[b, 8, 12, 3\], got \[2, 12, 8, 3\]"):
        jax.eval_shape(model.loss, params, batch_of((12, 8)), jax.random.key(0))
