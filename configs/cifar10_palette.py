"""A small Palette (diffusion) on CIFAR-10-sized images, through the whole request.

python -m unlearn_jax.pipeline --config=configs/cifar10_palette.py --workdir=runs/cifar10_palette
"""

from ml_collections import ConfigDict

from configs import cifar10_mae
from unlearn_jax.config import phase


def get_config() -> ConfigDict:
    config = cifar10_mae.get_config()
    config.name = "Palette, CIFAR-10 sample"
    config.data.train_rows = 500
    config.model = {
        "name": "palette", "image_size": 32, "inner": 16, "mults": (1, 2, 4), "res_blocks": 1,
        "head_channels": 16, "groups": 8, "timesteps": 1000, "beta_end": 0.01,
        "sampler": "ddim", "sampling_steps": 6,
    }  # fmt: skip
    config.phases.pretrain = phase(
        objective="reconstruction",
        steps=1000,
        batch_size=64,
        optimizer={"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 50},
    )
    return config
