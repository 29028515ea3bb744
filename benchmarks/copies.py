"""What finding copies costs on CIFAR-10, and what it finds; one line of JSON.

python -m benchmarks.copies --data_dir=DIR [--cifair=duplicates_cifar10.csv]

DIR holds the prepared tfds data set. With the hand-made list of near-duplicates between its test
and training images, `meta/duplicates_cifar10.csv` of ciFAIR (Barz & Denzler), it also says how many
of these are found. How many of the pairs found are false alarms takes eyes.
"""

import csv
import datetime
import io
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image, ImageEnhance

from unlearn_jax import cli
from unlearn_jax.data import copies, open_source

FORGET, CHANGED = 5000, 1000  # images; of the request, and to be changed


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a function returns, and its seconds."""
    start = time.perf_counter()
    return function(), round(time.perf_counter() - start, 3)


def costs(source: Any, cache: Path) -> tuple[copies.Hashes, dict[str, Any]]:
    """Return the hashes of a source, and seconds and pairs of a request for 5,000 images."""
    hashes, first = timed(lambda: copies.hash_source(source, cache))
    _, again = timed(lambda: copies.hash_source(source, cache))
    train = np.array(source.splits["train"])
    forget = np.sort(np.random.default_rng(0).choice(train, FORGET, replace=False))
    others = np.setdiff1d(np.arange(len(source)), forget)
    same, exact_s = timed(lambda: copies.exact(hashes, forget, others))
    alike, near_s = timed(lambda: copies.near(hashes, forget, others))
    return hashes, {
        "images": len(source), "forget": FORGET,
        "hash_s": first, "read_s": again, "exact_s": exact_s, "near_s": near_s,
        "exact_pairs": len(same), "near_pairs": len(alike),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }  # fmt: skip


def changed(source: Any) -> dict[str, Any]:
    """Return how many of some images are found after a change, and the bits that it changes."""
    rows = np.random.default_rng(0).choice(np.array(source.splits["train"]), CHANGED, False)

    def jpeg(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "jpeg", quality=75)
        return Image.open(file).convert("RGB")

    ways = {
        "jpeg_75": jpeg,
        "resized_48_32": lambda image: image.resize((48, 48)).resize((32, 32)),
        "brighter_10_percent": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
        "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    }
    found: dict[str, Any] = {}
    for name, change in ways.items():
        bits = [
            np.bitwise_count(a ^ b).sum()
            for image in source.fetch(rows)
            for _, a in [copies.hash_image(image)]
            for _, b in [copies.hash_image(np.asarray(change(Image.fromarray(image))))]
        ]
        hits = int((np.array(bits) <= copies.DISTANCE).sum())
        found[name] = {"n": CHANGED, "found": hits, "bits": [int(min(bits)), int(max(bits))]}
    return found


def against_cifair(source: Any, hashes: copies.Hashes, file: str) -> dict[str, Any]:
    """Return the pairs between test and training, and how many of ciFAIR's are among them."""
    pairs = copies.near(hashes, source.splits["test"], source.splits["train"])
    ids = {(source.ids[a], source.ids[b]) for a, b, _ in pairs.tolist()}
    found = {"pairs": len(ids), "distance": copies.DISTANCE}
    if file:
        with open(file, newline="") as lines:
            rows = [row for row in csv.DictReader(lines) if row["Judgment"] == "1"]
        listed = [(f"test_{int(r['TestID']):05d}", f"train_{int(r['TrainID']):05d}") for r in rows]
        found |= {"near_duplicates": len(listed), "found": sum(pair in ids for pair in listed)}
    return found


def main(data_dir: str) -> None:
    """Run the command."""
    source = open_source(kind="tfds", name="cifar10", data_dir=data_dir, image_size=32)
    cache = Path(f"copies-{os.getpid()}.npz")
    try:
        hashes, cost = costs(source, cache)
    finally:
        cache.unlink(missing_ok=True)
    found = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: metadata.version(name) for name in ("ImageHash", "numpy", "pillow")},
        "cost": cost,
        "changed": changed(source),
        "test_train": against_cifair(source, hashes, flags.FLAGS.cifair),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "The tfds data directory.")
    flags.DEFINE_string("cifair", "", "ciFAIR's list of near-duplicates.")
    cli.start(main, needs=("data_dir",), example="--data_dir=DIR")
