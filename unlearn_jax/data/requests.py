"""What must be forgotten and what may be kept: the rows that sections of a config name.

The protocol repeats the smaller of the two sets until both are equally large. There is no need to:
batches have a fixed share of forget rows (`data.make_train`), whatever the sizes of the sets.
"""

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unlearn_jax.data.published import label_of, match, read_images, read_text
from unlearn_jax.data.readers import some
from unlearn_jax.data.sampling import Rows, first_per_class, sample_fraction, sample_per_class
from unlearn_jax.data.sources import Source

_FORGET, _RETAIN = 1, 2  # random streams; splits.py has stream 3
KINDS = ("complement", "subset", "classes", "other_classes", "ids", "proxy")


def select(source: Source, request: Mapping[str, Any]) -> tuple[Rows, dict[str, Any]]:
    """The training rows a request names, and the request as it goes into the manifest."""
    rows = np.array(source.splits["train"], np.int64)
    match choice(request, "request", "kind", ("classes", "random", "ids", "predicate")):
        case "classes":
            labels = _labels(source, option(request, "request", "classes"), "request")
            if not labels:
                raise ValueError('request.classes: expected names, as ("cat",), got none.')
            chosen = _of_classes(source, rows, labels)
            record = {"classes": [source.class_names[label] for label in labels]}
        case "random":
            fraction = fraction_of(request, "request")
            seed = option(request, "request", "seed")
            chosen = sample_fraction(rows, source.labels, fraction, [seed, _FORGET])
            record = {"fraction": fraction, "seed": seed}
        case "ids":
            text, record = _read(request, "request")
            chosen = _rows_of_ids(source, text, record["file"], "forget")
        case _:
            content, record = _read(request, "request")
            namespace: dict[str, Any] = {"__name__": "request", "__file__": str(request["file"])}
            exec(compile(content, str(request["file"]), "exec"), namespace)  # the text just hashed
            function = namespace.get("forget")
            if not callable(function):
                raise ValueError(
                    f"{record['file']}: expected a function "
                    "forget(id: str, label: int, class_name: str) -> bool."
                )
            chosen = rows[[_ask(function, source, int(row)) for row in rows]]
    chosen, limit = _limit(source, chosen, request, request.get("seed", 0), _FORGET)
    return chosen, {"kind": request["kind"], **record, **limit}


def keep(
    source: Source, remaining: Rows, forget: Rows, whole_classes: bool, retain: Mapping[str, Any]
) -> tuple[Rows, dict[str, Any]]:
    """The rows that unlearning may use, and the section as it goes into the manifest.

    Args:
        source: with proxy data, if any, in the split "proxy".
        remaining: the training rows not to be forgotten.
        forget: those to be.
        whole_classes: whether the request is for classes, which proxy data must not have then.
        retain: the section.
    """
    seed = retain.get("seed", 0)
    match choice(retain, "retain", "kind", KINDS):
        case "complement":
            rows, record = remaining, {}
        case "subset":
            fraction = fraction_of(retain, "retain")
            rows = sample_fraction(remaining, source.labels, fraction, [seed, _RETAIN])
            record = {"fraction": fraction, "seed": seed}
        case "classes":
            labels = _labels(source, option(retain, "retain", "classes"), "retain")
            names = [source.class_names[label] for label in labels]
            if whole_classes and np.isin(labels, source.labels[forget]).any():
                both = [n for n in names if source.class_names.index(n) in source.labels[forget]]
                raise ValueError(f"retain.classes: {some(both)} are to be forgotten. Remove them.")
            rows, record = _of_classes(source, remaining, labels), {"classes": names}
        case "other_classes":
            labels = _labels(source, option(retain, "retain", "classes"), "retain")
            excluded = np.union1d(labels, source.labels[forget])
            rows = remaining[~np.isin(source.labels[remaining], excluded)]
            record = {"classes": [source.class_names[label] for label in labels]}
        case "ids":
            text, record = _read(retain, "retain")
            rows = _rows_of_ids(source, text, record["file"], "retain")
            taken = np.setdiff1d(rows, remaining)
            if taken.size:
                raise ValueError(
                    f"retain.file: {some([source.ids[row] for row in taken])} are forgotten or "
                    "held out. Remove them."
                )
        case _:
            rows, record = np.array(source.splits.get("proxy", ()), np.int64), {}
            if whole_classes:
                rows = rows[~np.isin(source.labels[rows], source.labels[forget])]
    rows, limit = _limit(source, rows, retain, seed, _RETAIN)
    return rows, {"kind": retain["kind"], **record, **limit}


def _limit(
    source: Source, rows: Rows, section: Mapping[str, Any], seed: int, stream: int
) -> tuple[Rows, dict[str, Any]]:
    """At most `per_class` of the rows of every class, and that as it goes into the manifest."""
    n, pick = section.get("per_class", 0), section.get("pick", "random")
    if not n:
        return rows, {}
    if pick == "first":
        return first_per_class(rows, source.labels, n), {"per_class": n, "pick": pick}
    chosen = sample_per_class(rows, source.labels, n, [seed, stream])
    return chosen, {"per_class": n, "pick": pick, "seed": seed}


def _of_classes(source: Source, rows: Rows, labels: Sequence[int]) -> Rows:
    return rows[np.isin(source.labels[rows], labels)]


def _labels(source: Source, classes: Any, where: str) -> list[int]:
    """The sorted labels of a section's classes, names or numbers."""
    if isinstance(classes, str | int):
        raise ValueError(f'{where}.classes: expected names, as ("cat",), got {classes!r}.')
    names = [name for given in classes for name in _names(source, given)]
    return sorted({label_of(source, name, f"{where}.classes") for name in names})


def _names(source: Source, name: str | int) -> list[str | int]:
    """The names in "cat,dog", as --config.request.classes=cat,dog on a command line arrives."""
    if isinstance(name, str) and name not in source.class_names:
        return [part.strip() for part in name.split(",") if part.strip()] or [name]
    return [name]


def _read(section: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """The text of a section's file, and the file as it goes into the manifest."""
    file = Path(option(section, where, "file"))
    text = read_text(file, f"{where}.file")
    return text, {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def _rows_of_ids(source: Source, text: str, file: str, role: str) -> Rows:
    """The training rows of example ids or of image paths that end in an example id."""
    ids = read_images(text, file, role)
    where = {"forget": "request.file", "retain": "retain.file"}[role]
    rows = match(ids, source.ids, where, source.name)
    train = source.splits["train"]
    outside = [id for id, row in zip(ids, rows.tolist(), strict=True) if row not in train]
    if outside:
        raise ValueError(
            f"{where}: {some(outside)} are not in the training split of {source.name}, so no "
            "model was trained on them. Remove them."
        )
    return np.sort(rows)


def _ask(function: Any, source: Source, row: int) -> bool:
    id, label = source.ids[row], int(source.labels[row])
    try:
        answer = function(id, label, source.class_names[label])
    except Exception as error:
        raise ValueError(f"request.file: forget failed for {id!r}: {error!r}.") from error
    if not isinstance(answer, bool | np.bool_):
        raise TypeError(f"request.file: forget({id!r}, ...) must be True or False, got {answer!r}.")
    return bool(answer)


def option(section: Mapping[str, Any], where: str, name: str) -> Any:
    """The option of a config section; raises ValueError if it is not there."""
    if name not in section:
        raise ValueError(f"{where}: expected {name!r}, got only {sorted(section)}.")
    return section[name]


def choice(section: Mapping[str, Any], where: str, name: str, choices: Sequence[str]) -> str:
    """The option, one of the choices; raises ValueError with the nearest if it is none."""
    value = option(section, where, name)
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{where}.{name}: expected one of {choices}, got {value!r}.{hint}")
    return value


def fraction_of(section: Mapping[str, Any], where: str) -> float:
    """The option "fraction"; raises ValueError unless it is between 0 and 1."""
    fraction = option(section, where, "fraction")
    if not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise ValueError(f"{where}.fraction: expected 0 < fraction < 1, got {fraction!r}.")
    return float(fraction)
