"""Five methods, two seeds, on the bundled sample of CIFAR-10, with a backdoor.

python -m unlearn_jax.compare --config=configs/quickstart_compare.py --workdir=runs/compare

About 8 minutes on 2 CPU cores. 250 forget images and two seeds are few: it shows how a comparison
is made; docs/comparison.md has one to conclude from.
"""

from ml_collections import ConfigDict

from unlearn_jax.config import method

from . import cifar10_compare, quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.name = "quickstart_compare"
    config.request.copies = "keep"
    config.poison.fraction, config.poison.jitter = 0.2, 0.75
    config.phases.finetune = cifar10_compare.joint("reconstruction", 0.0, 300, 1e-3)
    config.phases.noisy_label = cifar10_compare.joint("noisy_label", 0.25)
    config.compare.seeds = (0, 1)
    config.compare.methods = {
        "shrink": method("Shrink and repair", ["repair"], "after Ash & Adams, NeurIPS 2020"),
        "calibrated": method("Calibrated", ["calibrated"], "unlearn_jax"),
        "gradient_ascent": method(
            "Ascent, then retain", ["decouple", "retain"], "Varshney & Torra, arXiv 2502.04260"
        ),
        "retain_finetuning": method("Retain fine-tuning", ["finetune"]),
        "noisy_label": method("Noisy Label", ["noisy_label"], "Li et al., ICLR 2024"),
    }
    return config
