"""Try to get forgotten images back: train on retained images only, and look at the forgotten ones.

    unlearn-jax pipeline --config=quickstart --workdir=runs/quickstart
    python -m experiments.resurfacing --config=quickstart --workdir=runs/quickstart

Whoever has the unlearned model can do this without any forgotten image. If their error falls, while
that of a model retrained without them does not, they were hidden and not removed. Writes
results/resurfacing/NAME.json. A minute on two CPU cores.
"""

import platform
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

import unlearn_jax as uj
from unlearn_jax import cli, complete, files, sharding
from unlearn_jax.certify.certificate import versions
from unlearn_jax.models.distances import masked_mse

LEARNING_RATE = 3e-4  # that of the quickstart's own retain phase
MODELS = ("unlearned", "retrained")
EXAMPLE = "--config=quickstart --workdir=runs/quickstart"


def errors(request: uj.Request, model: complete.Completer) -> dict[str, dict[str, float]]:
    """Return the mean squared error on the hole, and n, of forget and unseen images."""

    def error(params, batch):
        output = request.model.generate(params, batch, jax.random.key(0))
        return masked_mse(output, batch["image"], batch["mask"])

    compiled, sets = sharding.jit_rows(error, request.mesh), {}
    for name, rows in (("forget", request.split.forget), ("holdout", request.split.audit)):
        values = request.map(compiled, rows, model.params)
        sets[name] = {"error": float(values.mean()), "n": len(rows)}
    return sets


def run(cfg: ConfigDict, workdir: Path, steps: int) -> dict[str, Any]:
    """Train unlearned and retrained model on retain rows; return errors before and after.

    Args:
      cfg: of the request in workdir.
      workdir: of a finished request; WORKDIR_resurfacing, beside it, gets the models.
      steps: of ordinary training.
    """
    cfg = ConfigDict(cfg.to_dict())  # not locked
    cfg.phases.more = uj.phase(steps=steps, optimizer={"learning_rate": LEARNING_RATE})
    cfg.stages.unlearned.phases = ("more",)
    request, aside = uj.Request(cfg), workdir.with_name(f"{workdir.name}_resurfacing")
    found: dict[str, Any] = {"steps": steps, "seed": cfg.seed, "learning_rate": LEARNING_RATE}
    found |= {"original": {"before": errors(request, uj.load_model(workdir / "original"))}}
    for name in MODELS:
        before = uj.load_model(workdir / name)
        after = request.train("unlearned", aside / name, start=before)
        found[name] = {"before": errors(request, before), "after": errors(request, after)}
    return found | {"versions": versions(), "machine": platform.machine()}


def main(cfg: ConfigDict, workdir: Path, steps: int) -> None:
    """Run the command."""
    found = run(cfg, workdir, steps)
    path = Path("results/resurfacing") / f"{cfg.name}.json"
    files.write_json(path, found)
    for name in MODELS:
        before, after = (found[name][when]["forget"]["error"] for when in ("before", "after"))
        print(f"{name}: error on forget images {before:.4f}, after {steps} steps {after:.4f}")
    print(f"Wrote {path}.")


if __name__ == "__main__":
    flags.DEFINE_integer("steps", 200, "Of ordinary training on retained images.")
    cli.start(main, needs=("config", "workdir", "steps"), example=EXAMPLE)
