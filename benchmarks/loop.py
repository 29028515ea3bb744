"""Where the time of the training loop goes, and whether the input keeps up.

python -m benchmarks.loop [--config=configs/quickstart.py] [--steps=300]

Trains the first phase of the config's original for some steps and prints one line of JSON: medians
over the intervals of the seconds per step by part (`metrics.IntervalLog`), checkpoints, which are
due three times, as their mean. Ends with exit code 1 if waiting for data takes more than 5 % of the
step.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

from absl import app, flags, logging

from unlearn_jax import cli, files, train
from unlearn_jax.training import log as metrics

CONFIG = cli.define_config("What to train.", default="quickstart")
STEPS = flags.DEFINE_integer("steps", 300, "How many, in 15 intervals.", lower_bound=15)
MOST_WAITING = 0.05  # of a step


def measure(config, steps: int, workdir: Path) -> dict[str, float]:
    """Measure seconds per step, by part; the first interval is not counted."""
    config.stage = "original"
    stage = config.stages.original
    stage.phases = stage.phases[:1]
    config.phases[stage.phases[0]].update({"steps": steps, "probe_every": 0})
    config.log_every, config.checkpoint.every = steps // 15, steps // 3 - 1
    train.run(config, workdir)
    lines = files.read_jsonl(workdir / "metrics.jsonl")[1:]
    parts = {part: [line[f"{part}_s"] for line in lines] for part in metrics.PARTS}
    found = {part: statistics.median(values) for part, values in parts.items()}
    return found | {"save": statistics.mean(parts["save"])}


def main(argv: list[str]) -> None:
    """Measure, print and judge."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments {argv[1:]}; options start with --.")
    logging.set_verbosity(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(CONFIG.value, STEPS.value, Path(folder) / "run")
    step = sum(found.values())
    waiting = found["data_wait"] / step
    seconds = {f"{part}_s": float(f"{value:.4g}") for part, value in found.items()}
    print(json.dumps(seconds | {"data_wait_share": round(waiting, 4)}))
    if waiting > MOST_WAITING:
        sys.exit(f"error: the step waits for data {waiting:.1%} of its time; expected at most 5 %.")


if __name__ == "__main__":
    cli.keep_freed_memory()
    app.run(main)
