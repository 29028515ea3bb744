"""A model that trains in milliseconds and has 6,144 parameters; its loss draws from its key."""

import dataclasses

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from tests.helpers import tiny
from unlearn_jax.config import phase
from unlearn_jax.models import Model

DELTA = 1e-5


@dataclasses.dataclass(frozen=True)
class Wide(Model):
    """h(x) = bias + scale * (visible part of x), pixel by pixel."""

    trainable: tuple[str, ...] | list[str] = (".*",)

    def init(self, key):
        scale, bias = (0.1 * jax.random.normal(k, (32, 32, 3)) for k in jax.random.split(key))
        return {"encoder": {"scale": scale}, "decoder": {"bias": bias}}

    def encode(self, params, batch, key):
        return batch["image"] * (1 - batch["mask"]) * params["encoder"]["scale"]

    def decode(self, params, latent, batch, key):
        return latent + params["decoder"]["bias"]

    def loss(self, params, batch, key):
        output = self.decode(params, self.encode(params, batch, key), batch, key)
        weight = 1 + 0.1 * jax.random.normal(key, output.shape[-3:])
        return (weight * jnp.square(output - batch["image"])).mean((1, 2, 3))

    def error(self, output, batch):
        return jnp.square(output - batch["image"]).mean((1, 2, 3))

    def generate(self, params, batch, key):
        return jnp.clip(self.decode(params, self.encode(params, batch, key), batch, key), -1, 1)


def get_config() -> ConfigDict:
    """The tiny config with `wide`; the models of `models.MODELS` must have it."""
    config = tiny.get_config()
    config.model = {"name": "wide", "trainable": (".*",)}
    config.phases.pretrain.steps = 6
    config.phases.decouple.steps = 3
    config.phases.retain.steps = 3
    sgd = {"name": "sgd", "learning_rate": 0.1, "clip_norm_l2": 1.0}
    config.phases.release = phase(steps=0, noise={"initial_std": 0.5, "radius": 2.0})
    config.phases.noisy = phase(
        steps=5, optimizer=sgd, noise={"std": 0.5, "radius": 2.0}, probe_every=4
    )
    config.phases.clipped = phase(
        steps=4, optimizer=sgd, noise={"std": 0.5, "model_clip": 1.0}, probe_every=4
    )
    return config


def certified(config: ConfigDict, original, phases: tuple[str, ...], **certificate) -> ConfigDict:
    """The same config to unlearn `original` by these phases, with a certificate."""
    config = config.copy_and_resolve_references()
    config.update({"stage": "unlearned", "init_from": str(original)})
    config.stages.unlearned.phases = phases
    config.certificate.update({"delta": DELTA} | certificate)
    return config
