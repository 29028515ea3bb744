"""All but models: the device, the quickstart and tests, FID, the loader, and what it feeds."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.accelerator.points import CONFIGS, die_with_parent
from unlearn_jax.registry import UserError

LINES = 5  # the last ones of a command's output that are kept


def device(*, say: Callable, **_: Any) -> None:
    """Return what jax calls its first device."""
    import jax

    first = jax.devices()[0]
    say(device=first.device_kind, platform=first.platform)


def quickstart(*, say: Callable, config: str = "configs/quickstart.py", **_: Any) -> None:
    """Run the whole request of README.md in a new folder, as a user gives it.

    Raises:
      UserError: it failed, wrote no report, or counted no FLOPs.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = (sys.executable, "-m", "unlearn_jax.pipeline", f"--config={config}")
        code = _command((*command, f"--workdir={folder}/run"), say)
        report, results = (Path(folder) / "run" / name for name in ("report.html", "results.json"))
        stages = json.loads(results.read_text())["stages"] if results.exists() else {}
        flops = {name: stage["flops"] for name, stage in stages.items()}
        say(report=report.exists(), flops=flops)
        if code or not report.exists() or not flops or not all(flops.values()):
            raise UserError(f"Expected exit code 0, a report and counted FLOPs; got {code}.")
    say(stage="done")


def tests(*, say: Callable, command: Sequence[str], **_: Any) -> None:
    """Run the quick tests.

    Raises:
      UserError: one failed.
    """
    if code := _command(command, say):
        raise UserError(f"Expected exit code 0 of {' '.join(command[1:])}, got {code}.")
    say(stage="done")


def _command(command: Sequence[str], say: Callable) -> int:
    """Run a command; return its exit code, how long it took and its last lines."""
    say(stage="command")
    start = time.perf_counter()
    ran = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=die_with_parent,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    lines = ran.stdout.replace("\r", "\n").strip().splitlines()[-LINES:]
    say(seconds=seconds, exit_code=ran.returncode, last_lines=lines)
    return ran.returncode


def fid(*, images: int, batch_size: int, say: Callable, **_: Any) -> None:
    """Compute FID of so many JPEGs of 256 x 256 with themselves, in Inception with random weights.

    There are 256 different files at most, read again and again: decoding does not know. Weights do
    not change what is computed. Both the whole way from files to moments and the tower alone.
    """
    import jax
    import numpy as np

    from benchmarks import fid as benchmark
    from unlearn_jax import sharding
    from unlearn_jax.evaluate.metrics import fid as distances

    say(stage="files")
    extractor, mesh = benchmark.random_extractor(), sharding.make_mesh()
    with tempfile.TemporaryDirectory() as folder:
        files = benchmark.write_images(Path(folder), min(images, 256), side=256)
        paths = [files[i % len(files)] for i in range(images)]
        moments = partial(
            benchmark.our_moments, extractor=extractor, mesh=mesh, batch_size=batch_size
        )
        say(stage="first batch", images=images, batch_size=batch_size)
        start = time.perf_counter()
        moments(paths[:batch_size])
        say(first_step_s=time.perf_counter() - start, stage="images")
        start = time.perf_counter()
        found = moments(paths)
        say(images_per_s=images / (time.perf_counter() - start), stage="distance")
    start = time.perf_counter()
    distance = distances.frechet_distance(found, found)
    say(distance_s=time.perf_counter() - start, distance_to_itself=float(distance), stage="tower")
    size = extractor.tower.image_size
    pixels = jax.numpy.zeros((batch_size, size, size, 3)) + jax.numpy.linspace(-1, 1, 3)
    pixels = sharding.global_batch({"image": np.asarray(pixels)}, mesh)["image"]
    tower = jax.jit(lambda params, x: extractor.tower.features(params, x)["pool"])
    jax.block_until_ready(tower(extractor.params, pixels))
    start = time.perf_counter()
    rounds = min(10, -(-images // batch_size))
    for _ in range(rounds):
        out = tower(extractor.params, pixels)
    jax.block_until_ready(out)
    seconds = (time.perf_counter() - start) / rounds
    say(tower_images_per_s=batch_size / seconds, stage="done")


def loader(*, images: int, batch_size: int, epochs: int, say: Callable, **_: Any) -> None:
    """Measure images per second of `data.make_train`.

    Of JPEGs of 256 x 256, with random crops, in 16 threads.
    """
    from absl import flags

    from benchmarks import data as benchmark
    from unlearn_jax.data import prepare

    size = min(batch_size, images)
    flags.FLAGS(["loader", f"--batch_size={size}"])
    say(stage="files", threads=16, batch_size=size)
    with tempfile.TemporaryDirectory() as folder:
        files, records = Path(folder) / "files", Path(folder) / "records"
        benchmark.make_files(files, images)
        prepare.run("folder", files, records, images_per_shard=256)
        load = benchmark.ours(records, train=True, threads=16)
        load()  # the first use of anything is slower
        say(stage="images")
        start = time.perf_counter()
        count = sum(load() for _ in range(epochs))
        say(images_per_s=count / (time.perf_counter() - start), stage="done")


def feed(
    *, images: int, batch_size: int, steps: int, say: Callable,
    fields: Mapping[str, Any] | None = None, **_: Any,
) -> None:  # fmt: skip
    """Measure the share of a step of MAE's pretraining that waits for images, in `train` itself."""
    import importlib

    from benchmarks import data as files
    from benchmarks import loop
    from unlearn_jax.data import prepare

    config = importlib.import_module(f"configs.{CONFIGS['mae']}").get_config()
    config.model.remat = False
    if fields:
        config.model = {"name": "mae", **fields}
        config.data.image_size = fields["image_size"]
    config.batch_size = batch_size
    config.phases.pretrain.update({"batch_size": batch_size})
    config.phases.pretrain.optimizer.warmup_steps = 1
    for section, name in ((config.request, "class0"), (config.retain, "class1")):
        section.update({"classes": (name,), "per_class": 0})
    config.holdout.update({"split": "", "fraction": 0.1})
    config.data.splits = ("train",)
    say(stage="files", batch_size=batch_size)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files.make_files(root / "files", images)
        prepare.run("folder", root / "files", root / "records", images_per_shard=256)
        config.data.path = str(root / "records")
        say(stage="train")
        found = loop.measure(config, steps, root / "run")
    share = found["data_wait"] / sum(found[part] for part in ("data_wait", "dispatch", "device"))
    parts = {f"{part}_s": value for part, value in found.items()}
    say(**parts, data_wait_share=share, stage="done")
