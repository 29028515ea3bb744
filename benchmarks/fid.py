"""Speed of FID features, ours against torch-fidelity on the same files: decode to covariance.

python -m benchmarks.fid [--images=32] [--batch_size=16] [--rounds=5]

Prints one line of JSON. Both read JPEGs of 256 x 256, resize them to 299 (ours as clean-fid: PIL's
bicubic in float32; torch-fidelity: TensorFlow's bilinear, inside its network), run Inception-v3
with the same random weights in float32, and gather mean and covariance. They take turns, PyTorch
with one thread and with its default number; the median of all rounds and the best one are given,
since other work on the machine slows both, and PyTorch's threads more than ours. Without
torch-fidelity there are our figures only.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from PIL import Image

from unlearn_jax import cli, convert, sharding
from unlearn_jax.convert import writing
from unlearn_jax.evaluate.metrics import fid
from unlearn_jax.evaluate.towers import extractor as towers
from unlearn_jax.evaluate.towers import features, preprocessing
from unlearn_jax.evaluate.towers.inception import Inception

IMAGES = flags.DEFINE_integer("images", 32, "Images of a round.", lower_bound=2)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Images at once.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds of each.", lower_bound=1)


def random_extractor() -> towers.Extractor:
    """Make FID's tower with random weights that keep the size of activations through the layers."""
    tower = Inception()
    params = jax.jit(tower.init)(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf * 2**0.5 if leaf.ndim == 4 else leaf, params)
    provenance = {"family": "inception", "parameters_sha256": "random"}
    return towers.extractor(tower, params, preprocessing.RECIPES["fid"], provenance)


def write_images(folder: Path, n: int, side: int, kind: str = "jpg") -> list[Path]:
    """Write n files with images of random tiles; return their paths."""
    paths = []
    for i in range(n):
        rng = np.random.default_rng(i)
        tiles = rng.integers(0, 256, (side // 16 + 1, side // 16 + 1, 3), np.uint8)
        pixels = tiles.repeat(16, 0).repeat(16, 1)[:side, :side]
        paths.append(folder / f"{i:05}.{kind}")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def item(position: int, path: Path) -> features.Item:
    """Read the image in a file."""
    return {"position": position, "generated": np.asarray(Image.open(path).convert("RGB"))}


def our_moments(
    paths: list[Path], extractor: towers.Extractor, mesh: Any, batch_size: int
) -> fid.Moments:
    """Compute the moments of the images in these files."""
    items = [partial(item, i, path) for i, path in enumerate(paths)]
    found = fid.empty(2048)
    streams = {"it/generated": extractor}
    for outputs, _, valid in features.extract(items, streams, mesh, batch_size=batch_size):
        found = fid.update(found, outputs["it/generated"]["pool"], valid)
    return fid.Moments(*map(np.asarray, found))


def torch_fidelity_statistics(
    extractor: towers.Extractor, folder: Path, batch_size: int
) -> Callable[[Path], dict[str, np.ndarray]] | None:
    """Make a function from a folder of images to {"mu", "sigma"}; None without torch-fidelity."""
    try:
        from torch_fidelity import metric_fid, utils
    except (ImportError, RuntimeError):  # not there, or without a torchvision that fits torch
        return None
    file = folder / "weights.pth"
    family = convert.find("inception")
    buffers = set(family.buffers(extractor.tower))
    tensors = convert.to_torch(family, extractor.tower, extractor.params)
    writing.write(file, {k: v for k, v in tensors if k not in buffers}, family.wrapper)
    options = {"cuda": False, "batch_size": batch_size, "verbose": False, "save_cpu_ram": True}
    options |= {"feature_extractor_weights_path": str(file), "cache": False}
    network = utils.create_feature_extractor("inception-v3-compat", ["2048"], **options)

    def compute(images: Path) -> dict[str, np.ndarray]:
        found = utils.extract_featuresdict_from_input_id(1, network, input1=str(images), **options)
        return metric_fid.fid_features_to_statistics(found["2048"])

    return compute


def seconds(run: Callable[[], Any]) -> float:
    """Time one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def with_threads(threads: int, run: Callable[[], Any]) -> None:
    """Run with this number of PyTorch's threads."""
    import torch

    torch.set_num_threads(threads)
    run()


def main(argv: list[str]) -> None:
    """Compare moments of images that need no resizing, then the speeds."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments {argv[1:]}; options start with --.")
    logging.set_verbosity(logging.WARNING)
    extractor, mesh = random_extractor(), sharding.make_mesh()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for name in ("same", "timed"):
            (root / name).mkdir()
        size = BATCH_SIZE.value
        ours = partial(our_moments, extractor=extractor, mesh=mesh, batch_size=size)
        theirs = torch_fidelity_statistics(extractor, root, size)
        same = write_images(root / "same", 4, side=299, kind="png")
        found = ours(same)
        difference = None
        if theirs:
            expected = theirs(root / "same")
            scale = np.abs(expected["mu"]).max()
            difference = float(np.abs(found.mean - expected["mu"]).max() / scale)
            np.testing.assert_allclose(found.mean, expected["mu"], atol=1e-4 * scale)
            covariance = fid.covariance(found)
            scale = np.abs(covariance).max()
            np.testing.assert_allclose(covariance, expected["sigma"], atol=1e-4 * scale)
        paths = write_images(root / "timed", IMAGES.value, side=256)
        runs = {"ours": partial(ours, paths)}
        if theirs:
            import torch

            for threads in sorted({1, torch.get_num_threads()}):
                run = partial(with_threads, threads, partial(theirs, root / "timed"))
                runs[f"torch_fidelity_{threads}_threads"] = run
        speeds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(ROUNDS.value):
            for name, run in runs.items():
                speeds[name].append(len(paths) / seconds(run))
    line = {"name": "fid", "images": len(paths), "batch_size": size, "rounds": ROUNDS.value}
    for name, found in speeds.items():
        line[name] = {"median": round(statistics.median(found), 2), "best": round(max(found), 2)}
    print(json.dumps(line | {"unit": "images/s", "difference_of_means": difference}))


if __name__ == "__main__":
    cli.keep_freed_memory()
    app.run(main)
