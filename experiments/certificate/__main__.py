"""What a certificate costs: epsilon -> error on unseen images -> distance from retraining.

python -m experiments.certificate --workdir=runs/certificate --data_dir=DIR [--minutes=9]

DIR is a tfds data directory with cifar10; without it, the bundled sample. Every point is a run of
its own, WORKDIR/request/MECHANISM/EPSILON/SEED/{released,repaired}: what is finished is not done
again, and after --minutes no new run is begun, so that the same command goes on later. Both start
from the ascended model of their seed, so that the ascent is done once. `released` ends with the
noised phase, `repaired` goes on with free fine-tuning on retain rows, which costs no epsilon. Every
certificate is verified before its point counts. Writes points.json, table.md and curve.png into
WORKDIR; docs/certificate.md shows them.

CIFAR-10 is cut into three disjoint parts: `request` and `tuning` of 5,000 training images each, and
`public`, 4,000 images of vehicles. On `tuning` the radii were chosen (--part=tuning
--radius=R), so that no setting has seen the forget set.
"""

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments.certificate import scores
from experiments.certificate import table as certificate_table
from experiments.certificate.settings import (
    DELTA,
    EPSILONS,
    MECHANISMS,
    SEEDS,
    Mechanism,
    base,
    cut,
    noised,
    of_world,
    plan_slices,
    sliced,
)
from unlearn_jax import checkpoint, cli, train
from unlearn_jax.certify import verify
from unlearn_jax.evaluate import results
from unlearn_jax.models.distances import masked_mse
from unlearn_jax.models.params import select
from unlearn_jax.request import Request

COMMAND = "python -m experiments.certificate --workdir=runs/certificate --data_dir=DIR"
SETS = ("forget", "holdout", "retain")
SHARED = ("original", "decoupled", "unnoised", "retrained", "centre", "public", "exact")


def make_measure(request: Request) -> Callable[[Any], dict[str, np.ndarray]]:
    """Make a function params -> {"error/SET" [n]}, mean squared errors on the hole."""
    split, model = request.split, request.model
    rows = {"forget": split.forget, "retain": split.remaining}
    rows["holdout"] = np.union1d(split.calibration, split.audit)
    kept = np.random.default_rng(0).permutation(rows["retain"])[: len(split.forget)]
    rows["retain"] = np.sort(kept)

    @jax.jit
    def errors(params, batch):
        output = model.generate(params, batch, jax.random.key(0))
        return masked_mse(output, batch["image"], batch["mask"])

    def measure(params):
        return {
            f"error/{name}": request.map(errors, rows[name], params, batch_size=512, seed=0)
            for name in SETS
        }

    return measure


class Bench:
    """What all runs of one part share: folders, the public weights, one compiled measurement."""

    def __init__(self, workdir: Path, part: str) -> None:
        self.workdir, self.part, self.public = workdir, part, workdir / "public"
        if not (self.public / checkpoint.DIRECTORY).exists():
            cfg = base(workdir, "public", 0)
            train.run(cfg, workdir / "public_training")
            params, _ = checkpoint.load_params(workdir / "public_training", Request(cfg).like())
            # As an outsider gets them: weights without the record of another data set's training.
            past = {"requests": [], "claim": "experiments.certificate"}
            checkpoint.save_params(self.public, params, served=past)
        self.request = Request(base(workdir, part, 0))
        self.slices = workdir / f"{part}_slices.csv"
        plan_slices(self.request, self.slices)
        self.measure = make_measure(self.request)

    def of(self, cfg: ConfigDict, stage: str, start: Path | None, folder: Path) -> dict[str, Any]:
        """Make the record of a run: trained, verified and measured unless that was done before."""
        path = folder / "record.json"
        if path.exists():
            return json.loads(path.read_text())
        cfg = cfg.copy_and_resolve_references()
        cfg.stage, cfg.init_from = stage, str(start) if start else ""
        meta = train.run(cfg, folder)
        params, _ = checkpoint.load_params(folder, self.request.like())
        errors = self.measure(params)
        np.savez_compressed(folder / "errors.npz", **errors)
        record: dict[str, Any] = {"stage": stage, "seed": cfg.seed, "certificate": None}
        record |= {key: meta[key] for key in ("step", "examples", "flops", "wall_s", "compile_s")}
        if (folder / "certificate.json").exists():
            found = dataclasses.asdict(verify.verify(folder))  # raises unless it passes
            record["certificate"] = {k: v for k, v in found.items() if k != "assumptions"}
        partial = folder / "record.partial"
        partial.write_text(json.dumps(record, indent=1))
        partial.replace(path)
        return record

    def folder(self, mechanism: Mechanism) -> Path:
        """Name the folder of the models of the mechanism's world."""
        return self.workdir / self.part / mechanism.world

    def shared(self, mechanism: Mechanism, seed: int) -> Iterator[tuple[str, Path]]:
        """Yield (stage, folder) of the models that a world's mechanisms share, in making order."""
        cfg = of_world(base(self.workdir, self.part, seed), mechanism)
        root = self.folder(mechanism)
        first = self.public if mechanism.adapter else None
        start = {"decoupled": root / "original" / str(seed)}
        start |= {"unnoised": root / "decoupled" / str(seed)}
        start |= {"centre": self.public if mechanism.public else None, "public": self.public}
        for stage in SHARED if self.part == "request" else SHARED[:2]:
            if stage == "exact" and mechanism.adapter:
                continue  # slices are for training from scratch
            name = f"centre_{'public' if mechanism.public else 'initial'}"
            folder = root / (name if stage == "centre" else stage) / str(seed)
            of = sliced(cfg, self.slices) if stage == "exact" else cfg
            self.of(of, stage, start.get(stage, first), folder)
            yield stage, folder

    def points(
        self, name: str, mechanism: Mechanism, epsilon: str, seed: int
    ) -> Iterator[tuple[str, Path]]:
        """Yield (stage, folder) of the two runs of a point, in making order."""
        cfg = of_world(base(self.workdir, self.part, seed), mechanism)
        cfg = noised(cfg, mechanism, float(epsilon), self.public)
        start = self.folder(mechanism) / "decoupled" / str(seed)
        for stage in ("released", "repaired"):
            folder = self.workdir / self.part / name / epsilon / str(seed) / stage
            self.of(cfg, stage, start, folder)
            yield stage, folder

    def distances(self) -> dict[str, dict[str, float]]:
        """Compute {mechanism: {seed: |decoupled - centre|}}, L2, of the noised leaves."""
        found: dict[str, dict[str, float]] = {}
        like, model = self.request.like(), self.request.model
        for name, mechanism in MECHANISMS.items():
            for folder in sorted((self.folder(mechanism) / "decoupled").glob("*")):
                start, _ = checkpoint.load_params(folder, like)
                if mechanism.public:
                    centre, _ = checkpoint.load_params(self.public, like)
                else:
                    centre = model.init(jax.random.split(jax.random.key(int(folder.name)), 3)[0])
                pair = (select(tree, mechanism.trainable) for tree in (start, centre))
                length = optax.tree.norm(jax.tree.map(jnp.subtract, *pair))
                found.setdefault(name, {})[folder.name] = float(length)
        return found


def collect(workdir: Path, bench: Bench) -> dict[str, Any]:
    """Collect points.json: every finished run with its errors, audits, costs and certificate."""
    runs: dict[tuple[str, str, str, str], Path] = {}  # (world, name, epsilon, seed) -> folder
    for path in sorted((workdir / bench.part).glob("**/record.json")):
        *name, last = path.parent.relative_to(workdir / bench.part).parts
        if name[0] in MECHANISMS:
            mechanism, epsilon, seed = name
            key = (MECHANISMS[mechanism].world, f"{mechanism}, {last}", epsilon, seed)
        else:
            key = (*name, "", last)
        runs[key] = path.parent

    def errors(key):
        with np.load(runs[key] / "errors.npz") as file:
            return dict(file)

    def record(key):
        return json.loads((runs[key] / "record.json").read_text())

    models: dict[str, Any] = {}
    for key in tqdm(runs, desc="audit", unit="run", dynamic_ncols=True):
        world, name, epsilon, seed = key
        ours, made = errors(key), record(key)
        others = [k for k in runs if k[:3] == (world, "retrained", "") and k[3] != seed]
        found = scores.audits(ours, errors(others[0]) if others else None)
        full = f"{world}: {name}" + (f", {epsilon}" if epsilon else "")
        model = models.setdefault(full, {"world": world, "name": name, "seeds": {}})
        cost = {k: made[k] for k in ("step", "examples", "flops", "wall_s", "compile_s")}
        spent = made["flops"]
        if epsilon or name == "unnoised":
            spent += record((world, "decoupled", "", seed))["flops"]
        cost["flops_fraction"] = spent / record(("network", "retrained", "", seed))["flops"]
        if name == "exact":  # replayed from where the last slice enters
            cost["flops_fraction"] *= bench.request.cfg.data.slices.last
        if epsilon:
            model |= {"mechanism": name.split(", ")[0], "target_epsilon": float(epsilon)}
        model["seeds"][seed] = {
            "errors": {s: float(ours[f"error/{s}"].mean()) for s in SETS},
            "audits": {k: {"value": value} for k, value in found.items()},
            "utility": {
                f"{s}_error": {"value": float(ours[f"error/{s}"].mean())}
                for s in ("retain", "holdout")
            },
            "cost": cost,
            "certificate": made["certificate"],
        }
    about = results.provenance(bench.request.cfg, bench.request.split)
    return {
        "command": COMMAND,
        **{key: about[key] for key in ("created", "versions", "hardware", "split")},
        "n": {s: len(errors(next(iter(runs)))[f"error/{s}"]) for s in SETS},
        "mechanisms": {k: dataclasses.asdict(m) for k, m in MECHANISMS.items()},
        "audits": scores.AUDITS,
        "utility": scores.UTILITY,
        "confidence": 0.95,
        "delta": DELTA,
        "distances": bench.distances(),
        "models": models,
    }


def main(workdir: Path) -> None:
    """Make what is missing, until the time is up, and write what there is."""
    flag, began = flags.FLAGS, time.monotonic()
    jax.config.update("jax_compilation_cache_dir", str((workdir / "compiled").absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    cut(workdir, flag.data_dir)
    bench = Bench(workdir, flag.part)
    chosen = {name: MECHANISMS[name] for name in flag.mechanisms}
    if flag.radius:
        chosen = {
            f"{name}_{flag.radius:g}": dataclasses.replace(m, radius=flag.radius)
            for name, m in chosen.items()
        }
    seeds = list(map(int, flag.seeds))
    todo = [bench.shared(m, seed) for seed in seeds for m in chosen.values()]
    todo += [
        bench.points(name, m, epsilon, seed)
        for epsilon in flag.epsilons for seed in seeds for name, m in chosen.items()
    ]  # fmt: skip
    for stage, folder in itertools.chain.from_iterable(todo):
        if flag.part == "tuning":
            with np.load(folder / "errors.npz") as file:
                print(folder, stage, {s: round(float(file[f"error/{s}"].mean()), 4) for s in SETS})
        if time.monotonic() - began > 60 * flag.minutes:
            print("The time is up; the same command goes on.")
            return
    if flag.part == "tuning":
        return
    found = collect(workdir, bench)
    partial = workdir / "points.partial"
    partial.write_text(json.dumps(found, indent=1))
    partial.replace(workdir / "points.json")
    certificate_table.write(workdir)
    print(certificate_table.markdown(found))


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", "", "tfds data directory with cifar10; none: the sample.")
    flags.DEFINE_float("minutes", math.inf, "Begin no new run after so many.")
    flags.DEFINE_enum("part", "request", ("request", "tuning"), "Of the data.")
    flags.DEFINE_float("radius", 0, "Of all mechanisms, instead of their own.")
    flags.DEFINE_list("mechanisms", list(MECHANISMS), "Which.")
    flags.DEFINE_list("epsilons", list(map(str, EPSILONS)), "Targets.")
    flags.DEFINE_list("seeds", list(map(str, SEEDS)), "Of the models; the noise has none.")
    cli.start(main, needs=("workdir",), example="--workdir=runs/certificate")
