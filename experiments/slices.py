"""What training by slices costs in quality: errors beside those of unsliced training.

    python -m experiments.slices --config=quickstart --workdir=runs/slices \\
        --config.data.slices.count=10 --config.phases.pretrain.optimizer.schedule=late_cosine

Trains the config's original with slices, and without, in the same number of steps, each once for
every seed, and prints the mean error in the hole of unseen images (the whole holdout), of the
newest slice's and of all training images. --schedule is that of the training without slices; it
may be the one that is best for it.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from unlearn_jax import checkpoint, cli, files, sharding, train
from unlearn_jax.data import slices
from unlearn_jax.request import Request


def errors(cfg: ConfigDict, workdir: Path, spec: ConfigDict) -> dict[str, float]:
    """Return the mean loss of each set, of the model in a workdir."""
    request = Request(cfg, workdir)
    params, _ = checkpoint.load_params(workdir, request.like())
    train_rows = request.split.train
    of = slices.assign(request.source, train_rows, spec)
    sets = {
        "unseen": np.union1d(request.split.calibration, request.split.audit),
        "newest": train_rows[of == spec.count - 1],
        "seen": train_rows,
    }
    import jax

    loss = sharding.jit_rows(request.model.loss, request.mesh)
    key = jax.random.key(0)
    found = {}
    for name, rows in sets.items():
        values = request.map(lambda batch: loss(params, batch, key), rows)
        found[name], found[f"n_{name}"] = float(np.mean(values)), len(rows)
    return found


def main(cfg: ConfigDict, workdir: Path, schedule: str, seeds: int) -> None:
    """Run the command."""
    spec, lines = cfg.data.slices, []
    for seed in range(seeds):
        for kind in ("sliced", "unsliced"):
            part = cfg.copy_and_resolve_references()
            part.seed = seed
            if kind == "unsliced":
                part.data.slices.count = 0
                for phase in part.stages.original.phases:
                    part.phases[phase].optimizer.schedule = schedule
            place = workdir / f"{kind}-{seed}"
            train.run(part, place)
            lines.append({"kind": kind, "seed": seed, **errors(part, place, spec)})
            print(json.dumps(lines[-1]), flush=True)
    for name in ("unseen", "newest", "seen"):
        of = {
            kind: [x[name] for x in lines if x["kind"] == kind] for kind in ("sliced", "unsliced")
        }
        ratios = [a / b for a, b in zip(of["sliced"], of["unsliced"], strict=True)]
        print(f"{name}: sliced / unsliced {np.mean(ratios):.3f}, of each seed", np.round(ratios, 3))
    files.write_json(workdir / "slices.json", lines)


if __name__ == "__main__":
    flags.DEFINE_string("schedule", "cosine", "Of the learning rate, without slices.")
    flags.DEFINE_integer("seeds", 1, "How many.")
    cli.start(main, needs=("config", "workdir", "schedule", "seeds"))
