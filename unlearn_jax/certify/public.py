"""Whether a model is public with respect to a request: that it never saw a forget row.

**Guarantee**: a model that this package trained on a forget row, or that was derived from one, is
refused as the centre of a certificate, and so is one of which that cannot be told. Not covered:
what was trained elsewhere, or on a data set of another name; that it is public stays an assumption
of the certificate, and so does that the records of a run are those that it wrote.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from unlearn_jax import checkpoint, files
from unlearn_jax.config import certified
from unlearn_jax.data import lineage, splits
from unlearn_jax.data.splits import Split
from unlearn_jax.registry import UserError, brief

Rows = Int[np.ndarray, "_"]


def check(folder: Path, split: Split) -> None:
    """Check that the model trained in folder may be the centre of a certificate for this split.

    It and all that it was derived from (init_from, reference_from) are looked at. A folder without
    config.json and split.json, such as one made by `convert`, is from elsewhere and passes.

    Args:
      folder: workdir of the model.
      split: of the request.

    Raises:
      UserError: it saw a forget row, or its records do not say what it saw.
    """
    _check(folder, split, folder, ())


def _check(folder: Path, split: Split, of: Path, before: tuple[Path, ...]) -> None:
    """Check as `check`; `of` is the model that `before` leads from, down to the one in folder."""
    if folder.resolve() in before:
        raise _unknown(of, f"{folder} was derived from itself")
    there = [name for name in ("config.json", "split.json") if (folder / name).exists()]
    if not there:
        return
    if len(there) == 1:
        raise _unknown(of, f"{folder} has {there[0]}, but not both config.json and split.json")
    trained = splits.load(folder / "split.json")
    try:
        recorded = files.read_json(folder / "config.json", "the record of a run")
        used = _rows(recorded, trained)
        parents = [recorded["config"][key] for key in ("init_from", "reference_from")]
        checksums = recorded["relevant"]["init_from"]
        noised = certified.position(recorded["config"]) is not None
        around = recorded["config"]["certificate"]["centre_from"] if noised else ""
        parents = [p for p in zip(parents, checksums, strict=True) if p != ("", None)]
    except Exception as error:  # whatever is wrong with it
        raise _unknown(of, f"{folder / 'config.json'} does not say ({brief(error)})") from error
    if around:
        raise _unknown(of, f"{folder} was noised around another model, {around}")
    derived = "" if folder == of else f", which was derived from {folder},"
    ours, theirs = (s.manifest["dataset"] for s in (split, trained))
    if ours["fingerprint"] == theirs["fingerprint"]:
        seen = np.intersect1d(used, split.forget)
        if len(seen):
            raise UserError(
                f"certificate.centre_from: the model in {of}{derived} was trained on {len(seen)} "
                f"of the {len(split.forget)} examples to forget, such as row {seen[0]}, so it is "
                "not public with respect to them and the certificate would be void. Use another."
            )
    elif shared := _names(split) & _names(trained):
        raise _unknown(
            of,
            f"{folder} was trained on other examples of {sorted(shared)} than this request is of",
        )
    for parent, recorded_checksums in parents:
        path = Path(parent)
        if not parent or not (path / checkpoint.DIRECTORY).exists():
            raise _unknown(of, f"{folder} was derived from {parent!r}, where there is no model")
        if recorded_checksums != checkpoint.stored(path)[1]["checksums"]:
            raise _unknown(of, f"the model in {path} is not the one that {folder} was derived from")
        _check(path, split, of, (*before, folder.resolve()))


def _names(split: Split) -> set[str]:
    """Name the data sets that a split has rows of."""
    data = (split.manifest["dataset"], split.manifest.get("proxy"))
    return {part for of in data if of for part in of["name"].split("+")}


def _rows(recorded: Mapping[str, Any], trained: Split) -> Rows:
    """List every row that the recorded run was trained on, or chose anything by.

    Raises:
      UserError: the split is not that of the run.
    """
    config = recorded["config"]
    stage = config["stages"][config["stage"]]
    rows = {"train": trained.train, "retain": trained.retain, "remaining": trained.remaining}
    used = rows[stage["rows"]]
    was = lineage.trained_on(trained, used) if stage["scratch"] else trained.manifest["hash"]
    if recorded["relevant"]["rows"] != was:
        raise UserError("it is of another run than split.json")
    for phase in (config["phases"][name] for name in stage["phases"]):
        if (
            phase["forget_weight"]
            or phase["goal"]
            or 0 < phase["saliency"] < 1
            or phase["stop"]["metric"]
        ):
            return np.concatenate([used, trained.forget, trained.calibration])
    return used


def _unknown(of: Path, why: str) -> UserError:
    return UserError(
        f"certificate.centre_from: expected in {of} a model that can be told to never have seen "
        f"the forget set: {why}. Use another, or train it again."
    )
