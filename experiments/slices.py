"""What training by slices costs in quality: errors beside those of training without slices.

    python -m experiments.slices --config=quickstart --workdir=runs/slices --seeds=3 \\
        --config.data.slices.count=10 --config.phases.pretrain.optimizer.schedule=late_cosine

Trains the config's original with slices and without, in the same number of steps, once for every
seed, and prints the mean error in the hole of unseen images (the whole holdout), of those whose
class the newest slice has, of the newest slice and of all training images. Writes
results/slices/NAME.json.
"""

import json
import platform
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from unlearn_jax import cli, files
from unlearn_jax.certify.certificate import versions
from unlearn_jax.certify.exact import plan


def main(cfg: ConfigDict, workdir: Path, schedule: str, seeds: int) -> None:
    """Run the command."""
    found = []
    for seed in range(seeds):
        cfg.seed = seed
        found.append({"seed": seed, **plan.compare(cfg, workdir / str(seed), schedule)})
        print(json.dumps(found[-1]), flush=True)
    for name in plan.MEASURED:
        ratios = [of["sliced"][name] / of["unsliced"][name] for of in found]
        print(f"{name}: with / without slices {np.mean(ratios):.3f}, by seed", np.round(ratios, 3))
    about = {"config": cfg.to_dict(), "machine": platform.machine(), "versions": versions()}
    files.write_json(Path("results/slices") / f"{cfg.name}.json", {"runs": found, **about})


if __name__ == "__main__":
    flags.DEFINE_string("schedule", "", "Of the learning rate without slices, if another.")
    flags.DEFINE_integer("seeds", 1, "How many.")
    cli.start(main, needs=("config", "workdir", "schedule", "seeds"))
