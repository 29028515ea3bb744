"""Verify the workdir of a request against its receipt, which may be somebody else's.

    unlearn-jax verify runs/quickstart
    unlearn-jax verify runs/deleted --replay=all   # or a number of segments, drawn at random

Every file must be the one that the receipt lists, none may be missing or new, what had to be
deleted must be gone, and the receipt must say what the files say: sets, audit, parameters. A
certificate is verified, too, as by `certify verify`. A model trained by slices is verified by its
chain instead, see `exact.verify`. Exit code 0: all is well.

**Guarantee**: nothing is imported or executed, no link is followed, and nothing is opened but
regular files of the folder, and public weights that a certificate names. Not covered: who wrote the
receipt; compare its sha256 with that of the signed page.
"""

import os
import sys
from pathlib import Path
from typing import Any

from absl import flags

from unlearn_jax import cli, distributed, registry
from unlearn_jax.certify import certificate
from unlearn_jax.certify import verify as certified
from unlearn_jax.certify.exact import chain
from unlearn_jax.certify.exact import verify as exact
from unlearn_jax.registry import DamagedError, UserError
from unlearn_jax.report import issue, receipt
from unlearn_jax.report.receipt import RELEASED


@registry.of_record()
def verify(workdir: Path) -> dict[str, Any]:
    """Return the receipt of a workdir in which all is as it says.

    Raises:
      UserError: there is no receipt, or something that had to be deleted is there.
      DamagedError: anything else is not as it should be; all of it is listed.
    """
    if not os.path.lexists(workdir / receipt.FILE):
        raise UserError(
            f"{workdir}: expected a workdir with {receipt.FILE}, there is none. For a certificate "
            f"alone: unlearn-jax certify verify {workdir}"
        )
    try:
        known = receipt.read(workdir)
        wrong, left = _differences(workdir, known)
        wrong += [] if wrong else _contradictions(workdir, known)
    except Exception as error:  # whatever is wrong with files of others
        raise DamagedError(f"{workdir}: {error or type(error).__name__}") from error
    if found := sorted(wrong)[:30] + left:
        text = "\n  ".join([f"{workdir} is not as its receipt says:", *found])
        raise (DamagedError if wrong else UserError)(text)
    return known


def _differences(workdir: Path, known: dict[str, Any]) -> tuple[list[str], list[str]]:
    """List which files are not those of the receipt, and what had to be deleted and is there."""
    listed, (present, odd) = known["files"], receipt.walk(workdir)
    must_go = {of["path"]: of for of in [*known["delete"], *receipt.to_delete(present)]}
    still = {path: [name for name in present if receipt.under(name, [of])]
             for path, of in must_go.items()}  # fmt: skip
    new = present.keys() - listed.keys() - set().union(*still.values())
    wrong = [f"{name}: a link, or no regular file" for name in odd]
    wrong += [f"{name}: missing" for name in listed.keys() - present.keys()
              if not receipt.under(name, known["delete"])]  # fmt: skip
    wrong += [f"{name}: not on the receipt" for name in new]
    for name in present.keys() & listed.keys():
        if present[name] != listed[name]["bytes"]:
            wrong.append(f"{name}: {present[name]} bytes, on the receipt {listed[name]['bytes']}")
        elif receipt.digests(workdir, [name])[name] != listed[name]:
            wrong.append(f"{name}: its sha256 is not that of the receipt")
    page, text = workdir / receipt.TEXT, receipt.text(known).encode()
    if receipt.TEXT not in odd and (not page.exists() or page.read_bytes() != text):
        wrong.append(f"{receipt.TEXT}: not that of this receipt")
    return wrong, [f"{path}: still there, must be deleted ({len(names)} files)"
                   for path, names in still.items() if names]  # fmt: skip


def _contradictions(workdir: Path, known: dict[str, Any]) -> list[str]:
    """List what files that are those of the receipt say otherwise than it does."""
    told, released, before = issue.told(workdir), workdir / RELEASED, workdir / "original"
    told["parents"]["path"] = known["parents"]["path"]
    told["models"] = known["models"] | {RELEASED: issue.model(released)}
    if before.exists():
        told["models"]["original"] = issue.model(before)
    wrong = [f"{receipt.FILE}: {key} is not what the files say"
             for key in told if told[key] != known[key]]  # fmt: skip
    if (released / certificate.FILE).exists() and not wrong:
        digest = known["models"]["original"]["sha256"]
        certified.verify(released, before if before.exists() else None, original_hash=digest)
    return wrong


def main(workdir: Path, replay: str) -> None:
    """Run the command."""
    if (workdir / chain.FILE).exists():
        return exact.main(workdir, replay)
    if replay != "0":
        chain.read(workdir)  # says that there is none
    known = verify(workdir)
    if not distributed.first():
        return
    stay = sum(not receipt.under(name, known["delete"]) for name in known["files"])
    print(receipt.text(known), f"Verified: {stay} files; what had to go is gone.", sep="\n")


if __name__ == "__main__":
    if sys.argv[1:2] and not sys.argv[1].startswith("-"):
        sys.argv[1] = f"--workdir={sys.argv[1]}"
    flags.DEFINE_string("replay", "0", "Segments of a training by slices to compute again, or all.")
    cli.start(main, needs=("workdir", "replay"), example="runs/quickstart", several=True)
