"""A small MAGE on CIFAR-10-sized images, with a tokenizer of its own, through the whole request.

python -m unlearn_jax.pipeline --config=configs/cifar10_mage.py --workdir=runs/cifar10_mage
"""

from ml_collections import ConfigDict

from unlearn_jax.config import phase

from . import cifar10_mae


def get_config() -> ConfigDict:
    config = cifar10_mae.get_config()
    config.name = "MAGE, CIFAR-10 sample"
    config.data.train_rows = 500
    config.model = {
        "name": "mage", "image_size": 32, "dim": 128, "depth": 3, "heads": 4,
        "decoder_dim": 64, "decoder_depth": 2, "decoder_heads": 4, "num_iter": 4,
        "label_smoothing": 0.0, "temperature": 1.0,
        "tokenizer": {
            "ch": 16, "ch_mult": (1, 2, 2), "res_blocks": 1, "z_dim": 8, "codebook": 128,
            "groups": 8, "revival": 0.25,
        },
    }  # fmt: skip
    config.phases.tokenizer = phase(
        objective="tokenizer",
        steps=300,
        probe_every=0,
        optimizer={"learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 20},
    )
    config.phases.pretrain = phase(
        objective="reconstruction",
        steps=1200,
        batch_size=32,
        # Not of the tokenizer either, which this phase leaves as it is.
        optimizer={"learning_rate": 1.5e-3, "schedule": "cosine", "warmup_steps": 50, "b2": 0.95},
    )
    # Cross-entropies of seen and unseen images differ by a few percent, where errors in pixels
    # double; distances between their logarithms are as much smaller.
    config.phases.calibrated.forget_weight = 20.0
    for name in ("original", "retrained"):
        config.stages[name].phases = ("tokenizer", "pretrain")
    config.audit.shadows = 0  # to save time; some attacks compare with them
    return config
