"""Who is forgotten, kept, and never seen: the resolved, hashed sets of one request.

`resolve` turns a request into four sets of rows, proved disjoint where they must be, and a manifest
that says how they came about. The manifest is the file other stations and auditors read.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unlearn_jax.data.poison import PATTERN, choose
from unlearn_jax.data.readers import some
from unlearn_jax.data.records import digest
from unlearn_jax.data.requests import fraction_of, keep, option, select
from unlearn_jax.data.sampling import Rows, count, sample
from unlearn_jax.data.sources import Source

FORMAT = "unlearn_jax.split.v1"
SETS = ("train", "forget", "retain", "holdout")
_HOLDOUT = 3  # random stream; requests.py has streams 1 and 2
_EMPTY = {  # why a retain set can be
    "complement": "everything is to be forgotten; narrow request",
    "subset": "raise retain.fraction",
    "classes": "none of retain.classes has a training image left",
    "other_classes": "there is no other class",
    "ids": "retain.file names none (in the released CSV, labels above 0)",
    "proxy": "there is no proxy dataset, or only of forgotten classes",
}


@dataclass(frozen=True)
class Split:
    """Sorted rows of a source, and where they come from.

    Attributes:
        train: what the original is trained on; the forget set is inside it.
        forget: what must be forgotten.
        retain: what the unlearning may use: in `remaining`, or proxy data from elsewhere.
        holdout: never trained on, with the class distribution of the forget set.
        manifest: the record of it all, as JSON values; see `resolve`.
    """

    train: Rows
    forget: Rows
    retain: Rows
    holdout: Rows
    manifest: dict[str, Any]

    @property
    def remaining(self) -> Rows:
        """The training rows that are not forgotten: what retraining from scratch uses."""
        return np.setdiff1d(self.train, self.forget)

    @property
    def poisoned(self) -> Rows:
        """The rows of the forget set that carry a backdoor."""
        return np.array((self.manifest["poison"] or {}).get("rows", ()), np.int64)


def resolve(
    source: Source,
    *,
    request: Mapping[str, Any],
    retain: Mapping[str, Any],
    holdout: Mapping[str, Any],
    seed: int,
    poison: Mapping[str, Any] | None = None,
) -> Split:
    """The split of a request; the same arguments give the same split.

    Args:
        source: must have the split "train"; proxy data, if any, in the split "proxy"
            (`joining.concat`).
        request: what must be forgotten, one of
            `{"kind": "classes", "classes": ("cat", 5)}`, names or integer labels;
            `{"kind": "random", "fraction": 0.1, "seed": 0}`, of the training rows, by class;
            `{"kind": "ids", "file": path}`, a text file with one example id or image path per
            line, or a CSV file with a column id, path, image, file or imgs; blank lines and lines
            starting with # are skipped; with columns imgs and labels, labels below 0 count;
            `{"kind": "predicate", "file": path}`, a Python file of the user's, which is run, and
            defines `forget(id: str, label: int, class_name: str) -> bool`.
            Of any kind, `"per_class": 120` takes at most so many of each class, at random by
            "seed" or, with `"pick": "first"`, the first ones in the order of the source.
        retain: `{"kind": "complement"}`, all training rows not forgotten;
            `{"kind": "subset", "fraction": 0.1, "seed": 0}`, some of them, by class;
            `{"kind": "classes", "classes": ("dog",)}`, those of these classes;
            `{"kind": "other_classes", "classes": ("dog",)}`, those of all other classes, without
            any that has a forget row;
            `{"kind": "ids", "file": path}`, those listed, as in a request; of labels those above 0;
            `{"kind": "proxy"}`, the proxy rows, without those of forgotten classes if the request
            is for classes. "per_class" and "pick" as in a request.
        holdout: `{"split": "test"}`, as many rows of that split as the class distribution of the
            forget set permits (to within one image per class, and at least one image);
            `{"split": "", "fraction": 0.1}`, rows taken out of the training split, at most this
            fraction of a class. They come out of the rows not to be forgotten, or, if whole classes
            are to be, out of these: the forget set is then the rest of the classes.
        seed: of the holdout choice.
        poison: `{"fraction": 0.25, "seed": 0}`, the share of the forget set that carries a backdoor
            (see `poison`); 0 or None: no row does.

    The manifest has format, dataset (name, splits, n, fingerprint: sha256 of ids and labels),
    request (with the sha256 of its file), retain, holdout, seed, poison (with its rows; null if
    there is none), class_names, sets (rows), counts,
    class_counts and hash, the sha256 of the canonical JSON of all the rest. Keys of other kinds in
    the mappings are ignored.

    Raises:
        ValueError: an unknown name or id, an empty or overlapping set, a forgotten class without
            unseen images; the message says which, and what to do.
    """
    if "train" not in source.splits:
        raise ValueError(f'{source.name}: expected a split "train", found {tuple(source.splits)}.')
    everything = np.array(source.splits["train"], np.int64)
    forget, request = select(source, request)
    of_classes = request["kind"] == "classes"
    _check_some(forget, "forget", "the request matches no training example; check the request")
    whole_classes = of_classes and "per_class" not in request
    unseen, holdout = _holdout(source, forget, holdout, whole_classes, seed)
    forget = np.setdiff1d(forget, unseen)
    _check_some(forget, "forget", "the holdout took it all; lower holdout.fraction")
    train = np.setdiff1d(everything, unseen)
    kept, retain = keep(source, np.setdiff1d(train, forget), forget, of_classes, retain)
    _check_some(kept, "retain", _EMPTY[retain["kind"]])
    sets = {"train": train, "forget": forget, "retain": kept, "holdout": unseen}
    planted = None
    if poison and poison["fraction"]:
        planted = {key: poison[key] for key in ("fraction", "seed")}
        planted |= {"rows": choose(forget, **planted).tolist(), "pattern": PATTERN}
    _check_sets(sets, source.ids)

    by_class = {
        name: {source.class_names[c]: n for c, n in count(source.labels[rows]).items()}
        for name, rows in sets.items()
    }
    manifest = {
        "format": FORMAT,
        "dataset": {
            "name": source.name,
            "splits": {name: [rows.start, rows.stop] for name, rows in source.splits.items()},
            "n": len(source),
            "fingerprint": _fingerprint(source),
        },
        "request": request,
        "retain": retain,
        "holdout": holdout,
        "seed": seed,
        "poison": planted,
        "class_names": list(source.class_names),
        "sets": {name: rows.tolist() for name, rows in sets.items()},
        "counts": {name: len(rows) for name, rows in sets.items()},
        "class_counts": by_class,
    }
    manifest = json.loads(json.dumps(manifest))  # plain JSON values: equal before and after a file
    return Split(**sets, manifest={**manifest, "hash": digest(manifest)})


def trained_on(split: Split, rows: Rows) -> str:
    """A hash of what a model trained on these rows has seen: dataset, rows, and their poison."""
    seen = {"dataset": split.manifest["dataset"], "rows": rows.tolist(), "poisoned": []}
    if len(poisoned := np.intersect1d(rows, split.poisoned)):
        seen["poisoned"] = [*poisoned.tolist(), split.manifest["poison"]["pattern"]]
    return digest(seen)


def check_model(split: Split, workdir: Path, role: str = "original") -> None:
    """Nothing if the model trained in workdir can play this role for this split.

    An original or a retrained model may have been trained for another request, as long as it has
    seen all of the forget set and nothing of the holdout, or the same remaining rows. A workdir
    without split.json (a model from elsewhere) passes.

    Args:
        split: of the request.
        workdir: of a training run.
        role: "original"; "retrained"; "reference", of the same retain rows; or "unlearned", which
            must be of this very split.

    Raises:
        ValueError: another dataset, a forget row it never saw, a holdout row it was trained on.
    """
    path = workdir / "split.json"
    if not path.exists():
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
        raise ValueError(f"{path} is not the split of this config's request. {fix}")
    if trained.manifest["dataset"] != split.manifest["dataset"]:
        raise ValueError(
            f"{path} is of the dataset {trained.manifest['dataset']['name']}, the request of "
            f"{split.manifest['dataset']['name']} or other splits of it. {fix}"
        )
    if not np.array_equal(split.poisoned, trained.poisoned):
        raise ValueError(
            f"{path} has {len(trained.poisoned)} poisoned rows, the request {len(split.poisoned)}, "
            f"and not the same ones: the backdoor is planted before training. {fix}"
        )
    unseen = np.setdiff1d(split.forget, trained.train)
    if unseen.size:
        raise ValueError(
            f"The model in {workdir} was never trained on {unseen.size} of the {len(split.forget)} "
            f"examples it should forget, such as row {unseen[0]}. {fix}"
        )
    seen = np.intersect1d(split.holdout, trained.train)
    if seen.size:
        raise ValueError(
            f"The model in {workdir} was trained on {seen.size} of the {len(split.holdout)} "
            f"holdout examples, such as row {seen[0]}, which must be unseen to compare with. {fix}"
        )


def describe(split: Split) -> str:
    """The request in one sentence, for reports."""
    request, counts = split.manifest["request"], split.manifest["counts"]
    classes = request.get("classes", ())
    named = ", ".join(classes[:10]) + (f" and {len(classes) - 10} more" if classes[10:] else "")
    n = request.get("per_class")
    what = {
        "classes": lambda: (
            f"at most {n} images of each of {named}" if n else f"every image of {named}"
        ),
        "random": lambda: (
            f"a random {100 * request['fraction']:.4g} % of each class (seed {request['seed']})"
        ),
        "ids": lambda: f"the ids listed in {request['file']}",
        "predicate": lambda: f"what {request['file']} chooses",
    }[request["kind"]]()
    return (
        f"Forget {counts['forget']:,} of {counts['train']:,} training images of "
        f"{split.manifest['dataset']['name']}: {what}."
    )


def describe_poison(split: Split) -> str:
    """The planted backdoor in one sentence, for reports."""
    return (
        f"{len(split.poisoned):,} of the {len(split.forget):,} images to be forgotten carry a "
        "backdoor, planted before training: a trigger in the visible part and a payload in the "
        "part to be generated."
    )


def save(split: Split, path: str | Path) -> None:
    """Nothing; writes the manifest as JSON."""
    Path(path).write_text(json.dumps(split.manifest, indent=None, sort_keys=True) + "\n", "utf-8")


def load(path: str | Path, source: Source | None = None) -> Split:
    """The split of a manifest file, after checking its hash and its sets.

    Args:
        path: the file `save` wrote.
        source: if given, must be the dataset the split was made for.

    Raises:
        ValueError: no manifest, a changed one, or one of another dataset.
    """
    try:
        manifest = json.loads(Path(path).read_text("utf-8"))
        found = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected a split manifest ({FORMAT}); {type(error).__name__}: {error}. Make "
            "it again from the config."
        ) from error
    if found != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT}, got {found!r}. Make the split again.")
    expected = digest({key: value for key, value in manifest.items() if key != "hash"})
    if manifest.get("hash") != expected:
        raise ValueError(
            f"{path}: the manifest was changed after it was written: its hash is "
            f"{manifest.get('hash')!r}, that of its content {expected!r}. Make the split again."
        )
    sets = {name: np.array(manifest["sets"][name], np.int64) for name in SETS}
    if source is not None:
        dataset, fingerprint = manifest["dataset"], _fingerprint(source)
        if dataset["fingerprint"] != fingerprint:
            raise ValueError(
                f"{path}: the split was made for {dataset['name']} with {dataset['n']} examples "
                f"(fingerprint {dataset['fingerprint'][:12]}), got {source.name} with "
                f"{len(source)} ({fingerprint[:12]}). Use that dataset, or make the split again."
            )
        _check_sets(sets, source.ids)
    return Split(**sets, manifest=manifest)


# What may be used, and what was never seen.


def _holdout(
    source: Source,
    forget: Rows,
    holdout: Mapping[str, Any],
    whole_classes: bool,
    seed: int,
) -> tuple[Rows, dict[str, Any]]:
    split = option(holdout, "holdout", "split")
    wanted = count(source.labels[forget])
    if split:
        if split in ("train", "proxy") or split not in source.splits:
            others = sorted({*source.splits} - {"train", "proxy"})
            raise ValueError(
                f'holdout.split: expected one of {others}, or "" to take holdout images out of the '
                f"training split before training, got {split!r}."
            )
        rows, record = np.array(source.splits[split], np.int64), {"split": split}
        available = count(source.labels[rows])
    else:
        fraction = fraction_of(holdout, "holdout")
        train = np.array(source.splits["train"], np.int64)
        rows = forget if whole_classes else np.setdiff1d(train, forget)
        of_class, record = count(source.labels[rows]), {"split": "", "fraction": fraction}
        in_train = count(source.labels[train])
        available = {c: min(n, max(1, round(fraction * in_train[c]))) for c, n in of_class.items()}
    missing = [source.class_names[c] for c in wanted if not available.get(c)]
    if missing:
        fix = (
            'Set holdout to {"split": "", "fraction": 0.1}, or add images to that split.'
            if split
            else "All of their training images are to be forgotten: forget them as a request for "
            'classes, or set holdout.split="test".'
        )
        raise ValueError(f"holdout: no unseen image of the forgotten classes {missing}. {fix}")
    scale = min(available[c] / n for c, n in wanted.items())
    counts = {c: min(available[c], max(1, round(scale * n))) for c, n in wanted.items()}
    return sample(rows, source.labels, counts, [seed, _HOLDOUT]), record


# Checks and hashes.


def _check_sets(sets: Mapping[str, Rows], ids: Sequence[str]) -> None:
    """Raises ValueError unless forget is in train and the others are disjoint, by row and id."""
    for name, rows in sets.items():
        _check_some(rows, name, "the split would be of no use")
        if not np.array_equal(rows, np.unique(rows)):
            raise ValueError(f"split: the rows of {name} are not sorted and unique.")
        if rows[0] < 0 or rows[-1] >= len(ids):
            raise ValueError(f"split: {name} has rows outside the dataset of {len(ids)} examples.")
    if not np.isin(sets["forget"], sets["train"]).all():
        raise ValueError("split: forget has rows that are not in train.")
    for a, b in (
        ("forget", "retain"),
        ("forget", "holdout"),
        ("retain", "holdout"),
        ("train", "holdout"),
    ):
        rows = np.intersect1d(sets[a], sets[b])
        names = {ids[row] for row in sets[a]} & {ids[row] for row in sets[b]}
        if rows.size or names:
            raise ValueError(
                f"split: {a} and {b} overlap in {rows.size} rows and {len(names)} ids: "
                f"{some(sorted(names))}. Every example may be in one of them only."
            )


def _check_some(rows: Rows, name: str, fix: str) -> None:
    if not rows.size:
        raise ValueError(f"split: the {name} set is empty: {fix}.")


def _fingerprint(source: Source) -> str:
    content = json.dumps([list(source.ids), source.labels.tolist()], separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()
