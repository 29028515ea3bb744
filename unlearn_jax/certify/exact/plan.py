"""Plan for deletion before training: what a request will cost, what is kept on disk, and quality.

    unlearn-jax plan-deletion --config=quickstart --config.data.slices.count=10 --images=1,10,100
    unlearn-jax plan-deletion --config=quickstart --config.data.slices.count=10 --measure=100

The cost of a request is the share of the training that is replayed: from the entrance of the first
slice that has one of its images. `uniform`: any image is as likely to be asked for as any other;
`recent`: one of a slice twice as likely as one of the slice before. --measure trains a few steps
with slices and without, and compares the errors.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from unlearn_jax import checkpoint, cli, sharding
from unlearn_jax.certify.exact import delete
from unlearn_jax.data import slices
from unlearn_jax.registry import UserError
from unlearn_jax.request import Request
from unlearn_jax.training.phases import make_phases

COUNTS = (2, 5, 10, 20, 50)
MEASURED = ("unseen", "classes", "newest", "seen")  # of which images `errors` are
RECENT = 2.0  # how much likelier an image is asked for than one of the slice before


def expected(costs: Sequence[float], weights: Sequence[int | float], images: int) -> float:
    """Return the expected cost of a request for images, each of a slice drawn by these weights.

    Args:
      costs: of a request whose first touched slice is this one; shares of the training.
      weights: of the slices, in any unit.
      images: of the request, drawn with replacement.

    >>> expected([1.0, 0.5], [1, 1], 1)
    0.75
    """
    later = np.cumsum(np.asarray(weights, float)[::-1])[::-1] / np.sum(weights)
    none_before = np.append(later**images, 0.0)  # that no image is of an earlier slice
    return float(np.sum((none_before[:-1] - none_before[1:]) * np.asarray(costs)))


def plan(request: Request, images: Sequence[int]) -> dict[str, Any]:
    """Return what deletions from a model of this config will cost.

    {"bytes": of one checkpoint, "slices": of each {"n", "step", "cost"}, "expected": by the number
    of images {"uniform", "recent"}, "counts": by other numbers of slices of one size the same for a
    single image, and "gigabytes"}.

    Args:
      request: its stage is from scratch, and its config has slices.
      images: of requests.
    """
    cfg = request.cfg
    rows = getattr(request.split, cfg.stages[cfg.stage].rows)
    count, last = cfg.data.slices.count, cfg.data.slices.last
    sizes = np.bincount(slices.assign(request.source, rows, cfg.data.slices), minlength=count)
    params = request.like()
    phases = make_phases(request, params, jax.eval_shape(lambda: jax.random.key(0)))
    states = [sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(phase.shapes.opt_state))
              for phase in phases]  # fmt: skip
    one = max(states) + sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))

    def costs(count: int) -> tuple[list[int], list[float]]:
        steps = slices.entrances(count, slices.steps_of(cfg), last)
        of = (delete.price(cfg, s, steps) for s in range(count))
        return steps, [price.exact / price.whole for price in of]

    def by(n: int, sizes: Sequence[int], cost: Sequence[float]) -> dict[str, float]:
        recent = (RECENT ** np.arange(len(cost)) * np.asarray(sizes)).tolist()
        return {"uniform": expected(cost, sizes, n), "recent": expected(cost, recent, n)}

    steps, cost = costs(count)
    others = {
        n: by(1, [1] * n, costs(n)[1]) | {"gigabytes": n * one / 1e9}
        for n in COUNTS
        if len({*costs(n)[0]}) == n
    }
    return {
        "bytes": one,
        "slices": [{"n": int(sizes[s]), "step": steps[s], "cost": cost[s]} for s in range(count)],
        "expected": {n: by(n, sizes.tolist(), cost) for n in images},
        "counts": others,
    }


def text(found: dict[str, Any]) -> str:
    """Write a plan as a table."""
    lines = ["slice  images  enters at step  replayed of the training"]
    lines += [f"{s:5}{of['n']:8,}{of['step']:16,}{of['cost']:26.1%}"
              for s, of in enumerate(found["slices"])]  # fmt: skip
    lines += ["", "expected cost of a request", "images  uniform  recent-first"]
    lines += [f"{n:6,}{of['uniform']:9.1%}{of['recent']:14.1%}"
              for n, of in found["expected"].items()]  # fmt: skip
    n, one = len(found["slices"]), found["bytes"]
    disk = f"disk: {n} checkpoints of {one / 1e6:,.1f} MB, {n * one / 1e9:,.3g} GB in all"
    lines += ["", disk, "", "other numbers of slices, of equal size: a single image"]
    lines += ["slices  uniform  recent-first      GB"]
    lines += [f"{n:6}{of['uniform']:9.1%}{of['recent']:14.1%}{of['gigabytes']:8.3g}"
              for n, of in found["counts"].items()]  # fmt: skip
    return "\n".join(lines)


def errors(cfg: ConfigDict, workdir: Path, spec: ConfigDict) -> dict[str, float]:
    """Return a trained model's mean loss on unseen images, on the newest slice, on all it has seen.

    "classes" is of those unseen images whose class the newest slice has. With the number of images
    of each as n_unseen, n_classes, n_newest, n_seen.

    Args:
      cfg: of the model.
      workdir: where it is.
      spec: of the slices, of which it may know nothing.
    """
    request = Request(cfg, workdir)
    params, _ = checkpoint.load_params(workdir, request.like())
    seen = getattr(request.split, cfg.stages[cfg.stage].rows)
    newest = seen[slices.assign(request.source, seen, spec) == spec.count - 1]
    unseen = np.union1d(request.split.calibration, request.split.audit)
    labels = request.source.labels
    alike = unseen[np.isin(labels[unseen], labels[newest])]
    loss, key = sharding.jit_rows(request.model.loss, request.mesh), jax.random.key(0)
    found = {}
    for name, rows in zip(MEASURED, (unseen, alike, newest, seen), strict=True):
        values = request.map(lambda batch: loss(params, batch, key), rows) if len(rows) else [0.0]
        found |= {name: float(np.mean(values)), f"n_{name}": len(rows)}
    return found


def compare(cfg: ConfigDict, workdir: Path, schedule: str = "") -> dict[str, dict[str, float]]:
    """Train with slices and without, in as many steps; return the `errors` of both.

    Args:
      cfg: with slices.
      workdir: gets sliced/ and unsliced/.
      schedule: of the learning rate of the second; "": the same.
    """
    from unlearn_jax import train  # it is above this module

    found = {}
    for name in ("sliced", "unsliced"):
        part = cfg.copy_and_resolve_references()
        if name == "unsliced":
            part.data.slices.count = 0
            for phase in part.stages[part.stage].phases if schedule else ():
                part.phases[phase].optimizer.schedule = schedule
        train.run(part, workdir / name)
        found[name] = errors(part, workdir / name, cfg.data.slices)
    return found


def main(cfg: ConfigDict, images: Sequence[str], measure: int) -> None:
    """Run the command."""
    if not cfg.data.slices.count:
        raise UserError("plan-deletion: expected slices; set --config.data.slices.count=10.")
    if not all(n.isdecimal() and int(n) > 0 for n in images):
        raise UserError(f"--images: expected numbers of images, as 1,10,100; got {images}.")
    print(text(plan(Request(cfg), [int(n) for n in images])))
    if not measure:
        return
    for name in cfg.stages[cfg.stage].phases:
        cfg.phases[name].steps = min(measure, cfg.phases[name].steps)
    with tempfile.TemporaryDirectory() as folder:
        found = compare(cfg, Path(folder))
    print(
        f"\nmean loss after {slices.steps_of(cfg):,} steps, seed {cfg.seed}: with slices / without"
    )
    for name in MEASURED:
        a, b = (found[kind][name] for kind in ("sliced", "unsliced"))
        print(f"{name:7} {a:.4g} / {b:.4g} = {a / b:.3f} (n = {found['sliced'][f'n_{name}']:,})")


if __name__ == "__main__":
    flags.DEFINE_list("images", ["1", "10", "100"], "How many images requests are for.")
    flags.DEFINE_integer("measure", 0, "Steps of a small run with slices and one without; 0: none.")
    cli.start(main, needs=("config", "images", "measure"), example="--config=quickstart")
