"""Small checkpoints of every family in the published layout, as arrays."""

from functools import cache

import numpy as np

from unlearn_jax import convert, models
from unlearn_jax.evaluate.towers.clip_tower import Clip
from unlearn_jax.evaluate.towers.inception import Inception
from unlearn_jax.evaluate.towers.resnet50 import ResNet50

TOKENIZER = {"ch": 32, "ch_mult": (1, 2), "res_blocks": 1, "z_dim": 32, "codebook": 48}
VIT = {"dim": 32, "depth": 2, "heads": 2, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
HEADS = {"heads": 2, "decoder_heads": 2}
# A small model of each family, and what cannot be told from the shapes of its tensors.
SMALL = {
    "mae": (
        models.MAE(image_size=16, patch=4, **VIT),
        HEADS | {"epsilon": 1e-6, "norm_pix_loss": False},
    ),
    "vqgan": (models.VQGAN(image_size=16, **TOKENIZER), {"image_size": 16}),
    "mage": (models.MAGE(image_size=16, tokenizer=TOKENIZER, **VIT), HEADS),
    "palette": (
        models.Palette(image_size=16, inner=32, mults=(1, 2), res_blocks=1, timesteps=20),
        {"image_size": 16, "head_channels": 32},
    ),
    "inception": (Inception(width=2, classes=8), {"variant": "fid"}),
    "resnet50": (ResNet50(width=4, classes=5, image_size=64), {"image_size": 64}),
    "clip": (
        Clip(image_size=28, width=32, layers=2, heads=2, mlp_width=64, embed_dim=8),
        {"heads": 2, "quick_gelu": False},
    ),
}


@cache
def _tensors(family):
    rules, model = convert.find(family), SMALL[family][0]
    rng = np.random.default_rng(0)
    shapes = dict(convert.mapping(rules, model).values())
    state = {k: rng.standard_normal(s, np.float32) for k, s in shapes.items()}
    return state | {name: a.copy() for name, a in rules.buffers(model).items()}


def tensors(family):
    """Random arrays by published name, and the buffers that published files have."""
    return dict(_tensors(family))
