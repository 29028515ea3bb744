"""MAE ViT-L on ImageNet-1K: our choice of values, since none are published for unlearning it.

python -m unlearn_jax.convert --family=mae --checkpoint=mae_visualize_vit_large.pth \
    --out=runs/mae/original
python -m unlearn_jax.train --config=configs/imagenet_mae.py --workdir=runs/mae/unlearned \
    --config.stage=unlearned --config.init_from=runs/mae/original --config.data.path=DIR

One accelerator with 40 GB or more, or several; not yet run at this size. Data, request and
optimization are those of configs/imagenet_mage.py, except that for evaluation images are squashed
to 224x224, as MAE's demonstration does; the random masks are those of pretraining. `generate`
completes a centre hole of half the side, 8x8 of the 14x14 patches being touched by it. Pretraining
(for a retrained model) has the values of facebookresearch/mae.
"""

from ml_collections import ConfigDict

from unlearn_jax.models.mae import PRESETS

from . import imagenet_mage


def get_config(size: str = "full") -> ConfigDict:
    config = imagenet_mage.get_config()
    config.name = "MAE ViT-L, ImageNet-1K"
    config.data.update({"image_size": 224, "resize": "squash_bicubic"})
    config.model = {"name": "mae", "dtype": "bfloat16", "remat": True, **PRESETS["large"]}
    for spec in config.phases.values():
        spec.optimizer.clip_norm_l2 = 0.0 if spec.objective == "reconstruction" else 3.0
        spec.optimizer.no_decay = (".*/(bias|scale|pos_embed)",)
    return imagenet_mage.sized(
        config, size, image_size=32, patch=8, dim=64, depth=2, heads=1, decoder_depth=1
    )
