"""The whole request on all of CIFAR-10: 50,000 training images, 5,000 to forget, 10,000 unseen.

python -m unlearn_jax.pipeline --config=configs/cifar10_autoencoder.py --workdir=runs/cifar10 \
    --config.data.data_dir=DIR

DIR is a tfds data directory where cifar10 was prepared with file_format="array_record". About 20
minutes on 2 CPU cores; docs/cifar10.md has the numbers.
"""

from ml_collections import ConfigDict

from . import quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.name = "cifar10_autoencoder"
    config.request.remember = False  # an experiment on public images
    config.data.name = "cifar10"
    config.model.latent_dim = 512
    config.phases.pretrain.steps = 20 * 50_000 // config.batch_size  # 20 epochs
    config.phases.decouple.steps = 400
    config.phases.retain.steps = 800  # about two epochs
    config.stages.unlearned.phases = ("decouple", "retain")
    config.probe_rows = 1000
    config.phases.pretrain.probe_every = 500
    config.evaluation.retain_rows = 5000
    config.checkpoint.every = 500
    config.log_every = 100
    return config
