"""A model small enough to differentiate by hand: h(x) = bias + scale * (visible part of x)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Toy:
    """Loss per example: mean over pixels of (h(tau(x)) - x)^2."""

    trainable: tuple[str, ...] = ("encoder/.*",)

    def init(self, key):
        return {
            "encoder": {"scale": jax.random.normal(key, (3,))},
            "decoder": {"bias": jnp.full((3,), 0.25, jnp.float32)},
        }

    def encode(self, params, batch, key):
        return batch["image"] * (1 - batch["mask"]) * params["encoder"]["scale"]

    def decode(self, params, latent, batch, key):
        return latent + params["decoder"]["bias"]

    def loss(self, params, batch, key):
        return self.error(self.decode(params, self.encode(params, batch, key), batch, key), batch)

    def error(self, output, batch):
        return jnp.square(output - batch["image"]).mean((1, 2, 3))

    def generate(self, params, batch, key):
        return jnp.clip(self.decode(params, self.encode(params, batch, key), batch, key), -1, 1)


def make_batch(n=8, forget=0, invalid=0, seed=0, size=4):
    """Random images with a centre hole; the first `forget` rows are flagged, the last invalid."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((n, size, size, 1), np.float32)
    mask[:, 1:-1, 1:-1] = 1
    return {
        "image": jnp.asarray(rng.uniform(-1, 1, (n, size, size, 3)), jnp.float32),
        "mask": jnp.asarray(mask),
        "label": jnp.zeros(n, jnp.int32),
        "index": jnp.arange(n, dtype=jnp.int32),
        "is_forget": jnp.arange(n) < forget,
        "valid": jnp.arange(n) < n - invalid,
    }
