"""Images that no model was trained on: a pool drawn once per data set, whatever is requested.

The pool is drawn by the hash of each id: it is the same for every request and every model. It has
two disjoint parts: `calibration`, which methods may look at (goals, thresholds, fits), and `audit`,
which only tests may.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt64

from unlearn_jax.data import copies
from unlearn_jax.data.copies import Hashes
from unlearn_jax.data.sampling import Rows, count
from unlearn_jax.data.select import option
from unlearn_jax.data.sources import Source
from unlearn_jax.registry import UserError

NO_HOLDOUT = "none"


def draw(source: Source, holdout: Mapping[str, Any]) -> tuple[Rows, Rows, dict[str, Any]]:
    """Return the calibration part, the audit part, and the section as a manifest has it.

    Args:
        source: the data set.
        holdout: `{"split": "test"}`, all rows of that split; `{"split": "", "fraction": 0.1}`, the
            rows of the training split whose hash is below that fraction of its range: about that
            share of every class, and the same images when others are added or removed; at least
            one of a class that has more than one; `{"split": "none"}`, there are no such images.

    Returns:
        Rows in the order they are to be taken in. The last bit of its hash says which part an image
        is in: about half of a class are in each, and no other image has a say in it. Only if all of
        a class would be in `calibration`, its first is in `audit`.

    Raises:
        UserError: no such split, or no fraction between 0 and 1.
    """
    split, empty = option(holdout, "holdout", "split"), np.zeros(0, np.int64)
    if split == NO_HOLDOUT:
        return empty, empty, {"split": split}
    if split:
        if split in ("train", "proxy") or split not in source.splits:
            others = sorted({*source.splits} - {"train", "proxy"})
            raise UserError(
                f'holdout.split: expected one of {others}, "" to take holdout images out of the '
                f'training split before training, or "none" if there are none, got {split!r}.'
            )
        rows, record, fraction = np.array(source.splits[split], np.int64), {"split": split}, 1.0
    else:
        fraction = holdout.get("fraction", 0.0)
        if not 0 < fraction < 1:
            raise UserError(f"holdout.fraction: expected 0 < fraction < 1, got {fraction!r}.")
        rows = np.array(source.splits["train"], np.int64)
        record = {"split": "", "fraction": fraction}
    keys = id_keys([source.ids[row] for row in rows.tolist()])
    order = np.argsort(keys, kind="stable")
    rows, keys = rows[order], keys[order]
    calibration, audit = [empty], [empty]
    for label, n in count(source.labels[rows]).items():
        of_class = source.labels[rows] == label
        share = int((keys[of_class] < fraction * 2.0**64).sum())
        taken = rows[of_class][: n if split else min(n - 1, max(1, share))]
        tested = keys[of_class][: len(taken)] % 2 == 0
        tested[:1] |= not tested.any()  # better to test with than to look at
        audit.append(taken[tested])
        calibration.append(taken[~tested])
    return np.concatenate(calibration), np.concatenate(audit), record


def like(ranked: Rows, source: Source, forget: Rows) -> tuple[Rows, dict[str, dict[str, int]]]:
    """Return rows with the class distribution of the forget set, and the classes that fall short.

    As many as the classes of at least half of the forget images have in full proportion. A class
    that has fewer gives all that it has, and does not shrink the others' share.

    Args:
        ranked: a part of the pool, as `draw` returns it.
        source: the data set.
        forget: the rows to be forgotten.

    Returns:
        Sorted rows; {class: {"forget", "unseen", "wanted"}} of the classes that have less
        than half of what would be wanted.
    """
    wanted, available = count(source.labels[forget]), count(source.labels[ranked])
    ratios = {c: available.get(c, 0) / n for c, n in wanted.items()}
    scale, held = 0.0, 0
    for c in sorted(ratios, key=lambda c: (-ratios[c], c)):
        if 2 * held < len(forget):
            scale, held = ratios[c], held + wanted[c]
    parts, short = [ranked[:0]], {}
    for c, n in wanted.items():
        due = max(1, round(scale * n))
        parts.append(ranked[source.labels[ranked] == c][:due])
        if 2 * len(parts[-1]) < due:
            name = source.class_names[c]
            short[name] = {"forget": n, "unseen": len(parts[-1]), "wanted": due}
    return np.sort(np.concatenate(parts)), short


def without_pixels_of(
    learned: Rows, pool: list[Rows], hashes: Hashes | None, said: list[str]
) -> tuple[list[Rows], list[str]]:
    """Return the pool without images whose very pixels models learn, and what is to be said of it.

    Args:
        learned: rows that a model is, or was, trained on.
        pool: its parts, in their order.
        hashes: of all rows; None: nobody looks.
        said: what was said until now.
    """
    if hashes is None:
        return pool, said
    known = np.unique(copies.exact(hashes, np.concatenate(pool), learned)[:, 0])
    if len(known):
        said = [*said, f"{len(known)} held-out images have the pixels of others that models are "
                "trained on: they leave the holdout"]  # fmt: skip
    return [part[~np.isin(part, known)] for part in pool], said


def id_keys(ids: Sequence[str]) -> UInt64[np.ndarray, "_"]:
    """Return 64 bits for each id that depend on nothing else."""
    hashes = (hashlib.blake2b(id.encode("utf-8", "surrogateescape"), digest_size=8) for id in ids)
    return np.frombuffer(b"".join(h.digest() for h in hashes), "<u8").astype(np.uint64)
