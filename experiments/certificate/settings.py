"""The data, mechanisms and configs of `experiments.certificate`."""

import dataclasses
import math
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from configs import cifar10_compare
from unlearn_jax import config
from unlearn_jax.certify import bounds
from unlearn_jax.config import phase
from unlearn_jax.data import sampling, sources
from unlearn_jax.data.holdout import id_keys
from unlearn_jax.request import Request

# Training images, at most. Of "public" the vehicles: few, so that private images matter.
PARTS = {"request": 5_000, "tuning": 5_000, "public": 2_500}
PUBLIC_CLASSES = ("airplane", "automobile", "ship", "truck")
EPSILONS, DELTA, SEEDS = (8, 1, 128, 32, 2, 4, 16, 64), 1e-5, (0, 1, 2)
# Epochs from scratch; steps of training an adapter and of the repair, as shares of theirs.
EPOCHS, ADAPT, REPAIR = 12, 0.25, 0.1
SLICES = 10


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """Where noise is added, and around what.

    Attributes:
      label: in the table.
      kind: "release" (once), "noisy" (noisy clipped fine-tuning) or "clipped" (model clipping).
      radius: C0, of model clipping C2.
      trainable: regexes of the leaves that are noised.
      public: whether the centre is public weights and not the initial parameters. If not all leaves
        are noised, the original is trained from it too, and all other leaves stay public.
      certifier: what the released model is compared with.
      steps: of the noised phase.
    """

    label: str
    kind: str
    radius: float
    trainable: tuple[str, ...] = (".*",)
    public: bool = False
    certifier: str = "retrain"
    steps: int = 20

    @property
    def adapter(self) -> bool:
        """Whether only some leaves are trained, around public weights."""
        return self.trainable != (".*",)

    @property
    def world(self) -> str:
        """Mechanisms of one world have the same original and retrained models."""
        return "network" if self.trainable == (".*",) else self.trainable[0].replace("/", "_")


MECHANISMS = {
    "release": Mechanism("(a) output perturbation", "release", 0.01),
    "noisy": Mechanism("(b) noisy fine-tuning", "noisy", 0.01),
    "clipped": Mechanism("(c) model clipping", "clipped", 0.01),
    "public": Mechanism("(a) around public weights", "release", 0.01, public=True),
    "biases": Mechanism("(d) all biases", "release", 0.01, (".*/bias",), True, "reference"),
    "last_layer": Mechanism(
        "(d) last layer", "release", 0.01, ("decoder/up1/.*",), True, "reference"
    ),
}


def cut(workdir: Path, data_dir: str) -> None:
    """Cut WORKDIR/PART.npz out of the data: disjoint parts with the same share of every class."""
    if all((workdir / f"{part}.npz").exists() for part in PARTS):
        return
    name = "cifar10" if data_dir else "cifar10_sample"
    source = sources.open_source(kind="tfds", name=name, data_dir=data_dir, image_size=32)
    left = {split: np.array(rows) for split, rows in source.splits.items()}
    workdir.mkdir(parents=True, exist_ok=True)
    for number, (part, most) in enumerate(PARTS.items()):
        chosen = {}
        for split, rows in left.items():
            most = most if split == "train" else 2_500
            share = min(most, len(source.splits[split]) // 3) / len(rows)
            chosen[split] = sampling.sample_fraction(rows, source.labels, share, [number])
            left[split] = np.setdiff1d(rows, chosen[split])
        if part == "public":
            wanted = [source.class_names.index(c) for c in PUBLIC_CLASSES]
            chosen["train"] = chosen["train"][np.isin(source.labels[chosen["train"]], wanted)]
        rows = np.concatenate(list(chosen.values()))
        split = np.repeat(list(chosen), [len(r) for r in chosen.values()])
        partial = workdir / f"{part}.partial.npz"
        np.savez(partial, image=source.fetch(rows), label=source.labels[rows], split=split,
                 id=[source.ids[row] for row in rows], class_names=source.class_names)  # fmt: skip
        partial.replace(workdir / f"{part}.npz")


def base(workdir: Path, part: str, seed: int) -> ConfigDict:
    """Make the config that all runs on a part share."""
    cfg = config.default()
    cfg.name, cfg.seed, cfg.batch_size = "certificate", seed, 64
    cfg.data.kind, cfg.data.path = "arrays", str(workdir / f"{part}.npz")
    cfg.request.kind, cfg.request.fraction = "random", 0.1
    cfg.model = {"name": "autoencoder", "channels": (8, 16), "latent_dim": 256}
    with np.load(workdir / f"{part}.npz") as file:
        rows = int((file["split"] == "train").sum())
    steps = max(20, EPOCHS * rows // cfg.batch_size)
    cosine = {"learning_rate": 1e-3, "schedule": "cosine"}
    faster = {"learning_rate": 3e-3, "schedule": "cosine"}  # of few parameters
    cfg.phases = {
        "pretrain": phase(steps=steps, optimizer=cosine, probe_every=0),
        "adapt": phase(steps=round(ADAPT * steps), optimizer=faster, probe_every=0),
        "decouple": cifar10_compare.ascent(1.0),
        "nothing": phase(steps=0),
        "recover": phase(steps=round(REPAIR * steps), optimizer=cosine, probe_every=0),
    }
    cfg.phases.decouple.probe_every = 5
    cfg.stages = {
        "original": {"rows": "train", "phases": ("pretrain",), "scratch": True},
        "retrained": {"rows": "remaining", "phases": ("pretrain",), "scratch": True},
        "exact": {"rows": "remaining", "phases": ("pretrain",), "scratch": True},
        "centre": {"rows": "remaining", "phases": ("recover",), "scratch": True},
        "public": {"rows": "remaining", "phases": ("nothing",), "scratch": False},
        "decoupled": {"rows": "retain", "phases": ("decouple",), "scratch": False},
        "unnoised": {"rows": "retain", "phases": ("recover",), "scratch": False},
    }
    cfg.probe_rows, cfg.log_every = 200, 100
    cfg.checkpoint.every, cfg.checkpoint.keep = 1000, 1

    return cfg


def of_world(cfg: ConfigDict, mechanism: Mechanism) -> ConfigDict:
    """Set the mechanism's leaves, and start what is not from scratch around the world's centre."""
    cfg = cfg.copy_and_resolve_references()
    cfg.model.trainable = mechanism.trainable
    cfg.stages.centre.scratch = not mechanism.public
    if mechanism.adapter:
        cfg.phases.recover.optimizer.learning_rate = cfg.phases.adapt.optimizer.learning_rate
        for name in ("original", "retrained"):
            cfg.stages[name].update({"scratch": False, "phases": ("adapt",)})
    return cfg


def sliced(cfg: ConfigDict, path: Path) -> ConfigDict:
    """Train by slices: what exact deletion leaves, as it has the bits of a training without."""
    cfg = cfg.copy_and_resolve_references()
    cfg.data.slices.update({"count": SLICES, "file": str(path), "column": "slice"})
    cfg.phases.pretrain.optimizer.schedule = "late_cosine"
    return cfg


def plan_slices(request: Request, path: Path) -> None:
    """Write the table of the slices: the last has the images that will be asked for, and others."""
    ids, last = request.source.ids, SLICES - 1
    asked = {ids[row] for row in request.split.forget.tolist()}
    numbers = (id_keys(ids) % np.uint64(SLICES)).tolist()
    rows = zip(ids, numbers, strict=True)
    lines = [f"{id},{last if id in asked else number}\n" for id, number in rows]
    path.write_text("".join(["id,slice\n", *lines]))


def noised(cfg: ConfigDict, mechanism: Mechanism, epsilon: float, public: Path) -> ConfigDict:
    """Add a noised phase for that epsilon to the config, and stages that end with it and go on."""
    radius, steps, target = mechanism.radius, mechanism.steps, {"epsilon": epsilon, "delta": DELTA}
    distance = bounds.decoupling_sensitivity(radius, 1, 1.0, math.inf, radius, mechanism.certifier)
    # The clip norm moves the model by the radius in all steps: the horizon with least noise.
    sgd = {"name": "sgd", "learning_rate": 0.05, "clip_norm_l2": radius / (0.05 * steps)}
    if mechanism.kind == "release":
        sigma = bounds.analytic_gaussian_sigma(distance, **target)
        spec = phase(steps=0, noise={"initial_std": sigma, "radius": radius})
    elif mechanism.kind == "noisy":
        sigma = bounds.noisy_finetune_sigma(distance, steps, 0.05, sgd["clip_norm_l2"], **target)
        spec = phase(steps=steps, optimizer=sgd, noise={"std": sigma, "radius": radius})
    else:
        sigma = bounds.model_clipping_sigma(radius, steps, **target)
        spec = phase(steps=steps, optimizer=sgd, noise={"std": sigma, "model_clip": radius})
    spec.probe_every = 0
    cfg = cfg.copy_and_resolve_references()
    cfg.phases.noised = spec
    cfg.certificate.update({"delta": DELTA, "certifier": mechanism.certifier})
    cfg.certificate.centre_from = str(public) if mechanism.public else ""
    stage = {"rows": "retain", "scratch": False}
    cfg.stages.released = stage | {"phases": ("noised",)}
    cfg.stages.repaired = stage | {"phases": ("noised", "recover")}
    return cfg
