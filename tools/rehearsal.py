"""Make a small ImageNet, a small Places365 and small checkpoints, to rehearse the full request.

    python -m tools.rehearsal --out=data

The images are those of the bundled CIFAR-10 sample, enlarged to odd sizes and saved as JPEG under
the names, folders and classes of the real data sets: of ImageNet the 200 classes of the published
split, of Places365 its first 100. Among them are a grayscale and a CMYK image and, in each data
set, a file that is cut off. The checkpoints have the published names and layouts, narrow layers and
random weights, and beside each is a file with what its tensors do not tell: what they generate and
what is measured means nothing.
"""

import importlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import traverse_util
from PIL import Image

from configs import imagenet_mage
from unlearn_jax import cli, convert, models
from unlearn_jax.convert import writing
from unlearn_jax.data.sources import open_source
from unlearn_jax.evaluate.towers import clip_tower, inception, resnet50
from unlearn_jax.models import diffusion
from unlearn_jax.registry import UserError

CHECKPOINTS = {
    "mage-vitb-1600.pth": ("mage", "imagenet_mage"),
    "mae_visualize_vit_large.pth": ("mae", "imagenet_mae"),
    "16_Network.pth": ("palette", "places365_palette"),
    "pt_inception-2015-12-05-6726825d.pth": ("inception", inception.Inception(width=2)),
    "inception_v3_google-0cc3c7bd.pth": ("inception", inception.Inception("torchvision", width=2)),
    "resnet50_places365.pth.tar": ("resnet50", resnet50.ResNet50(width=4)),
    "open_clip_model.safetensors": (
        "clip",
        clip_tower.Clip(width=64, layers=1, heads=1, mlp_width=64, embed_dim=16, patch=56),
    ),
}
"""Families, and models or the configs whose rehearsal has them."""


def make(out: Path, train: int, val: int) -> None:
    """Write out/imagenet, out/places365 and out/checkpoints.

    Args:
      out: must not exist.
      train: training images of each class.
      val: validation images of each class.
    """
    if out.exists():
        raise UserError(f"--out: {out} exists. Choose another folder, or remove that one.")
    rng = np.random.default_rng(0)
    images = _jpegs(rng)
    wnids = sorted(imagenet_mage.classes("imagenet_forget.txt", "imagenet_retain.txt"))
    for wnid in wnids:
        for i in range(train):
            _write(out / "imagenet/train" / wnid / f"{wnid}_{i}.JPEG", next(images))
    names = (f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, 10**8))
    for wnid in wnids:
        for _ in range(val):
            _write(out / "imagenet/val" / wnid / next(names), next(images))
    places = sorted(imagenet_mage.classes("places365_forget.txt", "places365_retain.txt"))
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
    (out / "checkpoints").mkdir()
    for name, (family, model) in CHECKPOINTS.items():
        if isinstance(model, str):
            config = importlib.import_module(f"configs.{model}").get_config("rehearsal")
            model = models.of(config)
        _write_checkpoint(out / "checkpoints" / name, family, model, rng)


def _jpegs(rng: np.random.Generator) -> Iterator[bytes]:
    """Yield encoded images without end; the first is grey, the second CMYK."""
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


def _write_checkpoint(path: Path, family: str, model: Any, rng: np.random.Generator) -> None:
    rules = convert.find(family)
    shapes = jax.eval_shape(model.init, jax.random.key(0))  # to compile `init` takes minutes
    leaves = {
        name: _random(name, leaf.shape, rng)
        for name, leaf in traverse_util.flatten_dict(shapes, sep="/").items()
    }
    if family == "palette":
        schedule = diffusion.linear_schedule(model.timesteps, 0.1, 0.9)
        leaves |= {f"schedule/{name}": array for name, array in schedule.items()}
    params = traverse_util.unflatten_dict(leaves, sep="/")
    tensors = dict(convert.to_torch(rules, model, params))
    # A PyTorch file, whatever it is called.
    written = path if path.suffix in (".pth", ".safetensors") else path.with_name("weights.pth")
    writing.write(written, tensors, rules.wrapper)
    written.replace(path)
    unsaid = {name: getattr(model, name) for name in rules.unsaid}
    _write(path.with_name(f"{path.name.split('.')[0]}.json"), json.dumps(unsaid).encode())


def _random(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if name.endswith(("/scale", "/var")):
        return rng.uniform(0.8, 1.2, shape).astype(np.float32)
    fan_in = np.prod(shape[:-1]) if name.endswith("/kernel") else 100
    return (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)


def main(out: str) -> None:
    """Run the command."""
    make(Path(out), flags.FLAGS.train, flags.FLAGS.val)
    print(f"Made {out}/imagenet, {out}/places365 and {out}/checkpoints.")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Folder to make.")
    flags.DEFINE_integer("train", 2, "Training images of each class.", lower_bound=1)
    flags.DEFINE_integer("val", 2, "Validation images of each class.", lower_bound=1)
    cli.start(main, needs=("out",), example="--out=data")
