"""A small masked autoencoder (MAE) on CIFAR-10-sized images, through the whole request.

python -m unlearn_jax.pipeline --config=configs/cifar10_mae.py --workdir=runs/cifar10_mae
"""

from ml_collections import ConfigDict

from unlearn_jax.config import phase

from . import quickstart

ADAMW = {"b2": 0.95, "weight_decay": 0.05, "no_decay": (".*/(bias|scale|pos_embed)",)}


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.name = "MAE, CIFAR-10 sample"
    config.request.remember = False  # an experiment on public images
    config.data.train_rows = 1250
    config.request.fraction = 0.2
    config.model = {
        "name": "mae", "image_size": 32, "patch": 8, "dim": 128, "depth": 4, "heads": 4,
        "decoder_dim": 64, "decoder_depth": 2, "decoder_heads": 4, "masking": "task",
    }  # fmt: skip
    config.batch_size = 64
    config.phases = {
        "pretrain": phase(
            objective="reconstruction",
            steps=800,
            optimizer={"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 50, **ADAMW},
        ),
        "decouple": phase(
            objective="gradient_ascent",
            objective_kw={"forget_cap": 2.0},
            retain_weight=0.0,
            forget_weight=1.0,
            steps=100,
            optimizer={"name": "sgd", "learning_rate": 0.02, "clip_norm_l2": 1.0},
            probe_every=2,
            stop={"metric": "forget_over_holdout", "at_least": 1.0},
        ),
        "retain": phase(
            objective="reconstruction",
            steps=80,
            probe_every=10,
            optimizer={"learning_rate": 3e-4, "schedule": "cosine", **ADAMW},
        ),
        "l2_encoder": phase(
            objective="l2_encoder",
            forget_weight=0.25,
            steps=100,
            probe_every=10,
            optimizer={"learning_rate": 3e-4, "schedule": "cosine", "warmup_steps": 10, **ADAMW},
        ),
        "calibrated": phase(
            objective="calibrated",
            objective_kw={"overshoot": 0.15},
            goal="views",
            forget_weight=0.5,
            forget_fraction=0.375,
            steps=200,
            batch_size=32,
            probe_every=20,
            optimizer={"learning_rate": 5e-4, "schedule": "cosine", "warmup_steps": 10, **ADAMW},
        ),
    }
    config.stages.unlearned.phases = ("calibrated",)
    return config
