"""A small Palette (diffusion) on CIFAR-10-sized images, through the whole request.

python -m unlearn_jax.pipeline --config=configs/cifar10_palette.py --workdir=runs/cifar10_palette
"""

from ml_collections import ConfigDict

from unlearn_jax.config import phase

from . import cifar10_mae


def get_config() -> ConfigDict:
    config = cifar10_mae.get_config()
    config.name = "Palette, CIFAR-10 sample"
    config.data.train_rows = 500
    # Eight noise levels, most of them high: what fills the hole is decided there, and a small
    # network learns it in minutes. With 1,000 published levels it spends its time on the others.
    config.model = {
        "name": "palette", "image_size": 32, "inner": 16, "mults": (1, 2, 4), "res_blocks": 1,
        "head_channels": 16, "groups": 8, "timesteps": 8, "beta_start": 0.1, "beta_end": 0.9,
    }  # fmt: skip
    config.batch_size = 32
    config.phases.pretrain = phase(
        objective="reconstruction",
        steps=600,
        optimizer={"learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 50},
    )
    config.phases.l2_encoder = phase(
        objective="l2_encoder",
        forget_weight=0.5,
        steps=100,
        probe_every=50,  # eight passes of the network for every image
        optimizer={"learning_rate": 5e-4, "schedule": "cosine", "warmup_steps": 10},
    )
    config.stages.unlearned.phases = ("l2_encoder",)
    # To save time: without a shadow there is no floor, and the conclusion is "not tested".
    config.audit.shadows = 0
    config.audit.relearn.update({"images": 32, "every": 20})
    return config
