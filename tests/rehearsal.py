"""Makes a small ImageNet, a small Places365 and small checkpoints, to rehearse the full request.

    python -m tests.rehearsal --out=data

The images are those of the bundled CIFAR-10 sample, enlarged to odd sizes and saved as JPEG under
the names, folders and classes of the real data sets: of ImageNet the 200 classes of the published
split, of Places365 its first 100. Among them are a grayscale and a CMYK image and, in each data
set, a file that is cut off. The checkpoints have the published names and layouts, narrow layers and
random weights: what they generate and what is measured means nothing.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image

from unlearn_jax import cli, convert, models
from unlearn_jax.convert import writing
from unlearn_jax.data import published
from unlearn_jax.data.sources import open_source
from unlearn_jax.evaluate import clip_tower, inception, resnet50

MODELS = {
    "mage-vitb-1600.pth": models.MAGE(
        image_size=32, dim=64, depth=2, heads=1, decoder_dim=64, decoder_depth=1,
        tokenizer={"ch": 32, "ch_mult": (1, 1, 1), "res_blocks": 1, "z_dim": 8, "codebook": 64},
    ),
    "mae_visualize_vit_large.pth": models.MAE(
        image_size=32, patch=8, dim=64, depth=2, heads=1, decoder_depth=1
    ),
    "16_Network.pth": models.Palette(
        image_size=32, inner=32, mults=(1, 1), res_blocks=1, timesteps=4, beta_start=0.1,
        beta_end=0.9,
    ),
    "pt_inception-2015-12-05-6726825d.pth": inception.Inception(width=2),
    "inception_v3_google-0cc3c7bd.pth": inception.Inception("torchvision", width=2),
    "resnet50_places365.pth.tar": resnet50.ResNet50(width=4),
    "ViT-H-14-laion2b_s32b_b79k.pth": clip_tower.Clip(
        width=64, layers=1, heads=1, mlp_width=64, embed_dim=16, patch=56
    ),
}  # fmt: skip
FAMILIES = ("mage", "mae", "palette", "inception", "inception", "resnet50", "clip")


def make(out: Path, train: int, val: int) -> None:
    """Writes out/imagenet, out/places365 and out/checkpoints.

    Args:
      out: must not exist.
      train: training images of each class.
      val: validation images of each class.
    """
    if out.exists():
        raise ValueError(f"--out: {out} exists. Choose another folder, or remove that one.")
    images = _jpegs(np.random.default_rng(0))
    wnids = sorted([*published.IMAGENET_FORGET, *published.IMAGENET_RETAIN])
    for wnid in wnids:
        for i in range(train):
            _write(out / "imagenet/train" / wnid / f"{wnid}_{i}.JPEG", next(images))
    names = (f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, 10**8))
    for wnid in wnids:
        for _ in range(val):
            _write(out / "imagenet/val" / wnid / next(names), next(images))
    places = sorted([*published.PLACES_FORGET, *published.PLACES_RETAIN])
    for place in places:
        for i in range(train):
            folder = out / "places365/train_256" / place.strip("/")
            _write(folder / f"{i + 1:08}.jpg", next(images))
    labels = [f"Places365_val_{i + 1:08}.jpg {i % len(places)}" for i in range(val * len(places))]
    for line in labels:
        _write(out / "places365/val_256" / line.split()[0], next(images))
    categories = "".join(f"{place} {i}\n" for i, place in enumerate(places))
    (out / "places365/places365_val.txt").write_text("\n".join(labels) + "\n")
    (out / "places365/categories_places365.txt").write_text(categories)
    for folder in ("imagenet/train/" + wnids[0], "places365/train_256/" + places[0].strip("/")):
        (out / folder / "broken.JPEG").write_bytes(next(images)[:300])
    for family, (name, model) in zip(FAMILIES, MODELS.items(), strict=True):
        _write_checkpoint(out / "checkpoints" / name, family, model)


def _jpegs(rng: np.random.Generator) -> Iterator[bytes]:
    """Encoded images without end; the first is grey, the second CMYK."""
    source = open_source(kind="tfds", name="cifar10_sample", image_size=32)
    number = 0
    while True:
        image = Image.fromarray(source.fetch(np.array([number % len(source)]))[0])
        width, height = rng.integers(36, 72, 2).tolist()
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        image = image.convert({0: "L", 1: "CMYK"}.get(number, "RGB"))
        buffer = io.BytesIO()
        image.save(buffer, "jpeg", quality=90)
        yield buffer.getvalue()
        number += 1


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _write_checkpoint(path: Path, family: str, model) -> None:
    rules, key = convert.find(family), jax.random.key(0)
    leaves, tree = jax.tree.flatten(jax.jit(model.init)(key))
    # What starts at 0 would give the same images and features everywhere.
    noise = [0.02 * jax.random.normal(jax.random.fold_in(key, i), x.shape) for i, x in
             enumerate(leaves)]  # fmt: skip
    params = tree.unflatten(x + jnp.abs(n) for x, n in zip(leaves, noise, strict=True))
    if family == "palette":
        params["schedule"] = model.init(key)["schedule"]
    tensors = dict(convert.to_torch(rules, model, params))
    writing.write(path, tensors, rules.wrapper)


def main(out: str) -> None:
    """The binary."""
    make(Path(out), flags.FLAGS.train, flags.FLAGS.val)
    print(f"Made {out}/imagenet, {out}/places365 and {out}/checkpoints.")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Folder to make.")
    flags.DEFINE_integer("train", 2, "Training images of each class.", lower_bound=1)
    flags.DEFINE_integer("val", 2, "Validation images of each class.", lower_bound=1)
    cli.start(main, needs=("out",), example="--out=data")
