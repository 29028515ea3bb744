"""A data set of four classes, and splits of it, for the tests of requests."""

import numpy as np

from unlearn_jax.data import sources, splits

NAMES = ["cat", "dog", "owl", "ant"]
PER_CLASS = {"train": [40, 30, 20, 10], "test": [10, 8, 6, 4]}
COMPLEMENT = {"kind": "complement", "fraction": 1.0, "seed": 0}
TEST = {"split": "test", "fraction": 0.1}
RESERVE = {"split": "", "fraction": 0.2}
CATS = {"kind": "classes", "classes": ("cat",), "fraction": 0.1, "seed": 0, "file": ""}


def make_source(per_class=PER_CLASS, names=NAMES, name="arrays", prefix=""):
    labels, split, ids = [], [], []
    for part, counts in per_class.items():
        for label, n in enumerate(counts):
            labels += [label] * n
            split += [part] * n
            ids += [f"{prefix}{part}/{names[label]}/{i}.png" for i in range(n)]
    order = np.random.default_rng(0).permutation(len(labels))
    return sources.from_arrays(
        np.zeros((len(labels), 4, 4, 3), np.uint8),
        np.array(labels)[order],
        ids=[ids[i] for i in order],
        split=[split[i] for i in order],
        splits=list(per_class),
        class_names=names,
        name=name,
    )


SOURCE = make_source()


def resolve(request=CATS, retain=COMPLEMENT, holdout=TEST, seed=0, source=SOURCE, **more):
    return splits.resolve(
        source, request=request, retain=retain, holdout=holdout, seed=seed, **more
    )


def by_class(rows, source=SOURCE):
    return np.bincount(source.labels[rows], minlength=len(source.class_names)).tolist()


def check_invariants(split, source=SOURCE):
    train, forget, retain, calibration, audit = (
        set(getattr(split, name).tolist()) for name in splits.SETS
    )
    unseen = calibration | audit
    assert forget < train and train.isdisjoint(unseen) and retain.isdisjoint(forget | unseen)
    assert calibration.isdisjoint(audit)
    assert set(split.remaining.tolist()) == train - forget
    assert train | unseen <= set(range(len(source)))
    for rows in (*(getattr(split, name) for name in splits.SETS), split.remaining):
        assert rows.dtype == np.int64 and rows.size and (np.diff(rows) > 0).all()


def ids_file(tmp_path, text):
    file = tmp_path / "forget.txt"
    file.write_text(text, "utf-8")
    return {"kind": "ids", "file": str(file)}
