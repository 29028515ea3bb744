"""Verify a certificate, or plan one.

    python -m unlearn_jax.certify verify runs/certified/unlearned
    python -m unlearn_jax.certify plan --mechanism=output_perturbation --epsilon=1 --delta=1e-5 \\
        --radius=0.1 --parameters=1000

`verify` recomputes epsilon from the recorded arguments and checks every hash and the run's record;
it exits with 1 and the reason if anything is not as it should be. `plan` prints the noise that a
target takes, and how long it is for so many parameters, or for --config=FILE's model.
"""

import sys
from pathlib import Path

from absl import flags

from unlearn_jax import cli
from unlearn_jax.certify import plan
from unlearn_jax.config import certified
from unlearn_jax.registry import UserError

COMMANDS = ("verify", "plan")
EXAMPLE = "verify runs/certified/unlearned"
_PLAN = ("epsilon", "delta", "radius", "certifier", "steps", "step_size", "clip_norm",
         "weight_decay", "accountant")  # fmt: skip


def main_verify(workdir: Path) -> None:
    """Run `verify`."""
    from unlearn_jax.certify import stage as run
    from unlearn_jax.certify import verify
    from unlearn_jax.data import splits

    given = flags.FLAGS.original
    found = verify.verify(workdir, Path(given) if given else None)
    print(verify.report(found, len(splits.load(workdir / "split.json").train)))
    for line in run.clipping_text(run.clipped_share(workdir)):
        print(line)


def main_plan(mechanism: str, *values: object) -> None:
    """Run `plan`."""
    settings = dict(zip(_PLAN, values, strict=True))
    count = flags.FLAGS.parameters or _parameters()
    print(plan.text(plan.plan(mechanism, parameters=count, **settings), count))


def _parameters() -> int:
    """Count the parameters of --config's model that unlearning may change."""
    if flags.FLAGS.config is None:
        raise UserError("plan: expected --parameters=N, or --config=FILE to count the model's.")
    import jax

    from unlearn_jax import models
    from unlearn_jax.models.params import select

    model = models.of(flags.FLAGS.config)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(select(shapes, model.trainable)))


def main(argv: list[str]) -> None:
    """Take the command off argv and start it."""
    command = argv.pop(1) if len(argv) > 1 else ""
    if command == "verify":
        if len(argv) > 1 and not argv[1].startswith("-"):
            argv[1] = f"--workdir={argv[1]}"
        flags.DEFINE_string("original", None, "Where the original is, if not where it was.")
        cli.start(main_verify, needs=("workdir",), example=EXAMPLE)
    elif command == "plan":
        cli.define_config("Whose model's parameters are counted.")
        flags.DEFINE_string("mechanism", None, "What adds the noise.")
        flags.DEFINE_float("epsilon", None, "Target, nats.")
        flags.DEFINE_float("delta", None, "Target.")
        flags.DEFINE_float("radius", None, "C0 of the projection; of model clipping C2.")
        flags.DEFINE_enum("certifier", "retrain", certified.CERTIFIERS, "What to compare with.")
        flags.DEFINE_integer("steps", 0, "Noised steps; 0: the best number.")
        flags.DEFINE_float("step_size", 0.0, "Learning rate of noisy fine-tuning.")
        flags.DEFINE_float("clip_norm", 0.0, "Clip norm of noisy fine-tuning.")
        flags.DEFINE_float("weight_decay", 0.0, "Of noisy fine-tuning.")
        flags.DEFINE_enum("accountant", "gdp", certified.ACCOUNTANTS, "Of noisy fine-tuning.")
        flags.DEFINE_integer("parameters", 0, "How many are noised.")
        example = "plan --mechanism=output_perturbation --epsilon=1 --delta=1e-5 --radius=0.1 "
        cli.start(main_plan, needs=("mechanism", *_PLAN), example=example + "--parameters=1000")
    elif command in ("-h", "--help"):
        print(f"{__doc__}\nThe flags of each: unlearn-jax certify plan --help")
    else:
        sys.exit(f"error: expected one of {COMMANDS}, got {command!r}. For example:\n  {EXAMPLE}")


if __name__ == "__main__":
    main(sys.argv)
