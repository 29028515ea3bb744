"""Limits of a request: what its numbers can and cannot show, before anything is trained."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from unlearn_jax.audit import gap
from unlearn_jax.data import transforms
from unlearn_jax.data.splits import Split


class Limit(NamedTuple):
    """Whether an audit has what it needs, and what is missing or would help, in words."""

    audit: str
    enough: bool
    text: str


def of_request(cfg: ConfigDict, split: Split, models: Sequence[str] | None = None) -> list[Limit]:
    """Return what each audit of a request has and lacks.

    Args:
      cfg: of the request.
      split: of the request.
      models: that there are, or will be; None: those that the pipeline makes.
    """
    retrained = len(split.remaining) > 0 if models is None else "retrained" in models
    rows = min(cfg.audit.rows, len(split.audit))
    least, clean = gap.LEAST, len(np.setdiff1d(split.forget, split.poisoned))
    found = [
        _need("audits", not lacking(split), "they can be made", lacking(split)),
        _need("retrained model", retrained, "every audit compares with it", _WITHOUT_RETRAINED),
        _need(
            "evaluation on retain images", len(split.remaining) > 0,
            f"{len(split.remaining)} images", "there are none: whether quality is kept is not seen",
        ),
        _at_least("membership inference", {"forget": clean, "audit holdout": rows}, least),
        _at_least("true positives at 1 % false positives", {"audit holdout": rows}, 100),
        _need(
            "floor, calibrated attacks", cfg.audit.shadows > 0,
            f"{cfg.audit.shadows} shadow models",
            "no second retrained model; set audit.shadows to 1 or more",
        ),
        _need(
            "resurfacing", len(cfg.audit.resurfacing.steps) > 0,
            f"after {', '.join(map(str, cfg.audit.resurfacing.steps))} steps",
            "not asked for; set audit.resurfacing.steps",
        ),
        _need(
            "backdoor", split.poisoned.size > 0, f"{split.poisoned.size} images carry one",
            _no_backdoor(cfg),
        ),
    ]  # fmt: skip
    short = split.manifest["holdout"].get("audit_short", {})
    found += [
        Limit(f"class {name}", False, f"{of['unseen']} unseen images for {of['forget']} to forget")
        for name, of in short.items()
    ]
    return found


def lacking(split: Split) -> str:
    """Return why a request cannot be audited at all; "" if it can."""
    clean = len(np.setdiff1d(split.forget, split.poisoned))
    if clean < 2:
        return (
            f"expected at least 2 forget images without a backdoor, got {clean} of "
            f"{len(split.forget)}; lower poison.fraction, or ask for more images at once"
        )
    if not len(split.remaining):
        return "there are no images to retrain with, so there is no retrained model to compare with"
    if not len(split.audit):
        return "there are no unseen images to compare with; name a split of them in holdout.split"
    return ""


_WITHOUT_RETRAINED = (
    "there is none, so there is no yardstick: an unseen image's error is the only comparison"
)


def _no_backdoor(cfg: ConfigDict) -> str:
    if transforms.varies(cfg.task.to_dict()):
        return (
            f"the task {cfg.task.name} has no fixed place for a trigger; set task.name to inpaint"
        )
    return "none is planted; set poison.fraction to 0.25, before the original is trained"


def _need(audit: str, enough: bool, has: str, lacks: str) -> Limit:
    return Limit(audit, bool(enough), has if enough else lacks)


def _at_least(audit: str, counts: dict[str, int], least: int) -> Limit:
    short = [f"{least - n} more of {name}" for name, n in counts.items() if n < least]
    has = " and ".join(f"{n:,} {name}" for name, n in counts.items())
    need = f"; {least:,} of each are needed: {', '.join(short)}" if short else ""
    return Limit(audit, not short, has + need)
