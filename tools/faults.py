"""The fault campaign: random faults in every part, and what must be left of them, which is nothing.

    python -m tools.faults --minutes=10 [--seed=0] [--out=DIR]

A round takes a fresh folder, injects one to three faults into training, evaluation or preparation
(one process with two devices, or two with one each), runs the same command again until it succeeds
and compares every bit of the result with that of a run that nothing has disturbed. No temporary
file may be left, and no process may hang. What is injected:

* SIGKILL or SIGTERM of one or of all processes, at a random moment or while a checkpoint is saved;
* a full disk: a tmpfs with a file that leaves some KB, where it may be mounted, else a limit on the
  size of files;
* damage to the newest checkpoint, of each kind in `DAMAGE`;
* a shard of the data, or an image to prepare, that cannot be read, for one run;
* a clock that jumps: `time.time` of Python and the times of all files, by days, both ways. Not
  covered: clocks that C++ code reads by itself.

It prints faults by kind and work lost in steps, and exits with 1 if anything was not as it was.
"""

import collections
import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from PIL import Image

from tests.helpers import binaries

HANG_S = 240  # a machine that is busy otherwise is slow, too
STEPS, EVERY = 40, 4
# On a CPU, programs in flight on two devices can wait for each other's threads: no fault of ours.
SYNCHRONOUS = {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "0"}
CLOCK = """
import random, time
rng, real, shift = random.Random({seed}), time.time, [0.0]
def jumping():
    if rng.random() < 0.02:
        shift[0] = rng.uniform(-3e6, 3e6)
    return real() + shift[0]
time.time = jumping
time.time_ns = lambda: int(jumping() * 1e9)
"""


@dataclass
class Scene:
    """A part of the work: how it is started in a folder, and what it leaves there."""

    module: str
    flags: Callable[[Path], list[str]]
    result: Callable[[Path], Any]
    needs: tuple[str, ...]  # what a fresh folder must have, of the reference's

    def start(self, folder: Path, processes: int, **options: Any) -> list[subprocess.Popen]:
        given = self.flags(folder)
        if self.module == "unlearn_jax.prepare":
            shares = [[f"--num_processes={processes}", f"--process_id={i}"] for i in range(2)]
            return [
                binaries.start(self.module, *given, *share, **options)
                for share in shares[:processes]
            ]
        if processes == 1:
            return [binaries.start(self.module, *given, devices=2, **options)]
        return binaries.start_job(self.module, *given, processes=processes, **options)


def _data(folder: Path) -> list[str]:
    return ["--config.data.kind=records", f"--config.data.path={folder / 'data'}"]


def _train(folder: Path) -> list[str]:
    return [
        binaries.TINY, *_data(folder), f"--workdir={folder / 'original'}", "--config.log_every=1",
        f"--config.phases.pretrain.steps={STEPS}", f"--config.checkpoint.every={EVERY}",
    ]  # fmt: skip


def _evaluate(folder: Path) -> list[str]:
    return [
        *_train(folder)[:3], f"--checkpoints=original={folder / 'original'}",
        f"--workdir={folder / 'out'}", "--config.request.kind=classes",
        "--config.request.classes=cat", "--config.protocol.shard_size=8",
        "--config.protocol.batch_size=8", "--config.protocol.inpaint=(8,)",
        "--config.protocol.outpaint=(4,)",
    ]  # fmt: skip


def _prepare(folder: Path) -> list[str]:
    return [
        "--layout=folder", f"--source={folder / 'raw'}", f"--out={folder / 'data'}",
        "--images_per_shard=8", "--workers=1",
    ]  # fmt: skip


def _trained(folder: Path) -> Any:
    newest = max(_steps(folder))
    text = (folder / "original/checkpoints" / str(newest) / "meta/metadata").read_text()
    lines = (folder / "original/metrics.jsonl").read_text().splitlines()
    return newest, json.loads(text)["checksums"], [json.loads(line)["step"] for line in lines]


def _evaluated(folder: Path) -> Any:
    found = _files(folder / "out")
    results = json.loads((folder / "out/protocol/results.json").read_text())
    del found["protocol/results.json"]
    return found, {k: results[k] for k in ("rows", "models", "sets")}


def _files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


SCENES = {
    "prepare": Scene("unlearn_jax.prepare", _prepare, lambda f: _files(f / "data"), ("raw",)),
    "train": Scene("unlearn_jax.train", _train, _trained, ("data",)),
    "evaluate": Scene("unlearn_jax.evaluate", _evaluate, _evaluated, ("data", "original")),
}


def make_images(folder: Path) -> None:
    """Make images of two classes, of a training and of a test split."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 24)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
                image = Image.fromarray(pixels).resize((32, 32))
                image.save(folder / split / name / f"{i}.png")


def _steps(folder: Path) -> list[int]:
    found = (folder / "original/checkpoints").glob("*")
    return sorted(int(path.name) for path in found if path.name.isdigit())


def _progress(name: str, folder: Path) -> int:
    """Count the steps of training, and the files of the rest."""
    if name == "train":
        return _logged(folder)
    return sum(1 for _ in (folder / {"prepare": "data", "evaluate": "out"}[name]).rglob("*.*"))


def _logged(folder: Path) -> int:
    """Read the last step that a run has told of."""
    log = folder / "original/metrics.jsonl"
    text = log.read_text() if log.exists() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()
    return json.loads(lines[-1])["step"] if lines else 0


# ---- damage to a checkpoint ------------------------------------------------------------------


def _largest(step: Path, pattern: str = "params/**/d/*") -> Path:
    return max((p for p in step.glob(pattern) if p.is_file()), key=lambda p: p.stat().st_size)


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(255 - x for x in data[middle : middle + 64])
    file.write_bytes(data)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGE = {
    "data file truncated": lambda step: _truncate(_largest(step)),
    "data file deleted": lambda step: _largest(step).unlink(),
    "64 bytes of data flipped": lambda step: _flip(_largest(step)),
    "manifest deleted": lambda step: (step / "params/manifest.ocdbt").unlink(),
    "_METADATA truncated": lambda step: _truncate(step / "params/_METADATA"),
    "_METADATA deleted": lambda step: (step / "params/_METADATA").unlink(),
    "_CHECKPOINT_METADATA deleted": lambda step: (step / "_CHECKPOINT_METADATA").unlink(),
    "params deleted": lambda step: shutil.rmtree(step / "params"),
    "opt deleted": lambda step: shutil.rmtree(step / "opt"),
    "meta truncated": lambda step: _truncate(step / "meta/metadata"),
    "meta deleted": lambda step: shutil.rmtree(step / "meta"),
    "meta changed": lambda step: _flip(step / "meta/metadata"),
    "all but the folder deleted": lambda step: [
        shutil.rmtree(path) if path.is_dir() else path.unlink() for path in list(step.iterdir())
    ],
    "temporary folder of a save": lambda step: shutil.copytree(
        step, step.with_name(f"{int(step.name) + 1}.orbax-checkpoint-tmp")
    ),
}


# ---- the campaign ----------------------------------------------------------------------------


@dataclass
class Campaign:
    """Rounds of faults, and what became of them."""

    root: Path
    rng: random.Random
    expected: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    injected: collections.Counter = field(default_factory=collections.Counter)
    lost: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def prepare(self, names: Iterable[str] = tuple(SCENES)) -> None:
        """Run these once, undisturbed."""
        make_images(self.root / "reference/raw")
        for name in names:
            scene = SCENES[name]
            began = time.monotonic()
            self.finish(scene, self.root / "reference", 1, tries=1)
            self.seconds[name] = time.monotonic() - began
            self.expected[name] = scene.result(self.root / "reference")

    def finish(self, scene: Scene, folder: Path, processes: int, tries: int = 3) -> None:
        """Give the same command until it succeeds."""
        for _ in range(tries):
            found = binaries.ended(scene.start(folder, processes), HANG_S)
            if all(code == 0 for code, *_ in found):
                return
        raise AssertionError("did not succeed again:\n" + found[0][2][-2000:])

    def round(self, name: str, processes: int, faults: list[str]) -> None:
        """Run one round; a fault that came too late, as the run was over, does not count."""
        scene, folder = SCENES[name], self.root / "round"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with _small_disk(folder, "full disk" in faults) as mounted:
            for part in scene.needs:
                shutil.copytree(self.root / "reference" / part, folder / part)
            label = f"{name}, {processes} process(es), {faults}"
            try:
                for fault in faults:
                    before = _logged(folder) if name == "train" else 0
                    done = self.inject(fault, name, folder, processes, mounted)
                    if done:
                        self.injected[name, done] += 1
                    if name == "train" and (seen := _logged(folder)) != before:
                        self.lost.append(seen - max(_steps(folder), default=0))
                self.finish(scene, folder, processes)
                if aside := [int(p.name) for p in (folder / "original").glob("damaged/*")]:
                    self.lost.append(EVERY * len(aside))
                assert scene.result(folder) == self.expected[name], "another result"
                left = [p for p in folder.rglob("*") if "partial" in p.name or "tmp" in p.name]
                left += [p for p in folder.rglob("unfinished")] + [*folder.rglob("lease.json*")]
                assert not [p for p in left if "damaged" not in p.parts], f"left behind: {left}"
                print(f"survived: {label}", flush=True)
            except (AssertionError, OSError) as error:
                self.failures.append(f"{label}: {error}")
                print(f"FAILED: {label}: {error}", flush=True)
                shutil.copytree(folder, self.root / f"failed{len(self.failures)}")

    def inject(
        self, fault: str, name: str, folder: Path, processes: int, mounted: bool
    ) -> str | None:
        """Inject a fault; return what was done, None if nothing."""
        scene, rng = SCENES[name], self.rng
        if fault.startswith("SIG"):
            number = getattr(signal, fault.split()[0])
            job = scene.start(folder, processes)
            if name == "train" and fault.endswith("in save"):
                temporary = "original/checkpoints/*tmp*"
                first = max(_steps(folder), default=0) + EVERY * rng.randrange(3)
                self.wait_for(job, lambda: max(_steps(folder), default=0) >= first)
                self.wait_for(job, lambda: any(folder.glob(temporary)))
                self.wait(job, rng.uniform(0, 0.02))
            else:
                far = rng.randrange(max(1, _progress(name, self.root / "reference")))
                self.wait_for(job, lambda: _progress(name, folder) >= far)
                self.wait(job, rng.uniform(0, 0.3))
            alive = [process for process in job if process.poll() is None]
            for process in [rng.choice(alive)] if alive and " one" in fault else alive:
                process.send_signal(number)
            found = binaries.ended(job, HANG_S)
            if alive and number == signal.SIGKILL and name != "prepare":
                assert any(code for code, *_ in found), "nobody noticed a SIGKILL"
            return fault if alive else None
        if fault == "full disk":
            filler, limit = folder / "filler", rng.randrange(1, 200) * 1024
            if mounted:
                _fill(filler, leave=limit)
            small = None if mounted else _limit(min(limit, 16384))
            found = binaries.ended(scene.start(folder, processes, preexec_fn=small), HANG_S)
            filler.unlink(missing_ok=True)
            if not any(code for code, *_ in found):
                return None  # there was room
            assert any("error: " in err for _, _, err in found), found[0][2][-2000:]
            return f"full disk ({'tmpfs' if mounted else 'limit'})"
        if fault in DAMAGE:
            if len(_steps(folder)) < 2:
                job = scene.start(folder, processes)
                self.wait_for(job, lambda: len(_steps(folder)) > 1)
                for process in job:
                    process.kill()
                binaries.ended(job, HANG_S)
            DAMAGE[fault](folder / "original/checkpoints" / str(max(_steps(folder))))
            return fault
        if fault == "unreadable":
            found = folder / "raw" if name == "prepare" else folder / "data"
            ending = "*.png" if name == "prepare" else "*.array_record"
            file = rng.choice(sorted(found.rglob(ending)))
            data, how = file.read_bytes(), rng.choice(["a folder", "gone", "flipped", "truncated"])
            if name == "prepare":
                how = "a folder"  # a damaged image is no fault: it goes to the quarantine
            if how in ("a folder", "gone"):
                file.unlink()
            {"a folder": file.mkdir, "gone": lambda: None, "flipped": lambda: _flip(file),
             "truncated": lambda: _truncate(file)}[how]()  # fmt: skip
            codes = binaries.ended(scene.start(folder, processes), HANG_S)
            file.rmdir() if how == "a folder" else None
            file.write_bytes(data)
            if all(code == 0 for code, *_ in codes):  # of a shard that is not read any more
                return None
            assert any("error: " in err for _, _, err in codes), codes[0][2][-2000:]
            return f"unreadable: {how}"
        assert fault == "clock"
        (self.root / "clock").mkdir(exist_ok=True)
        (self.root / "clock/sitecustomize.py").write_text(CLOCK.format(seed=rng.random()))
        path = f"{self.root / 'clock'}:{binaries.ROOT}"
        command = [sys.executable, "-m", scene.module, *scene.flags(folder)]
        environment = os.environ | {"PYTHONPATH": path, "JAX_NUM_CPU_DEVICES": "2"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        job = [subprocess.Popen(command, env=environment, cwd=binaries.ROOT, **pipes)]
        self.wait(job, rng.uniform(0.3, 1.1) * self.seconds[name])
        for process in job:
            process.kill()
        found = binaries.ended(job, HANG_S)
        (code, _, err), *_ = found
        # orbax measures the time that a save may take with this clock.
        assert code in (0, -signal.SIGKILL) or "timed out after" in err, err[-2000:]
        for file in [path for path in folder.rglob("*") if path.is_file()]:
            moved = file.stat().st_mtime + rng.uniform(-3e8, 3e8)
            os.utime(file, (moved, moved))
        return "clock jumps"

    def wait(self, job: list[subprocess.Popen], seconds: float) -> None:
        """Wait so long, or until the process has ended."""
        end = time.monotonic() + seconds
        self.wait_for(job, lambda: time.monotonic() > end)

    def wait_for(self, job: list[subprocess.Popen], ready: Callable[[], bool]) -> None:
        """Wait until it is ready, or has ended."""
        while any(process.poll() is None for process in job) and not ready():
            time.sleep(0.001)


@contextlib.contextmanager
def _small_disk(folder: Path, wanted: bool) -> Iterator[bool]:
    """Tell whether a small file system of its own is mounted there."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    mounted = wanted and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def _fill(filler: Path, leave: int) -> None:
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**16))
        except OSError:
            pass
        file.truncate(max(0, file.tell() - leave))


def _limit(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def choose(rng: random.Random) -> tuple[str, int, list[str]]:
    """Choose the scene, the number of processes and the faults of a round."""
    name = rng.choice(["train", "train", "evaluate", "prepare"])
    processes = rng.choice([1, 2])
    kills = [f"{s} {who}" for s in ("SIGKILL", "SIGTERM") for who in ("one", "all")]
    if name == "train":
        kills += [f"{kill} in save" for kill in kills]
    other = ["full disk", "unreadable", "clock"]
    faults = [rng.choice(rng.choice([kills, other])) for _ in range(rng.randint(1, 2))]
    if name == "train" and rng.random() < 0.6:
        faults.insert(rng.randint(0, len(faults)), rng.choice(list(DAMAGE)))
    return name, processes, faults


def main(argv: list[str]) -> None:
    """Run the command."""
    given = flags.FLAGS
    os.environ.update(
        JAX_PLATFORMS="cpu",
        XLA_FLAGS="--xla_backend_optimization_level=0",
        **SYNCHRONOUS,
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.2",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="0",
    )
    root = Path(given.out or tempfile.mkdtemp(prefix="faults_")).absolute()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(root / "compiled"))
    campaign = Campaign(root, random.Random(given.seed))
    campaign.prepare()
    print("undisturbed:", {k: f"{v:.0f} s" for k, v in campaign.seconds.items()}, flush=True)
    rounds, end = 0, time.monotonic() + 60 * given.minutes
    while time.monotonic() < end:
        campaign.round(*choose(campaign.rng))
        rounds += 1
    total = sum(campaign.injected.values())
    print(f"\n{rounds} rounds, {total} faults injected, {len(campaign.failures)} rounds failed")
    for (name, fault), count in sorted(campaign.injected.items()):
        print(f"  {name:9} {fault:32} {count:3}")
    lost = campaign.lost or [0]
    print(
        f"lost work: {np.mean(lost):.1f} steps on average, {max(lost)} at most, of {STEPS}, with a "
        f"checkpoint every {EVERY}"
    )
    if campaign.failures:
        sys.exit(1)
    if not given.out:
        shutil.rmtree(root)


if __name__ == "__main__":
    flags.DEFINE_float("minutes", 10, "How long; the last round is finished.")
    flags.DEFINE_integer("seed", 0, "Of the faults; moments depend on the machine, too.")
    flags.DEFINE_string("out", None, "Folder that keeps what a failed round has left.")
    app.run(main)
