"""The whole request on the bundled sample of CIFAR-10: 2,500 training images, 250 to forget.

make demo

Five to seven minutes on 2 CPU cores, installation included: an original, an unlearned, a retrained
model, and a second retrained one for the audits. Mean squared error on the hole, seed 0, 2 cores of
an AMD EPYC, 2026-11-29 (forget n = 250, audit part of the holdout n = 239, retain n = 1,000):

    original   forget 0.032  holdout 0.159  retain 0.032
    unlearned  forget 0.138  holdout 0.129  retain 0.110
    retrained  forget 0.170  holdout 0.156  retain 0.030

Unlearning takes 10 % of retraining's FLOPs here. What the original knew of single images is gone,
of those to keep as well; unseen ones are completed better. The audits do not refute it
(docs/audits.md).
"""

from ml_collections import ConfigDict

from unlearn_jax.config import default, phase


def get_config() -> ConfigDict:
    config = default()
    config.name = "quickstart"
    config.data.name = "cifar10_sample"
    config.request.fraction = 0.1
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
        # Nearer to a network that knows nothing, then a tenth of the training again: see shrink.py.
        "repair": phase(
            shrink={"alpha": 0.6},
            steps=200,
            batch_size=64,
            probe_every=20,
            optimizer={"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 10},
        ),
        # Outputs as of a model that never saw the images; the images are still inside.
        "calibrated": phase(
            objective="calibrated",
            objective_kw={"overshoot": 0.12, "direction": 0.25},
            goal="views",
            forget_weight=0.05,
            forget_fraction=0.375,
            steps=370,
            batch_size=32,
            probe_every=25,
            optimizer={"learning_rate": 3e-4, "schedule": "cosine", "warmup_steps": 10},
        ),
    }
    # Instead: ("decouple", "retain"), the two phases of Varshney & Torra, or ("calibrated",).
    config.stages.unlearned.phases = ("repair",)
    return config
