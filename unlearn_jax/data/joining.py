"""One source made of another: two datasets as one, or a part of one."""

import numpy as np
from jaxtyping import Int, UInt8

from unlearn_jax.data.readers import Survey, split_ranges
from unlearn_jax.data.sampling import sample_fraction
from unlearn_jax.data.sources import Keys, Source
from unlearn_jax.registry import UserError

_SUBSET = 5  # random stream; poison.py has stream 4


def concat(a: Source, b: Source) -> Source:
    """Join two sources: the rows of `a` as they are, then those of `b` as the split "proxy".

    Classes of the same name become one class; a class that is only a number has no name, and is
    never merged with a's. b's ids, and its nameless classes, get the prefix "proxy/".

    Raises:
        UserError: b is a's own dataset, or a has a proxy already.
    """
    shared = set(a.ids) & set(b.ids) if a.name == b.name else set()
    if shared or "proxy" in a.splits:
        raise UserError(
            f"proxy data must be another dataset than {a.name}, and only one; {b.name} has "
            f"{len(shared)} of the same ids. Check retain.data."
        )
    b_names = [f"proxy/{c}" if c == str(i) else c for i, c in enumerate(b.class_names)]
    class_names = tuple(dict.fromkeys([*a.class_names, *b_names]))
    to_merged = np.array([class_names.index(c) for c in b_names], np.int32)
    n = len(a)

    def read(indices: Int[np.ndarray, "b"], keys: Keys) -> UInt8[np.ndarray, "b h w 3"]:
        in_a = indices < n
        if in_a.all():
            return a.fetch(indices, keys)
        of_b = b.fetch(indices[~in_a] - n, None if keys is None else keys[~in_a])
        if not in_a.any():
            return of_b
        of_a = a.fetch(indices[in_a], None if keys is None else keys[in_a])
        if of_a.shape[1:] != of_b.shape[1:]:
            raise UserError(
                f"{a.name} has images {of_a.shape[1:]}, its proxy {b.name} {of_b.shape[1:]}; "
                "expected one shape. Resize one dataset beforehand."
            )
        images = np.empty((len(indices), *of_a.shape[1:]), np.uint8)
        images[in_a], images[~in_a] = of_a, of_b
        return images

    return Source(
        name=a.name,
        class_names=class_names,
        ids=[*a.ids, *(f"proxy/{i}" for i in b.ids)],
        labels=np.concatenate([a.labels, to_merged[b.labels]]),
        splits={**a.splits, "proxy": range(n, n + len(b))},
        read=read,
        augmented=a.augmented,
        original=lambda row: a.original(row) if row < n else b.original(row - n),
        root=a.root,
        proxy=b.name,
        survey=Survey(
            {**a.survey.bad, **{f"proxy/{id}": why for id, why in b.survey.bad.items()}},
            a.survey.composed + b.survey.composed,
            a.survey.exif,
        ),
    )


def subset(source: Source, train_rows: int, seed: int) -> Source:
    """Keep `train_rows` rows of the split "train", the same share of every class.

    Raises:
        UserError: there are not so many.
    """
    train = np.array(source.splits["train"], np.int64)
    if train_rows > len(train):
        raise UserError(
            f"data.train_rows: {source.name} has {len(train)} training examples, got {train_rows}."
        )
    kept = sample_fraction(train, source.labels, train_rows / len(train), [seed, _SUBSET])
    parts = [kept if n == "train" else np.array(rows) for n, rows in source.splits.items()]
    rows = np.concatenate(parts)
    return Source(
        name=source.name,
        class_names=source.class_names,
        ids=[source.ids[row] for row in rows],
        labels=source.labels[rows],
        splits=split_ranges(list(source.splits), [len(part) for part in parts]),
        read=lambda indices, keys: source.fetch(rows[indices], keys),
        augmented=source.augmented,
        original=lambda row: source.original(int(rows[row])),
        root=source.root,
        survey=source.survey,
    )
