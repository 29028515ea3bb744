"""MAGE ViT-B on ImageNet-1K, as published by Li et al. (ICLR 2024): their method, their values.

python -m unlearn_jax.prepare --layout=imagenet --source=imagenet1k --out=DIR
python -m unlearn_jax.convert --family=mage --checkpoint=mage-vitb-1600.pth --out=runs/mage/original
python -m unlearn_jax.train --config=configs/imagenet_mage.py --workdir=runs/mage/unlearned \
    --config.stage=unlearned --config.init_from=runs/mage/original --config.data.path=DIR

One accelerator with 40 GB or more, or several; not yet run at this size. In place of prepared
records, tfds's imagenet2012: --config.data.kind=tfds --config.data.data_dir=DIR.

The forget set are the first 100 classes of ImageNet-R's list, the retain set the other 100, 120
images of each, of which the release draws any; those of its CSV file are
    --config.request.kind=ids --config.request.file=CSV
    --config.retain.kind=ids --config.retain.file=CSV
Instead of the retain set, proxy data: the other 800 classes,
    --config.retain.kind=other_classes --config.retain.per_class=15
or COCO, and then smaller crops,
    --config.retain.kind=proxy --config.retain.per_class=12000 --config.retain.data.kind=folder
    --config.retain.data.path=train2017 --config.data.augment.scale="(0.2,0.5)"

1,122 steps of 128 images are 6 epochs of 24,000 images; the learning rate rises for 5 of the epochs
and falls in the last. Pretraining (for a retrained model) is not part of the protocol: its values
are facebookresearch/mae's, with MAGE's 1,600 epochs.

    python -m unlearn_jax.evaluate --config=configs/imagenet_mage.py --workdir=runs/mage \
        --checkpoints=original=runs/mage/original,unlearned=runs/mage/unlearned

is the published evaluation: 50 validation images of each of the 200 classes. What its code did
otherwise than its paper or we do is off; as released it is
    --config.model.composite_base=filled --config.model.compat_seeding=True
    --config.protocol.compat.fid_reference=original_fullsize
    --config.protocol.compat.clip_reference=original_fullsize
    --config.protocol.compat.is_split_order=class_grouped --config.protocol.compat.norm_then_flip
    --config.protocol.compat.image_format=jpeg_bgr_compat

configs/imagenet_mage.py:rehearsal has narrow layers, small images and few steps, see README.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

from unlearn_jax.config import default, phase
from unlearn_jax.data import published

ADAMW = {"b1": 0.9, "b2": 0.95, "weight_decay": 0.05}
# 1-D parameters and biases; and what must not move at all, where everything is trained.
NO_DECAY = (".*/(bias|scale)", "vqgan/.*", "unused/.*")
EPOCH = 24_000 // 128


def get_config(size: str = "full") -> ConfigDict:
    config = default()
    config.name = "MAGE ViT-B, ImageNet-1K"
    config.batch_size = 128
    config.data.update({"kind": "records", "path": "data/imagenet_records"})
    config.data.name = "imagenet2012"  # if kind is "tfds"
    config.data.update({"splits": ("train", "validation"), "image_size": 256, "resize": "crop"})
    config.data.update({"cache": False, "num_threads": 16})
    config.data.augment.name = "random_resized_crop"
    config.request.update({"kind": "classes", "classes": classes("imagenet_forget.txt")})
    config.request.per_class = 120
    config.retain.update({"kind": "classes", "classes": classes("imagenet_retain.txt")})
    config.retain.per_class = 120
    config.holdout.split = "validation"
    # As published: nobody looked for copies, and these are experiments on public images.
    config.request.update({"copies": "keep", "remember": False})
    config.task.hole = 0.5
    config.model = {"name": "mage", "dtype": "bfloat16", "tokenizer": {"dtype": "bfloat16"}}
    config.phases = {
        "pretrain": phase(
            objective="reconstruction",
            steps=1600 * 1_281_167 // 4096,
            batch_size=4096,
            probe_every=5000,
            optimizer={
                "learning_rate": 1.5e-4 * 4096 / 256,
                "schedule": "cosine",
                "warmup_steps": 40 * 1_281_167 // 4096,
                "clip_norm_l2": 3.0,
                "no_decay": NO_DECAY,
                **ADAMW,
            },
        ),
        "unlearn": phase(
            objective="l2_encoder",
            objective_kw={"upstream_weights": True},
            retain_weight=1.0,
            forget_weight=0.2,
            steps=6 * EPOCH,
            optimizer={
                "learning_rate": 1e-4 * 128 / 256,
                "schedule": "cosine",
                "warmup_steps": 5 * EPOCH,
                "clip_norm_l2": 3.0,
                "no_decay": NO_DECAY,
                **ADAMW,
            },
        ),
    }
    config.stages.unlearned.phases = ("unlearn",)
    config.protocol.update(
        {"split": "validation", "metrics": ("fid", "inception_score", "clip_cosine")}
    )
    for name in config.protocol.towers:
        config.protocol.towers[name] = f"runs/towers/{name}"
    tokenizer = {"ch": 32, "ch_mult": (1, 1, 1), "res_blocks": 1, "z_dim": 8, "codebook": 64}
    return sized(
        config, size, image_size=32, dim=64, depth=2, heads=1, decoder_dim=64, decoder_depth=1,
        tokenizer=tokenizer, num_iter=4,
    )  # fmt: skip


def sized(config: ConfigDict, size: str, **model) -> ConfigDict:
    """Return the config, "full", or as a rehearsal with these fields of the model, in minutes."""
    if size not in ("full", "rehearsal"):
        raise ValueError(f"Expected the size 'full' or 'rehearsal' after the colon, got {size!r}.")
    if size == "rehearsal":
        config.name += ", rehearsal"
        config.model = {"name": config.model.name, **model}
        config.data.update({"image_size": model["image_size"], "num_threads": 1})
        config.batch_size = config.protocol.batch_size = 8
        config.probe_rows = config.log_every = 8
        for section in (config.request, config.retain):
            section.classes = section.classes[:10]
        config.protocol.update({"per_class": 1, "shard_size": 64, "inpaint": (8,)})
        config.protocol.outpaint = config.protocol.outpaint[-1:]
        config.evaluation.update({"retain_rows": 40, "resamples": 200})
        for spec in config.phases.values():
            spec.update({"steps": 8, "batch_size": 0, "probe_every": 4})
            spec.optimizer.warmup_steps = min(spec.optimizer.warmup_steps, 4)
    return config


def classes(*files: str) -> tuple[str, ...]:
    """Read the classes that published lists name, one per line."""
    folder = Path(__file__).parent
    return tuple(name for file in files for name in published.read_classes(folder / file))
