"""A folder of your photos, and a list of those to forget.

python -m unlearn_jax.pipeline --config=configs/photos.py --workdir=runs/photos \
    --config.data.path=photos --config.request.file=forget.txt

data.path is a folder of photos; folders in it, if any, are classes. request.file has a path on each
line, such as zoo/IMG_0007.jpg. What cannot be read is left out and listed. The values suit 100 to
10,000 photos; of thousands, train longer, such as --config.phases.pretrain.steps=10000.
"""

from ml_collections import ConfigDict

from unlearn_jax.config import default, phase


def get_config() -> ConfigDict:
    config = default()
    config.name = "photos"
    config.data.update({"kind": "folder", "splits": ("train",), "image_size": 64})
    # Whole photos, squeezed to a square as `complete` does, and turned as the camera says.
    config.data.update({"resize": "squash_bicubic", "exif": True})
    config.request.update({"kind": "ids", "copies": "forget"})  # and whatever has the same pixels
    # A quarter is never trained on: what was forgotten is compared with it.
    config.holdout.update({"split": "", "fraction": 0.25})
    config.model = {"name": "autoencoder", "channels": (32, 64, 128), "latent_dim": 256}
    config.batch_size = 32
    config.phases = {
        "pretrain": phase(
            steps=600, optimizer={"learning_rate": 1e-3, "schedule": "cosine"}, probe_every=100
        ),
        "repair": phase(
            shrink={"alpha": 0.6},
            steps=120,
            probe_every=20,
            optimizer={"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 10},
        ),
    }
    config.stages.unlearned.phases = ("repair",)
    return config
