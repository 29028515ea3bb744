"""What metrics say of two samples of the same images: the null value at each number of images.

python -m benchmarks.fid_bias --data_dir=DIR [--gaussians]

DIR is a tfds data directory with cifar10. Prints one line of JSON for each n: Fréchet and kernel
distance of disjoint random samples of CIFAR-10's test images, by the bundled classifier (128
features), and the Inception Score's counterpart, in the order of a random and of a sorted stream.
With --gaussians also the Fréchet distance of samples of one Gaussian of 2048 dimensions, whose
variances fall as 1/k and add up to 1: an idea of what Inception's features do.
"""

import json

import jax
import numpy as np
from absl import flags

from unlearn_jax import cli, sharding
from unlearn_jax.data import sources
from unlearn_jax.evaluate.metrics import fid, inception_score, kid
from unlearn_jax.evaluate.towers import extractor as towers
from unlearn_jax.evaluate.towers import features

SIZES = (100, 250, 500, 1000, 2500, 5000)
_BATCH = 500


def cifar10(data_dir: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Load the test images of CIFAR-10: ({"pool" [n 128], "logits" [n 10]}, labels [n])."""
    source = sources.open_source(
        kind="tfds", name="cifar10", data_dir=data_dir, image_size=32, splits=("test",)
    )
    images = source.fetch(np.arange(len(source)))
    items = ({"position": i, "generated": image} for i, image in enumerate(images))
    found: dict[str, list[np.ndarray]] = {"pool": [], "logits": []}
    streams = {"it/generated": towers.small()}
    mesh = sharding.make_mesh()
    for outputs, _, valid in features.extract(
        items, streams, mesh, batch_size=_BATCH, total=len(images)
    ):
        for name, rows in found.items():
            rows.append(np.asarray(outputs["it/generated"][name])[valid])
    return {name: np.concatenate(rows) for name, rows in found.items()}, source.labels


def moments(rows: np.ndarray) -> fid.Moments:
    """Compute the moments of all rows."""
    return fid.update(fid.empty(rows.shape[1]), rows, np.ones(len(rows), bool))


def score(logits: np.ndarray) -> float:
    """Compute the mean score of 10 consecutive splits."""
    sums = inception_score.empty(logits.shape[1])
    split = inception_score.assignment(len(logits))
    sums = inception_score.update(sums, logits, split, np.ones(len(logits), bool))
    return inception_score.score(sums)["mean"]


def of_images(found: dict[str, np.ndarray], labels: np.ndarray, n: int, seed: int) -> dict:
    """Compute the metrics of one pair of disjoint samples of n images."""
    rows = np.random.default_rng(seed).permutation(len(labels))[: 2 * n]
    a, b = rows[:n], rows[n:]
    pool = found["pool"]
    by_class = a[np.argsort(labels[a], kind="stable")]
    return {
        "frechet": fid.frechet_distance(moments(pool[a]), moments(pool[b])),
        "kernel": kid.mmd2(pool[a], pool[b]),
        "score_shuffled": score(found["logits"][a]),
        "score_class_grouped": score(found["logits"][by_class]),
    }


def of_gaussians(n: int, seed: int, d: int = 2048) -> float:
    """Compute the Fréchet distance of two samples of n."""
    scale = np.sqrt(1 / np.arange(1, d + 1))
    scale /= np.sqrt(np.square(scale).sum())
    rng = np.random.default_rng(seed)
    pair = []
    for _ in range(2):
        found = fid.empty(d)
        for first in range(0, n, _BATCH):
            rows = rng.standard_normal((_BATCH, d), np.float32) * np.float32(scale)
            found = fid.update(found, rows, np.arange(_BATCH) < n - first)
        pair.append(found)
    return fid.frechet_distance(*pair)


def main(data_dir: str) -> None:
    """Print the lines."""
    found, labels = cifar10(data_dir)
    for n in SIZES:
        trials = [of_images(found, labels, n, seed) for seed in range(10)]
        line = {"n": n, "pairs": len(trials)}
        for name in trials[0]:
            values = np.array([trial[name] for trial in trials])
            line |= {name: float(values.mean()), f"{name}_std": float(values.std(ddof=1))}
        if flags.FLAGS.gaussians:
            line["frechet_gaussian_2048"] = of_gaussians(n, seed=0)
        line = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in line.items()}
        print(json.dumps(line), flush=True)
    total = float(np.trace(fid.covariance(moments(found["pool"]))))
    print(json.dumps({"trace_of_covariance": round(total, 3), "devices": jax.device_count()}))


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "tfds data directory with cifar10 prepared.")
    flags.DEFINE_bool("gaussians", False, "Also Gaussians of 2048 dimensions: a minute more.")
    cli.start(main, needs=("data_dir",), example="--data_dir=~/tensorflow_datasets")
