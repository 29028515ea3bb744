"""The whole request in one command: train, unlearn, retrain to compare, audit, evaluate, report.

    python -m unlearn_jax.pipeline --config=configs/quickstart.py --workdir=runs/quickstart

Every part can be run alone (`train`, `audit`, `evaluate`, `report`). What has finished is not done
again: given once more, the command resumes where it was interrupted. With
--config.init_from=WORKDIR the original is taken from there instead of being trained. --dry_run
shows what the request means and trains nothing, see `request`. A certificate
is verified and its mechanism attacked; the report says how that went. Several processes share the
work of every part, see `distributed`. --fail_unless=not_refuted ends it with exit code 3 if the
audit concludes otherwise.
"""

import contextlib
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from unlearn_jax import cli, distributed, train
from unlearn_jax.audit import conclusion, limits
from unlearn_jax.audit import run as request
from unlearn_jax.certify import attack, certificate
from unlearn_jax.config.validation import validate
from unlearn_jax.evaluate import results
from unlearn_jax.report import issue, preview, receipt
from unlearn_jax.report import results_page as report
from unlearn_jax.request import Request, original_workdir
from unlearn_jax.training import lease
from unlearn_jax.training.watch import images_of, say


@lease.exclusively()
def run(cfg: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Run a whole request; return workdir/results.json; workdir/report.html shows it.

    Args:
      cfg: the config; its `stage` is not used.
      workdir: gets original/, unlearned/, retrained/, shadow1/ (for the audits), audit.json,
        results.json, report.html and receipt.json; unlearned/ gets epsilon.json if it has a
        certificate.
    """
    validate(cfg)
    receipt.check_open(workdir)
    original = original_workdir(cfg, workdir)
    split = Request(cfg, workdir).split  # what is wrong with the request ends it here
    retrain = len(split.remaining) > 0  # without images to keep there is no yardstick
    reason = limits.lacking(split)
    stages = ["unlearned"] if cfg.init_from else ["original", "unlearned"]
    stages += ["retrained"] if retrain else []
    later = 0 if reason else cfg.audit.shadows * images_of(cfg, "retrained")
    later += sum(images_of(cfg, stage) for stage in stages)
    for stage in stages:
        later -= images_of(cfg, stage)
        part = cfg.copy_and_resolve_references()
        part.stage, part.init_from = stage, str(original) if stage == "unlearned" else ""
        if stage == "retrained":
            part.request.served = cfg.request.served or cfg.init_from
        train.run(part, workdir / stage, later=later)
    if reason:
        print(f"No audits: {reason}.", file=sys.stderr)
    else:
        say("audit")
        request.run(cfg, workdir)
    if distributed.first():
        _attack(workdir / "unlearned")
    say("evaluate")
    found = results.run(cfg, workdir)
    issue.write(workdir)  # and the page
    return found


def _attack(unlearned: Path) -> None:
    """Attack the mechanism of the certificate that is there, if any, unless that was done."""
    if (unlearned / certificate.FILE).exists():
        try:
            attack.read(unlearned)
        except ValueError:
            with contextlib.suppress(ValueError):  # an altered certificate: the report says so
                attack.run(unlearned)


def main(cfg: ConfigDict, workdir: Path) -> None:
    """Run the command."""
    if flags.FLAGS.dry_run:
        return preview.main(cfg, str(workdir))
    found = run(cfg, workdir)
    if distributed.first():
        print(report.summary(found), f"Report: {workdir / 'report.html'}", sep="\n\n")
    conclusion.fail_unless(flags.FLAGS.fail_unless, found["audit"])


if __name__ == "__main__":
    flags.DEFINE_bool(
        "dry_run", False, "Show what the request means, see `request`; train nothing."
    )
    flags.DEFINE_enum("fail_unless", None, ["not_refuted"], "Else exit with code 3.")
    cli.start(main, needs=("config", "workdir"), several=True)
