"""Small ImageNets and Places365s as they are distributed, and what is prepared from them."""

import io

import numpy as np
from PIL import Image

from unlearn_jax.data import prepare, sources

WNIDS = ("n01440764", "n01443537", "n01484850")


def jpeg(seed, width=20, height=17, **options):
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8)).resize((width, height))
    data = io.BytesIO()
    image.save(data, "jpeg", **options)
    return data.getvalue()


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def imagenet(root, per_class=4, val=2, flat=False):
    """A small copy, and the class of every validation image."""
    class_of = {}
    for c, wnid in enumerate(WNIDS):
        for i in range(per_class):
            put(root / "train" / wnid / f"{wnid}_{i}.JPEG", jpeg(c * 100 + i, 20 + i))
        for i in range(val):
            name = f"ILSVRC2012_val_{i * 3 + 2 - c:08d}.JPEG"
            class_of[name] = wnid
            put(root / "val" / ("" if flat else wnid) / name, jpeg(1000 + c * 10 + i))
    return class_of


def places(root, flat=True, prefix=False):
    """Three classes, the validation images as distributed or as the release moves them."""
    known = ("b/badlands", "b/bakery/shop", "z/zen_garden")
    for c, name in enumerate(known):
        for i in range(3):
            put(root / "train_256" / name / f"{i + 1:08d}.jpg", jpeg(c * 10 + i, 16, 16))
    for i in range(6):
        name, file = known[i % 3], f"Places365_val_{i + 1:08d}.jpg"
        if not flat:
            file = f"{name}/{name.replace('/', '_') + '_' if prefix else ''}{file}"
        put(root / "val_256" / file, jpeg(50 + i, 16, 16))
    lines = "".join(f"Places365_val_{i + 1:08d}.jpg {i % 3}\n" for i in range(6))
    (root / "places365_val.txt").write_text(lines)


def run(source, out, layout="imagenet", **options):
    return prepare.run(layout, source, out, **{"images_per_shard": 5, "workers": 1, **options})


def opened(out, splits=("train", "validation"), **options):
    options = {"image_size": 16, "resize": "crop", "cache": False, **options}
    return sources.open_source(kind="records", path=str(out), splits=splits, **options)


def contents(folder):
    return {
        f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()
    }
