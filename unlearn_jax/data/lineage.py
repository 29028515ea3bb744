"""Lineage: what trained models have seen, and whether one can play a role in a request."""

import base64
from pathlib import Path

import numpy as np
from jaxtyping import UInt64

from unlearn_jax import checkpoint
from unlearn_jax.data.records import digest
from unlearn_jax.data.sampling import Rows
from unlearn_jax.data.splits import Split, load
from unlearn_jax.registry import UserError


def trained_on(split: Split, rows: Rows) -> str:
    """Return a hash of what a model trained on these rows has seen: data, rows, their poison."""
    data, proxy = split.manifest["dataset"], split.manifest.get("proxy")
    seen = {"dataset": data, "rows": rows.tolist(), "poisoned": []}
    if proxy and (rows >= data["n"]).any():
        seen["proxy"] = proxy
    if len(poisoned := np.intersect1d(rows, split.poisoned)):
        seen["poisoned"] = [*poisoned.tolist(), split.manifest["poison"]["pattern"]]
    return digest(seen)


def check_model(split: Split, workdir: Path, role: str = "original") -> None:
    """Check that the model trained in workdir can play this role for this split.

    An original or a retrained model may have been trained for another request, as long as it has
    seen all of the forget set and nothing of the holdout, or the same remaining rows. A workdir
    without split.json (a model from elsewhere) passes, unless the holdout was reserved out of
    images that it may have been trained on.

    Args:
        split: of the request.
        workdir: of a training run.
        role: "original"; "retrained"; "reference", of the same retain rows; or "unlearned", which
            must be of this very split.

    Raises:
        UserError: another dataset, a forget row it never saw, a holdout row it was trained on.
    """
    path = workdir / "split.json"
    if not path.exists():
        if (workdir / "config.json").exists() or (
            checkpoint.saved_steps(workdir) and checkpoint.read_meta(workdir)["phases"]
        ):
            raise UserError(
                f"{path} is missing: the model was trained with this package, and what it was "
                "trained on is not known without it. Restore it, or use another run."
            )
        if role == "original" and split.manifest["holdout"]["split"] == "":
            raise UserError(
                f"holdout.split: the model in {workdir} is from elsewhere, and may have been "
                "trained on the holdout images, which were taken out of the training folder. Name "
                'a split that it never saw, or set holdout.split="none".'
            )
        return
    trained = load(path)
    if trained.manifest["hash"] == split.manifest["hash"]:
        return
    fix = "Use the config that run was made with, or another run."
    rows = {"retrained": "remaining", "reference": "retain"}.get(role, "")
    if rows and trained_on(trained, getattr(trained, rows)) == trained_on(
        split, getattr(split, rows)
    ):
        return
    if role != "original":
        raise UserError(f"{path} is not the split of this config's request. {fix}")
    names = [of.manifest["dataset"]["name"] for of in (trained, split)]
    changed = trained.manifest["dataset"] != split.manifest["dataset"]
    if changed and (names[0] != names[1] or "id_keys" not in trained.manifest):
        raise UserError(
            f"{path} is of the dataset {names[0]}, the request of {names[1]} or other splits of "
            f"it. {fix}"
        )
    # Images may have come or gone since then, so rows are compared by their ids.
    keys = keys_of if "id_keys" in trained.manifest else (lambda _, rows: rows)
    gone = np.concatenate([split.forget[:0], *split.served])
    planted = np.setdiff1d(keys(trained, trained.poisoned), keys(split, gone))
    was_trained_on = keys(trained, trained.train)
    if not np.array_equal(np.sort(keys(split, split.poisoned)), planted):
        raise UserError(
            f"{path} has {len(planted)} poisoned rows, the request {len(split.poisoned)}, "
            f"and not the same ones: the backdoor is planted before training. {fix}"
        )
    for of in split.manifest["apart"]:
        known = np.setdiff1d(np.array(of["rows"], np.int64), split.forget)
        known = known[known < split.manifest["dataset"]["n"]]
        known = known[np.isin(keys(split, known), was_trained_on)]
        if known.size:
            raise UserError(
                f"The model in {workdir} was trained on {known.size} images that another request "
                f"has forgotten on these data, and has not forgotten them itself: {of['text']} "
                "Start from the model that has (config.init_from), or ask for these images, too."
            )
    unknown = split.forget[~np.isin(keys(split, split.forget), was_trained_on)]
    if unknown.size:
        raise UserError(
            f"The model in {workdir} was never trained on {unknown.size} of the "
            f"{len(split.forget)} examples it should forget, such as row {unknown[0]}. {fix}"
        )
    both = np.union1d(split.calibration, split.audit)
    seen = both[np.isin(keys(split, both), was_trained_on)]
    if seen.size:
        raise UserError(
            f"The model in {workdir} was trained on {seen.size} of the {len(both)} "
            f"holdout examples, such as row {seen[0]}, which must be unseen to compare with. {fix}"
        )


def keys_of(split: Split, rows: Rows) -> UInt64[np.ndarray, "_"]:
    """Return hashes of the ids of these rows; an image has the same hash in every data set."""
    encoded = base64.b64decode(split.manifest["id_keys"])
    return np.frombuffer(encoded, "<u8").astype(np.uint64)[rows]
