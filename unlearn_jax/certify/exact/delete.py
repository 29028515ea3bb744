"""Delete images exactly: replay the training from before any of them entered, without them.

    unlearn-jax delete --model=runs/original --request=ids.txt --out=runs/deleted
    unlearn-jax delete --model=runs/original --request=random --out=… --fraction=0.01

The model must have been trained with `data.slices`. --request is a list of images, or a kind of
`config.request`, whose other keys are then flags. OUT gets a model with the same
parameters, bit for bit, as one trained by the same schedule without the images from the beginning,
on a machine of the same kind; and a chain of its own, so that the next request can start from it.
--dry_run only shows the price, beside that of the config's approximate unlearning.

Whatever remembers the images must then go: the model, with all that it kept.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from unlearn_jax import checkpoint, cli, distributed, files
from unlearn_jax.certify.exact import chain
from unlearn_jax.config import identity
from unlearn_jax.data import lineage, splits
from unlearn_jax.registry import UserError
from unlearn_jax.request import Request
from unlearn_jax.training import watch
from unlearn_jax.training.watch import images_of

KINDS = ("classes", "random", "predicate")


class Price(NamedTuple):
    """What a deletion costs, in images trained on."""

    slice: int  # from whose entrance the training is replayed
    step: int
    exact: int
    approximate: int  # of the config's unlearned stage, at most
    whole: int  # training once more from the beginning

    def __str__(self) -> str:
        """Say both prices, and which one is lower."""
        shares = [f"{x:,} images trained on, {x / self.whole:.1%} of retraining"
                  for x in (self.exact, self.approximate)]  # fmt: skip
        lower = "exact" if self.exact <= self.approximate else "approximate, which proves less,"
        return (
            f"exact: replays from step {self.step:,}, where slice {self.slice} enters: {shares[0]}"
            f"\napproximate (stage 'unlearned'): at most {shares[1]}\nLower: {lower} by "
            f"{abs(self.exact - self.approximate):,}."
        )


def config_of(model: Path, request: str, changes: Mapping[str, Any] | None = None) -> ConfigDict:
    """Return the config of a deletion: the stage `retrained` of a model's config, this request.

    Args:
      model: the workdir of a model trained by slices.
      request: the path of a list of images, or a kind: "classes", "random", "predicate".
      changes: of further keys of the config's request, such as {"fraction": 0.01}.

    Raises:
      UserError: no such model, or its config has no such stage.
    """
    chain.read(model)
    cfg, _ = identity.of_run(model)
    before, after = cfg.stages[cfg.stage], cfg.stages.get("retrained")
    if not after or (after.phases, after.rows) != (before.phases, "remaining"):
        raise UserError(
            f"{model}: expected a stage 'retrained' of the phases {before.phases}, on remaining "
            "rows, for what is replayed must be what was trained."
        )
    cfg.stage = "retrained"
    given = {"kind": request} if request in KINDS else {"kind": "ids", "file": request}
    cfg.request.update({**given, **(changes or {}), "served": str(model)})
    return cfg


class Plan(NamedTuple):
    """What of a model's chain no requested image has touched."""

    head: dict[str, Any]  # of the new chain
    steps: list[int]  # whose checkpoints are copied
    price: Price


def plan(request: Request, model: Path) -> Plan:
    """Find the last checkpoint that no requested image has touched.

    Args:
      request: of `config_of`.
      model: the workdir of the model.

    Raises:
      UserError: the model was not trained on the images; others were added or changed; no
        checkpoint is left to begin from.
    """
    known, trained = chain.read(model), splits.load(model / "split.json")
    own = identity.of_run(model)[0]
    before = lineage.keys_of(trained, getattr(trained, own.stages[own.stage].rows))
    added = np.setdiff1d(lineage.keys_of(request.split, request.split.remaining), before)
    new = chain.facts(request, known["config"])
    first = chain.unchanged(known, new)
    if added.size or first == len(new["slices"]) or known["entrances"] != new["entrances"]:
        raise UserError(
            f"{model}: expected a request for images that it was trained on, and all others as "
            f"they were; there are {added.size} images that it was not trained on, and "
            f"{len(new['slices']) - first} of its slices change. Was it asked to before?"
        )
    entrances, there = known["entrances"], checkpoint.saved_steps(model / chain.FOLDER)
    first = max((s for s in range(first + 1) if entrances[s] in there), default=None)
    if first is None:
        raise UserError(
            f"{model / chain.FOLDER}: expected the checkpoints of the entrances of slices, found "
            "none of those needed. Without them only retraining is left."
        )
    steps = [step for step in sorted(there) if step <= entrances[first]]
    head = chain.head(known, first) | {"slices": new["slices"]}
    return Plan(head, steps, price(request.cfg, first, entrances))


def price(cfg: ConfigDict, first: int, entrances: Sequence[int]) -> Price:
    """Return the price of a replay from the entrance of a slice."""
    done, whole = entrances[first], images_of(cfg, cfg.stage)
    left = whole
    for name in cfg.stages[cfg.stage].phases:
        spec = cfg.phases[name]
        left -= min(max(done, 0), spec.steps) * (spec.batch_size or cfg.batch_size)
        done -= spec.steps
    return Price(first, entrances[first], left, images_of(cfg, "unlearned"), whole)


def delete(cfg: ConfigDict, model: Path, out: Path) -> dict[str, Any]:
    """Delete the images of a request from a model exactly; return the record of the new one.

    Interrupted by whatever, the same call goes on. Processes of a job call it together.

    Args:
      cfg: of `config_of`.
      model: the workdir of the model.
      out: gets the new one.

    Raises:
      UserError: see `config_of` and `plan`.
    """
    from unlearn_jax import train  # it is above this module

    request = Request(cfg, out)
    if not checkpoint.saved_steps(out):  # else it goes on there
        found = plan(request, model)
        watch.say(f"\n{found.price}")
        if distributed.first():
            copy(found, model, out)
        distributed.everywhere(True)  # the others wait for the copies
    return train.run(cfg, out, request=request)


def copy(found: Plan, model: Path, out: Path) -> None:
    """Copy what no requested image has touched, and write the chain that begins with it."""
    shutil.rmtree(out / chain.FOLDER, ignore_errors=True)
    for step in found.steps:
        inside = Path(chain.FOLDER, checkpoint.DIRECTORY, str(step))
        shutil.copytree(model / inside, out / inside)
    files.write_sealed(out / chain.FILE, found.head, chain.FORMAT)


def main(model: str, request: str, out: str, dry_run: bool) -> None:
    """Run the command."""
    keys = {key: getattr(flags.FLAGS, key) for key in ("classes", "fraction", "seed", "per_class")}
    changes = {key: value for key, value in keys.items() if value is not None}
    changes |= {"classes": tuple(keys["classes"])} if keys["classes"] else {}
    cfg = config_of(Path(model), request, changes)
    if dry_run:
        print(plan(Request(cfg), Path(model)).price)
        return
    meta = delete(cfg, Path(model), Path(out))
    if distributed.first():
        print(f"The model is in {out}, after {meta['step']:,} steps. What remembers the images "
              f"is in {model}: delete it, and every copy of it.")  # fmt: skip


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "Workdir of a model trained by slices.")
    flags.DEFINE_string("request", None, f"A list of images, or a kind: {', '.join(KINDS)}.")
    flags.DEFINE_string("out", None, "Folder for the new model: made, or resumed.")
    flags.DEFINE_bool("dry_run", False, "Only show the price.")
    flags.DEFINE_list("classes", None, "Of a request for classes.")
    flags.DEFINE_float("fraction", None, "Of a random request: share of each class.")
    flags.DEFINE_integer("seed", None, "Of a random request.")
    flags.DEFINE_integer("per_class", None, "At most so many of each class.")
    cli.start(
        main,
        needs=("model", "request", "out", "dry_run"),
        example="--model=runs/original --request=ids.txt --out=runs/deleted",
        several=True,
    )
