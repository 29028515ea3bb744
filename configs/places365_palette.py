"""Palette on Places365, as published by Li et al. (ICLR 2024): their method, their values.

python -m unlearn_jax.prepare --layout=places365 --source=places365 --out=DIR
python -m unlearn_jax.convert --family=palette --checkpoint=16_Network.pth \
    --out=runs/palette/original
python -m unlearn_jax.train --config=configs/places365_palette.py --config.stage=unlearned \
    --workdir=runs/palette/unlearned --config.init_from=runs/palette/original \
    --config.data.path=DIR

One accelerator with 80 GB, or several; not yet run at this size. In place of prepared records,
tfds's places365_small: --config.data.kind=tfds --config.data.data_dir=DIR. Forget and retain set
are 50 classes each of the release, at most 5,000 images of a class. With proxy data, of the other
265 classes:
    --config.request.per_class=200 --config.retain.kind=other_classes --config.retain.per_class=200
It trains 3 epochs of about 500,000 images, half to forget, in batches of 96, on hybrid masks; a
centre hole is tested. Its forget term counts a tenth, and each term is divided by the whole batch.
Sampling follows the schedule in the checkpoint, 2,000 steps. Pretraining (for a retrained model) is
not part of the protocol.

    python -m unlearn_jax.evaluate --config=configs/places365_palette.py --workdir=runs/palette \
        --checkpoints=original=runs/palette/original,unlearned=runs/palette/unlearned

is the published evaluation: 100 validation images of each of the 100 classes, half of the side
inpainted. As released it compares with images saved again and stores JPEG:
    --config.protocol.compat.fid_reference=resaved_gt
    --config.protocol.compat.image_format=jpeg_75_compat

configs/places365_palette.py:rehearsal has narrow layers, small images and few steps, see README.md.
"""

from ml_collections import ConfigDict

from unlearn_jax.config import default, phase

from .imagenet_mage import classes, sized

EPOCH = 500_000 // 96


def get_config(size: str = "full") -> ConfigDict:
    config = default()
    config.name = "Palette, Places365"
    config.batch_size = 96
    config.data.update({"kind": "records", "path": "data/places365_records"})
    config.data.name = "places365_small"  # if kind is "tfds"
    config.data.update({"splits": ("train", "validation"), "image_size": 256})
    config.data.update({"resize": "squash_bilinear", "cache": False, "num_threads": 16})
    config.request.update({"kind": "classes", "classes": classes("places365_forget.txt")})
    config.request.update({"per_class": 5000, "pick": "first"})
    config.retain.update({"kind": "classes", "classes": classes("places365_retain.txt")})
    config.retain.update({"per_class": 5000, "pick": "first"})
    config.holdout.split = "validation"
    # As published: nobody looked for copies, and these are experiments on public images.
    config.request.update({"copies": "keep", "remember": False})
    config.task.update({"name": "inpaint", "hole": 0.5, "train": "hybrid"})
    config.model = {"name": "palette"}
    adam = {"learning_rate": 5e-5}
    config.phases = {
        "pretrain": phase(
            objective="reconstruction", steps=500_000, optimizer=adam, probe_every=5000
        ),
        "unlearn": phase(
            objective="l2_encoder",
            objective_kw={"upstream_weights": True},
            # Those weights count each row twice, as the release for tokens does; this one does not.
            retain_weight=0.5,
            forget_weight=0.5 * 0.1,
            steps=3 * EPOCH,
            probe_every=0,  # a probe draws images, with 2,000 passes each
            optimizer=adam,
        ),
    }
    config.stages.unlearned.phases = ("unlearn",)
    metrics = ("fid", "places365_score", "clip_cosine")
    config.protocol.update({"split": "validation", "per_class": 100, "metrics": metrics})
    config.protocol.update({"inpaint": (4, 8), "outpaint": ()})
    for name in config.protocol.towers:
        config.protocol.towers[name] = f"runs/towers/{name}"
    return sized(config, size, image_size=32, inner=32, mults=(1, 1), res_blocks=1, timesteps=4)
