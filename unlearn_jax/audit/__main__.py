"""Audit a request, or the mechanism of a certificate.

    python -m unlearn_jax.audit --config=configs/quickstart.py --workdir=runs/quickstart
    python -m unlearn_jax.audit epsilon --workdir=runs/certified/unlearned

The first writes audit.json for a request: the panel of witnesses and one conclusion, see
docs/audits.md; --fail_unless=not_refuted ends it with exit code 3 if that is another one. Its
workdir holds original/, unlearned/ and retrained/, as `pipeline` leaves them. The second writes
epsilon.json beside the certificate of a run: a self-test of the noise, and an empirical lower bound
beside the certified upper bound. It exits with 1 if the certificate is refuted.
"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from unlearn_jax import cli, distributed
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
    if sys.argv[1:2] == ["epsilon"]:
        del sys.argv[1]
        flags.DEFINE_integer("runs", 4000, "Runs of the mechanism from each of the two starts.")
        flags.DEFINE_float("significance", 1e-3, "Of the self-test, and of the lower bound.")
        needs = ("workdir", "runs", "significance")
        cli.start(main_epsilon, needs, example="epsilon --workdir=runs/certified/unlearned")
    else:
        flags.DEFINE_enum("fail_unless", None, ["not_refuted"], "Else exit with code 3.")
        cli.start(main, needs=("config", "workdir"), several=True)
