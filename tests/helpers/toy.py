"""Small models; `Toy` is small enough to differentiate by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.models import Model

VIT = {"dim": 32, "depth": 1, "heads": 2, "decoder_dim": 16, "decoder_depth": 1}
TOKENIZER = {"ch": 16, "ch_mult": (1, 2), "res_blocks": 1, "z_dim": 8, "codebook": 32, "groups": 4}
FIELDS = {
    "autoencoder": {"channels": (8, 16), "latent_dim": 16},
    "vqgan": TOKENIZER,
    "mae": {**VIT, "decoder_heads": 2, "patch": 4, "mask_ratio": 0.5},
    "mage": {**VIT, "decoder_heads": 2, "tokenizer": TOKENIZER, "class_slots": 15, "num_iter": 2},
    "palette": {
        **{"inner": 16, "mults": (1,), "res_blocks": 1, "groups": 4, "head_channels": 8},
        **{"timesteps": 3, "beta_start": 0.1, "beta_end": 0.5},
    },
}
"""By name, of a small one of every model for images of 16 pixels."""


@dataclasses.dataclass(frozen=True)
class Toy(Model):
    """h(x) = bias + scale * (visible part of x); loss per row: mean over pixels of (h - x)^2."""

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
