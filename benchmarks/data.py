"""Loading speed: prepared records and this package's batches, against a PyTorch DataLoader.

python -m benchmarks.data [--folder=DIR] [--images=1024] [--size=256] [--rounds=5] [--workers=2]

Prints one line of JSON: images per second of CPU time and of wall time, for training (random crops
resized, mirrored) and evaluation (shorter side resized, centre cropped), and the same of a
DataLoader that opens the same JPEG files with PIL and does the same to them. The two take turns and
medians are reported, since other work on the machine slows both. Files are smooth random images of
256x256 pixels unless a folder with class sub-folders is given. CPU time is that of all threads and
processes, whose start is not counted; where PyTorch is not installed, its figures are missing.
"""

import importlib.util
import json
import math
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging
from PIL import Image

from unlearn_jax import cli, data
from unlearn_jax.data import prepare, preprocess, sources

FOLDER = flags.DEFINE_string("folder", "", "JPEG files in class sub-folders; made if empty.")
IMAGES = flags.DEFINE_integer("images", 1024, "Files to make, if there is no folder.")
SIZE = flags.DEFINE_integer("size", 256, "Pixels that models get.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images per batch.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Measurements of each, in turns.")
THREADS = flags.DEFINE_integer("threads", 2, "Of this package's loader.")
WORKERS = flags.DEFINE_multi_integer("workers", [0, 2], "Processes of the DataLoader; repeatable.")

TASK = {"name": "inpaint", "hole": 0.5}
Run = Callable[[], int]  # loads everything once; returns the number of images


def make_files(folder: Path, count: int) -> None:
    """Write smooth random JPEG images of 256x256 pixels, quality 90, in two classes."""
    for i in range(count):
        rng = np.random.default_rng(i)
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
        pixels = np.asarray(coarse.resize((256, 256), Image.Resampling.BICUBIC), np.int16)
        noisy = pixels + rng.normal(0, 12, pixels.shape).astype(np.int16)
        file = folder / f"class{i % 2}" / f"{i:06d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, quality=90)


def ours(records: Path, train: bool, threads: int) -> Run:
    """Make this package's loader over prepared records."""
    source = sources.open_source(
        kind="records", path=str(records), image_size=SIZE.value, splits=("train",), cache=False,
        resize="crop", crops=preprocess.Crops(),
    )  # fmt: skip
    rows, options = np.arange(len(source)), {"task": TASK, "seed": 0, "num_threads": threads}
    steps = len(rows) // BATCH_SIZE.value

    def run() -> int:
        if train:
            batches = data.make_train(
                source, retain_rows=rows, forget_rows=None, batch_size=BATCH_SIZE.value,
                forget_fraction=0.5, first_step=0, num_steps=steps, **options,
            )  # fmt: skip
        else:
            kept = rows[: steps * BATCH_SIZE.value]
            batches = data.make_eval(source, kept, batch_size=BATCH_SIZE.value, **options)
        return sum(len(batch["image"]) for batch in batches)

    return run


class Files:
    """A PyTorch dataset as the released training code has one: PIL, torchvision's arithmetic."""

    def __init__(self, paths: list[str], train: bool, size: int) -> None:
        self.paths, self.train, self.size = paths, train, size
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        """Read one image as float32 [3 h w] in [0, 1], as ToTensor makes it, and a label."""
        import torch

        with open(self.paths[i], "rb") as file:
            image = Image.open(file).convert("RGB")
        size, bicubic = self.size, Image.Resampling.BICUBIC
        if self.train:
            left, top, w, h = self.box(*image.size)
            image = image.crop((left, top, left + w, top + h)).resize((size, size), bicubic)
            if self.rng.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        else:
            width, height = image.size
            scale = size / min(width, height)
            whole = (max(size, int(width * scale)), max(size, int(height * scale)))
            image = image.resize(whole, bicubic) if whole != image.size else image
            left, top = round((whole[0] - size) / 2), round((whole[1] - size) / 2)
            image = image.crop((left, top, left + size, top + size))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div(255), 0

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Draw RandomResizedCrop's box."""
        for _ in range(10):
            area = width * height * self.rng.uniform(0.2, 1)
            ratio = math.exp(self.rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if w <= width and h <= height:
                left, top = self.rng.integers(width - w + 1), self.rng.integers(height - h + 1)
                return int(left), int(top), w, h
        return 0, 0, width, height


def theirs(files: Path, train: bool, workers: int) -> Run:
    """Make a DataLoader over the files, with worker processes or none."""
    import torch

    torch.set_num_threads(1)
    paths = sorted(str(path) for path in files.rglob("*.*") if path.is_file())
    loader = torch.utils.data.DataLoader(
        Files(paths, train, SIZE.value), BATCH_SIZE.value, shuffle=train, num_workers=workers,
        drop_last=True, multiprocessing_context="spawn" if workers else None,
        persistent_workers=workers > 0,
    )  # fmt: skip
    return lambda: sum(len(images) for images, _ in loader)


def measure(contenders: dict[str, Run], rounds: int) -> dict[str, dict[str, float]]:
    """Measure images per CPU second and per second: medians over rounds in which all take turns."""
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for run in contenders.values():  # the first use of anything is slower
        run()
    for _ in range(rounds):
        for name, run in contenders.items():
            cpu, wall = _cpu_seconds(), time.perf_counter()
            images = run()
            wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
            rates[name].append((images / cpu, images / wall))
    return {
        name: {
            "images_per_cpu_s": round(statistics.median(cpu for cpu, _ in found)),
            "images_per_s": round(statistics.median(wall for _, wall in found)),
        }
        for name, found in rates.items()
    }


def _cpu_seconds() -> float:
    """Measure the CPU time of this process and of those it has started."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    total = used.ru_utime + used.ru_stime
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def main(argv: list[str]) -> None:
    """Prepare records of the files, measure, print."""
    if len(argv) > 1:
        raise app.UsageError(f"Expected only flags, got {argv[1:]}.")
    logging.set_verbosity(logging.WARNING)
    cli.keep_freed_memory()  # as every binary does
    with_torch = importlib.util.find_spec("torch") is not None
    with tempfile.TemporaryDirectory() as made:
        files, records = Path(FOLDER.value or f"{made}/files"), Path(made) / "records"
        if not FOLDER.value:
            make_files(files, IMAGES.value)
        start, cpu = time.perf_counter(), _cpu_seconds()
        manifest = prepare.run("folder", files, records, images_per_shard=256)
        count = manifest["splits"]["train"]["count"]
        found: dict[str, Any] = {
            "images": count,
            "size": SIZE.value,
            "batch_size": BATCH_SIZE.value,
            "cores": os.cpu_count(),
            "prepare": {
                "images_per_cpu_s": round(count / (_cpu_seconds() - cpu)),
                "images_per_s": round(count / (time.perf_counter() - start)),
            },
        }
        for mode in ("train", "evaluation"):
            contenders = {"ours": ours(records, mode == "train", THREADS.value)}
            for workers in WORKERS.value if with_torch else ():
                contenders[f"torch_{workers}_workers"] = theirs(files, mode == "train", workers)
            rates = measure(contenders, ROUNDS.value)
            for name, rate in rates.items():
                for unit in ("images_per_cpu_s", "images_per_s"):
                    if name != "ours":
                        rate[f"ours_times_{unit}"] = round(rates["ours"][unit] / rate[unit], 2)
            found[mode] = rates
    print(json.dumps(found))


if __name__ == "__main__":
    app.run(main)
