"""The tiny config, to unlearn by a phase with noise and end with a certificate."""

from ml_collections import ConfigDict

from tests.helpers import tiny
from unlearn_jax.config import phase


def get_config() -> ConfigDict:
    config = tiny.get_config()
    config.stage = "unlearned"
    config.model.trainable = (".*",)
    config.phases.noisy = phase(
        steps=5,
        optimizer={"name": "sgd", "learning_rate": 0.1, "clip_norm_l2": 1.0},
        noise={"std": 0.5, "radius": 2.0},
        probe_every=4,
    )
    config.stages.unlearned.phases = ("decouple", "noisy", "retain")
    config.certificate.delta = 1e-5
    return config
