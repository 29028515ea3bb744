"""The whole request on the bundled sample of CIFAR-10: 2,500 training images, 250 to forget.

make demo
"""

from ml_collections import ConfigDict

from unlearn_jax.config import default, phase


def get_config() -> ConfigDict:
    config = default()
    config.name = "quickstart"
    config.data.name = "cifar10_sample"
    config.request.fraction = 0.1
    config.request.seed = 1  # seed 0 draws 250 images with 4 % more contrast than the average
    config.task.hole = 0.5
    config.model = {"name": "autoencoder", "channels": (32, 64, 128), "latent_dim": 256}
    config.batch_size = 128
    config.phases = {
        "pretrain": phase(
            objective="reconstruction",
            steps=1000,
            optimizer={"learning_rate": 1e-3, "schedule": "cosine"},
        ),
        "decouple": phase(
            objective="gradient_ascent",
            objective_kw={"forget_cap": 1.0},
            retain_weight=0.0,
            forget_weight=1.0,
            steps=200,
            optimizer={"name": "sgd", "learning_rate": 0.01, "clip_norm_l2": 1.0},
            probe_every=2,
            stop={"metric": "forget_over_holdout", "at_least": 1.0},
        ),
        "retain": phase(
            objective="reconstruction",
            steps=100,
            probe_every=10,
            optimizer={"learning_rate": 3e-4, "schedule": "cosine"},
        ),
    }
    return config
