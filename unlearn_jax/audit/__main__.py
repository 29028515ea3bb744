"""Audit a request, a model of any framework, or the mechanism of a certificate.

    python -m unlearn_jax.audit --config=configs/quickstart.py --workdir=runs/quickstart
    python -m unlearn_jax.audit --candidate=my_models:unlearned --forget=DIR --unseen=DIR --out=DIR
    python -m unlearn_jax.audit epsilon --workdir=runs/certified/unlearned

The first writes audit.json for a request: the panel of witnesses and one conclusion, see
docs/audits.md; its workdir holds original/, unlearned/ and retrained/, as `pipeline` leaves them.
The second does so for Python functions, and writes a page; --candidate=… --help shows its flags.
The third writes epsilon.json beside the certificate of a run: a self-test of the noise, and an
empirical lower bound beside the certified upper bound. It exits with 1 if the certificate is
refuted. The first two end with exit code 3 if --fail_unless=not_refuted and that is not concluded.
"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from unlearn_jax import cli, distributed
from unlearn_jax.data import sizes
from unlearn_jax.registry import UserError


def main(cfg: ConfigDict, workdir: Path) -> None:
    """Run the command for a request."""
    from unlearn_jax.audit import conclusion
    from unlearn_jax.audit import run as request

    found = request.run(cfg, workdir)
    if distributed.first():
        print(found)
        print(f"Wrote {workdir / 'audit.json'}.")
    conclusion.fail_unless(flags.FLAGS.fail_unless, found)


def main_functions(candidate: str, forget: str, unseen: str, out: str) -> None:
    """Run the command for models that functions show."""
    from unlearn_jax.audit import conclusion, functions
    from unlearn_jax.report import audit_page

    of = flags.FLAGS
    size = sizes.parsed(of.image_size, "--image_size") if of.image_size else 0
    found = functions.audit_functions(
        candidate, out, forget=forget, unseen=unseen, retain=of.retain, original=of.original,
        retrained=of.retrained, image_size=size, batch_size=of.batch_size, seed=of.seed,
        task=of.config.task.to_dict() if of.config else {"name": "inpaint", "hole": of.hole},
    )  # fmt: skip
    print(found)
    print(f"Wrote {Path(out) / 'audit.json'} and {audit_page.write(out)}.")
    conclusion.fail_unless(of.fail_unless, found)


def main_epsilon(workdir: Path, runs: int, significance: float) -> None:
    """Run the command for a certificate."""
    from unlearn_jax.certify import attack

    found = attack.run(workdir, runs=runs, significance=significance)
    test, bounds, drawn = found["self_test"], found["bounds"], found["drawn"]
    noise = drawn["noise"]
    print(
        f"self-test: {'passed' if test['passed'] else 'FAILED'}; noise {noise['value']:.4f} of "
        f"what it should be ({noise['ci_low']:.4f} to {noise['ci_high']:.4f}, n = {noise['n']}), "
        f"noiseless output {drawn['distance']:.6g} from the centre, allowed {test['reach']:.6g}"
    )
    print(bounds["text"], f"Repeated: {found['repeated']}.", sep="\n")
    for kind, words in bounds["assumptions"].items():
        print(f"Assumed by the {kind} bound:", *[f"- {text}" for text in words], sep="\n")
    print(f"Wrote {workdir / attack.FILE}.")
    if bounds["refuted"] or not test["passed"]:
        raise UserError("the mechanism is not what the certificate says, see above.")


if __name__ == "__main__":
    fail_unless = ("fail_unless", None, ["not_refuted"], "Else exit with code 3.")
    if sys.argv[1:2] == ["epsilon"]:
        del sys.argv[1]
        flags.DEFINE_integer("runs", 4000, "Runs of the mechanism from each of the two starts.")
        flags.DEFINE_float("significance", 1e-3, "Of the self-test, and of the lower bound.")
        needs = ("workdir", "runs", "significance")
        cli.start(main_epsilon, needs, example="epsilon --workdir=runs/certified/unlearned")
    elif any(flag.lstrip("-").split("=")[0] == "candidate" for flag in sys.argv[1:]):
        flags.DEFINE_string("candidate", None, "PACKAGE.MODULE:NAME of the model that forgot.")
        flags.DEFINE_string("original", None, "The same of the model before.")
        flags.DEFINE_multi_string("retrained", [], "The same of models without forget images.")
        flags.DEFINE_string("forget", None, "Folder of images that are said to be forgotten.")
        flags.DEFINE_string("unseen", None, "Folder of images that no model was trained on.")
        flags.DEFINE_string("retain", "", "Folder of training images that were kept.")
        flags.DEFINE_string("out", None, "Folder of audit.json and the page.")
        flags.DEFINE_float("hole", 0.5, "Width of the centred hole, of the image's.")
        cli.define_config("Whose task has other masks than --hole.")
        flags.DEFINE_string("image_size", "", "N, or HEIGHT,WIDTH of what functions get.")
        flags.DEFINE_integer("batch_size", 32, "Of every call.", 1)
        flags.DEFINE_integer("seed", 0, "Of all randomness.", 0)
        flags.DEFINE_enum(*fail_unless)
        example = "--candidate=my_models:unlearned --forget=forget --unseen=unseen --out=runs/audit"
        cli.start(main_functions, ("candidate", "forget", "unseen", "out"), example)
    else:
        flags.DEFINE_enum(*fail_unless)
        cli.start(main, needs=("config", "workdir"), several=True)
