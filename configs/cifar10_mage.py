"""A small MAGE on CIFAR-10-sized images, with a tokenizer of its own, through the whole request.

python -m unlearn_jax.pipeline --config=configs/cifar10_mage.py --workdir=runs/cifar10_mage
"""

from ml_collections import ConfigDict

from configs import cifar10_mae
from unlearn_jax.config import phase

ADAMW = {"b2": 0.95, "weight_decay": 0.05}
NO_DECAY = (".*/(bias|scale)", "vqgan/.*", "unused/.*")


def get_config() -> ConfigDict:
    config = cifar10_mae.get_config()
    config.name = "MAGE, CIFAR-10 sample"
    config.model = {
        "name": "mage", "image_size": 32, "dim": 128, "depth": 3, "heads": 4,
        "decoder_dim": 64, "decoder_depth": 2, "decoder_heads": 4, "num_iter": 4,
        "tokenizer": {
            "ch": 16, "ch_mult": (1, 2, 4), "res_blocks": 1, "z_dim": 32, "codebook": 128,
            "groups": 8,
        },
    }  # fmt: skip
    config.phases.update(
        {
            "tokenizer": phase(
                objective="tokenizer",
                steps=400,
                probe_every=0,
                optimizer={"learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 20},
            ),
        }
    )
    for name in ("original", "retrained"):
        config.stages[name].phases = ("tokenizer", "pretrain")
    return config
