"""What must be forgotten: the training rows that a request names."""

import csv
import difflib
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unlearn_jax.data.readers import some
from unlearn_jax.data.sampling import Rows, sample_fraction
from unlearn_jax.data.sources import Source

_FORGET = 1  # random stream
COLUMNS = ("id", "path", "image", "file")  # what the id column of a CSV file may be called


def select(source: Source, request: Mapping[str, Any]) -> tuple[Rows, dict[str, Any]]:
    """The training rows a request names, and the request as it goes into the manifest."""
    rows = np.array(source.splits["train"], np.int64)
    match choice(request, "request", "kind", ("classes", "random", "ids", "predicate")):
        case "classes":
            classes = option(request, "request", "classes")
            if isinstance(classes, str | int) or not classes:
                raise ValueError(f'request.classes: expected names, as ("cat",), got {classes!r}.')
            labels = sorted({_label(source, c) for name in classes for c in _names(source, name)})
            names = [source.class_names[label] for label in labels]
            chosen = rows[np.isin(source.labels[rows], labels)]
            return chosen, {"kind": "classes", "classes": names}
        case "random":
            fraction, seed = fraction_of(request, "request"), option(request, "request", "seed")
            chosen = sample_fraction(rows, source.labels, fraction, [seed, _FORGET])
            return chosen, {"kind": "random", "fraction": fraction, "seed": seed}
        case "ids":
            content, record = _read(request)
            return _rows_of_ids(source, _parse_ids(content, record["file"])), record
        case _:
            content, record = _read(request)
            namespace: dict[str, Any] = {"__name__": "request", "__file__": str(request["file"])}
            exec(compile(content, str(request["file"]), "exec"), namespace)  # the text just hashed
            function = namespace.get("forget")
            if not callable(function):
                raise ValueError(
                    f"{record['file']}: expected a function "
                    "forget(id: str, label: int, class_name: str) -> bool."
                )
            return rows[[_ask(function, source, int(row)) for row in rows]], record


def _names(source: Source, name: str | int) -> list[str | int]:
    """The names in "cat,dog", as --config.request.classes=cat,dog on a command line arrives."""
    if isinstance(name, str) and name not in source.class_names:
        return [part.strip() for part in name.split(",") if part.strip()] or [name]
    return [name]


def _label(source: Source, name: str | int) -> int:
    if isinstance(name, str) and name in source.class_names:
        return source.class_names.index(name)
    if type(name) is int and 0 <= name < len(source.class_names):
        return name
    near = difflib.get_close_matches(str(name), source.class_names, 1, 0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"request.classes: {source.name} has no class {name!r}.{hint} Its classes are "
        f"{source.class_names}; integers are labels, 0..{len(source.class_names) - 1}."
    )


def _read(request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The text of a request's file, and the request as it goes into the manifest."""
    file = Path(option(request, "request", "file"))
    try:
        content = file.read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"request.file: {file} is no readable UTF-8 file ({error}).") from error
    digest = hashlib.sha256(content).hexdigest()
    return text, {"kind": request["kind"], "file": file.name, "sha256": digest}


def _parse_ids(text: str, file: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    header = next(csv.reader(lines), [])
    columns = [i for i, name in enumerate(header) if name.strip().lower() in COLUMNS]
    if not columns:
        ids = lines
    elif len(columns) > 1:
        raise ValueError(f"{file}: expected one column of {COLUMNS}, got {header}. Keep one.")
    else:
        table = list(csv.reader(lines))[1:]
        short = [row for row in table if len(row) != len(header)]
        if short:
            raise ValueError(
                f"{file}: expected {len(header)} columns as in {header}, got {short[0]}."
            )
        ids = [row[columns[0]].strip() for row in table]
    twice = [name for name, n in Counter(ids).items() if n > 1]
    if twice:
        raise ValueError(f"{file}: {some(twice)} named more than once. Name every example once.")
    return ids


def _rows_of_ids(source: Source, ids: Sequence[str]) -> Rows:
    """The rows of example ids or of image paths that end in an example id."""
    row_of = {id: row for row, id in enumerate(source.ids)}

    def find(name: str) -> int | None:
        if name in row_of:
            return row_of[name]
        parts = name.replace("\\", "/").split("/")
        # Two parts at least: class/image.png names an image, image.png alone does not.
        ends = ("/".join(parts[first:]) for first in range(1, len(parts) - 1))
        return next((row_of[end] for end in ends if end in row_of), None)

    rows = {name: find(name) for name in ids}
    unknown = [name for name, row in rows.items() if row is None]
    if unknown:
        near = [difflib.get_close_matches(name, source.ids, 1) for name in unknown[:3]]
        hints = ", ".join(repr(match[0]) for match in near if match)
        raise ValueError(
            f"request.file: {len(unknown)} of {len(ids)} are no examples of {source.name}: "
            f"{some(unknown)}. Nearest: {hints or 'none'}. Ids look like {source.ids[0]!r}; a CSV "
            f"file needs a header with one of {COLUMNS}."
        )
    outside = [name for name, row in rows.items() if row not in source.splits["train"]]
    if outside:
        raise ValueError(
            f"request.file: {some(outside)} are not in the training split of {source.name}, so no "
            "model was trained on them. Remove them."
        )
    if len(set(rows.values())) != len(rows):
        raise ValueError("request.file: several paths name one example. Name every example once.")
    return np.array(sorted(rows.values()), np.int64)


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
