"""Certified unlearning on the bundled sample of CIFAR-10, by four mechanisms; docs/certificate.md.

python -m unlearn_jax.pipeline --config=configs/quickstart_certified.py --workdir=runs/certified
python -m unlearn_jax.certify verify runs/certified/unlearned
python -m unlearn_jax.audit epsilon --workdir=runs/certified/unlearned

After the colon, as in configs/quickstart_certified.py:noisy, the mechanism:

    release   ascent, projection, noise once; then free fine-tuning on the retain rows
    noisy     ascent, projection, clipped fine-tuning with noise in every step; then free
    clipped   ascent, then a projection and noise in every step; then free
    adapter   one layer of 1,539 parameters around public weights, noise once; needs
              --config.certificate.centre_from=PUBLIC, a workdir, for all stages; --config.init_from
              is PUBLIC for the stage original, and its workdir for the stage unlearned

The noise is what the bounds ask for at EPSILON and DELTA. On all 1.4 million parameters its norm is
hundreds of times the radius: the first three retrain a destroyed model, which is what a certificate
of a whole network costs.
"""

from ml_collections import ConfigDict

from unlearn_jax.certify import bounds
from unlearn_jax.config import phase

from . import quickstart

EPSILON, DELTA, RADIUS, STEPS = 8.0, 1e-5, 1.0, 20
SGD = {"name": "sgd", "learning_rate": 0.05, "clip_norm_l2": 1.0}


def get_config(mechanism: str = "release") -> ConfigDict:
    config = quickstart.get_config()
    config.name = f"quickstart_certified, {mechanism}"
    config.certificate.delta = DELTA
    noised = "release" if mechanism == "adapter" else mechanism
    config.stages.unlearned.phases = ("decouple", noised, "recover")
    distance, target = 2 * RADIUS, {"epsilon": EPSILON, "delta": DELTA}
    if mechanism == "adapter":
        config.model.trainable = ("decoder/up2/.*",)
        config.stages.original.scratch = False
        config.certificate.certifier = "reference"
        distance = RADIUS
    once = bounds.analytic_gaussian_sigma(distance, **target)
    each = bounds.noisy_finetune_sigma(distance, STEPS, 0.05, 1.0, **target)
    clipped = bounds.model_clipping_sigma(RADIUS, STEPS, **target)
    config.phases.release = phase(steps=0, noise={"initial_std": once, "radius": RADIUS})
    config.phases.noisy = phase(
        steps=STEPS, optimizer=SGD, noise={"std": each, "radius": RADIUS}, probe_every=0
    )
    config.phases.clipped = phase(
        steps=STEPS, optimizer=SGD, noise={"std": clipped, "model_clip": RADIUS}, probe_every=0
    )
    config.phases.recover = phase(
        steps=1000, optimizer={"learning_rate": 1e-3, "schedule": "cosine"}
    )
    return config
