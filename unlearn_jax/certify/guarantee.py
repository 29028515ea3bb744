"""Both bounds of a run's guarantee, for a report: the certified upper, the tested lower one.

**Guarantee**: nothing is passed on unchecked. The upper bound comes from a certificate only, with
what `certify verify` said of it; the lower bound comes from epsilon.json only, if that is of this
very certificate and its numbers follow from what was drawn.
"""

import dataclasses
from pathlib import Path
from typing import Any

from unlearn_jax.certify import attack, certificate, plan, verify
from unlearn_jax.certify import stage as run
from unlearn_jax.data import splits


def of_run(workdir: Path, original: Path) -> dict[str, Any] | None:
    """Return both bounds of the run in workdir; None if it has no certificate.

    {"upper": {"verified", "reason" if not, "record": of the certificate, None if it cannot be read,
    "cautions", "tradeoff": see `plan.tradeoff`, if verified}, "lower": {"reason"} if there is none
    to show, else {"reason": "", "epsilon", "n", "significance", "delta", "refuted", "self_test":
    whether it passed, "repeated", "assumptions"}, "clipping": a line on how often the gradient was
    clipped, or ""}.

    Args:
      workdir: of the unlearned model.
      original: where its original is.
    """
    if not (workdir / certificate.FILE).exists():
        return None
    upper, clipping = {"verified": False, "reason": "", "record": None, "cautions": []}, []
    try:
        found = certificate.read(workdir / certificate.FILE)
        upper["record"] = dataclasses.asdict(found)
        verify.verify(workdir, original)
        train = splits.load(workdir / "split.json").train
        upper["cautions"] = certificate.cautions(found, len(train))
        clipping = run.clipping_text(run.clipped_share(workdir))
        upper["verified"] = True
    except Exception as error:  # whatever is wrong with untrusted files, they are not verified
        upper["reason"] = str(error) or type(error).__name__
    if upper["verified"]:
        upper["tradeoff"] = plan.tradeoff(found)
    return {"upper": upper, "lower": _lower(workdir), "clipping": " ".join(clipping)}


def _lower(workdir: Path) -> dict[str, Any]:
    if not (workdir / attack.FILE).exists():
        return {"reason": f"no audit; make it with: python -m unlearn_jax.audit epsilon --workdir="
                f"{workdir}"}  # fmt: skip
    try:
        found = attack.read(workdir)
    except ValueError as error:
        return {"reason": str(error)}
    bounds = found["bounds"]
    kept = ("n", "significance", "delta", "refuted")
    return {"reason": "", "epsilon": bounds["lower"], **{key: bounds[key] for key in kept}} | {
        "self_test": found["self_test"]["passed"],
        "repeated": found["repeated"],
        "assumptions": bounds["assumptions"]["lower"],
    }
