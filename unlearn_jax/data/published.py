"""Published lists of classes and images, and the evaluation set of the published protocol.

The lists are those of Li et al. (ICLR 2024), protocol part 3: a JSON file of ImageNet's classes, a
text file of Places365's, CSV files of image paths.
"""

import csv
import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Int64

from unlearn_jax.data.readers import some
from unlearn_jax.data.sampling import Rows, first_per_class
from unlearn_jax.data.sources import Source

COLUMNS = ("id", "path", "image", "file", "imgs")  # what the id column of a CSV may be called
_SIGNS = {"forget": -1, "retain": 1}  # of the released labels
_PLACES = {"forget": slice(50, 100), "retain": slice(0, 50)}
_SPLITS = {"train": "train", "data": "train", "val": "val", "validation": "val"}
_NEAREST_OF = 5000  # ids at most, as comparing names is slow


def read_text(file: str | Path, where: str) -> str:
    """The text of a UTF-8 file.

    Raises:
        ValueError: there is none; the message starts with `where`, the option that named it.
    """
    try:
        return Path(file).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: {file} is no readable UTF-8 file ({error}).") from error


def read_classes(file: str | Path, role: str = "") -> tuple[str, ...]:
    """The classes that a list names, for a config's `request.classes` or `retain.classes`.

    * JSON, `{"n01443537": 0, ...}`: numbers below 100 are to be forgotten, others kept.
    * 365 lines like `/b/badlands`, the release's order of Places365: lines 51 to 100 are to be
      forgotten, lines 1 to 50 kept.
    * Any other text: one class per line; all of them, whatever the role.

    Args:
        file: the list.
        role: "forget", "retain", or "" for every class in it.

    Raises:
        ValueError: not such a file, or a class twice.
    """
    text = read_text(file, "classes")
    if text.lstrip().startswith("{"):
        try:
            numbers = json.loads(text)
            names = [
                name
                for name, number in sorted(numbers.items(), key=lambda item: item[1])
                if not role or (number < 100) == (role == "forget")
            ]
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{file}: expected JSON like {{'n01443537': 0}} ({error}). Write one class a line."
            ) from error
    else:
        names = [line.strip() for line in text.splitlines()]
        names = [name for name in names if name and not name.startswith("#")]
        if role and len(names) == 365 and all(name.startswith("/") for name in names):
            names = names[_PLACES[role]]
        names = [name.lstrip("/") for name in names]
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice or not names:
        raise ValueError(f"{file}: expected every class once, got {some(twice) or 'none'}.")
    return tuple(names)


def read_images(text: str, file: str, role: str = "") -> list[str]:
    """The ids or paths of images in a list: one per line, or a CSV with a column of `COLUMNS`.

    Blank lines and lines starting with # are skipped. In the released CSV, whose columns are
    `imgs,labels`, labels below 0 are to be forgotten, above 0 kept.

    Args:
        text: of the file.
        file: its name, for messages.
        role: "forget" or "retain": of the released CSV only those; "" for all.

    Raises:
        ValueError: rows of another length, a label that is no number or 0, an image twice.
    """
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    header = [name.strip().lower() for name in next(csv.reader(lines), [])]
    columns = [i for i, name in enumerate(header) if name in COLUMNS]
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
        if role and header[columns[0]] == "imgs" and "labels" in header:
            at = header.index("labels")
            table = [row for row in table if _sign(row[at], file) == _SIGNS[role]]
        ids = [row[columns[0]].strip() for row in table]
    twice = [name for name, n in Counter(ids).items() if n > 1]
    if twice:
        raise ValueError(f"{file}: {some(twice)} named more than once. Name every example once.")
    return ids


def match(
    names: Sequence[str], ids: Sequence[str], where: str, dataset: str
) -> Int64[np.ndarray, "_"]:
    """Which id every name means, in the order of the names: an id, or a path that ends in one.

    Folders of the same split are the same: `train_256/a/attic/1.jpg` means
    `data_256/a/attic/1.jpg`, `val/...` means `validation/...`. At least the folder and the name of
    a file must agree.

    Args:
        names: to find.
        ids: of the dataset.
        where: the option that gave the names, for messages.
        dataset: its name, for messages.

    Raises:
        ValueError: names without an id, with the nearest ids, or several names of one id.
    """
    row_of = {id: row for row, id in enumerate(ids)}
    row_of_same = {_same(id): row for id, row in row_of.items()}

    def find(name: str) -> int:
        parts = name.replace("\\", "/").split("/")
        # Two parts at least: class/image.png names an image, image.png alone does not.
        ends = [name, *("/".join(parts[start:]) for start in range(1, len(parts) - 1))]
        exact = (row_of[end] for end in ends if end in row_of)
        same = (row_of_same[_same(end)] for end in ends if _same(end) in row_of_same)
        return next(exact, next(same, -1))

    rows = np.array([find(name) for name in names], np.int64)
    unknown = [names[i] for i in np.flatnonzero(rows < 0)]
    if unknown:
        near = [_nearest(name, ids) for name in unknown[:3]]
        hints = ", ".join(repr(found[0]) for found in near if found)
        raise ValueError(
            f"{where}: {len(unknown)} of {len(names)} are no examples of {dataset}: "
            f"{some(unknown)}. Nearest: {hints or 'none'}. Ids look like {ids[0]!r}; a CSV file "
            f"needs a header with one of {COLUMNS}."
        )
    if len(np.unique(rows)) != len(rows):
        raise ValueError(f"{where}: several paths name one example. Name every example once.")
    return rows


def label_of(source: Source, name: str | int, where: str) -> int:
    """The label of a class, by its name (with or without a leading /) or number.

    Raises:
        ValueError: no such class; the message has the nearest.
    """
    known = source.class_names
    for candidate in (name, name.lstrip("/")) if isinstance(name, str) else ():
        if candidate in known:
            return known.index(candidate)
    if type(name) is int and 0 <= name < len(known):
        return name
    listed = str(known) if len(known) <= 20 else some(known)
    raise ValueError(
        f"{where}: {source.name} has no class {name!r}.{closest(name, known)} Its classes are "
        f"{listed}; integers are labels, 0..{len(known) - 1}."
    )


def closest(name: str | int, known: Sequence[str]) -> str:
    """ " Did you mean ...?", of the known name most like it; "" if none is."""
    near = difflib.get_close_matches(str(name), known, 1, 0.4)
    return f" Did you mean {near[0]!r}?" if near else ""


def evaluation_rows(
    source: Source,
    *,
    forget: Iterable[str | int],
    retain: Iterable[str | int],
    split: str = "validation",
    per_class: int = 0,
    list_file: str | Path = "",
) -> Mapping[str, Rows]:
    """{"forget": rows, "retain": rows}: the images that the protocol evaluates on (part 3).

    ImageNet: all 50 validation images of the 100 + 100 classes, in the order of the published list
    of 10,000 if it is given. Places365: `per_class=100`, the first 100 of the 50 + 50 classes.

    Args:
        source: must have the split.
        forget: classes, by name or number.
        retain: classes.
        split: where the images are.
        per_class: the first so many of each class, in the source's order; 0: all.
        list_file: ids or paths of images; only these, in this order.

    Returns:
        Rows in the order of the list, else class by class in the order given.

    Raises:
        ValueError: an unknown class or image, a class in both or without images there.
    """
    if split not in source.splits:
        raise ValueError(
            f"evaluation: {source.name} has no split {split!r}, only {tuple(source.splits)}. Add "
            "it to data.splits."
        )
    rows = np.array(source.splits[split], np.int64)
    if list_file:
        text, where = read_text(list_file, "evaluation"), f"evaluation: {list_file}"
        ids = [source.ids[row] for row in rows]
        rows = rows[match(read_images(text, str(list_file)), ids, where, source.name)]
    labels = {
        "forget": [label_of(source, name, "evaluation: forget") for name in forget],
        "retain": [label_of(source, name, "evaluation: retain") for name in retain],
    }
    both = sorted(set(labels["forget"]) & set(labels["retain"]))
    if both:
        names = [source.class_names[label] for label in both]
        raise ValueError(f"evaluation: {some(names)} cannot be both forget and retain classes.")
    chosen = {}
    for role, wanted in labels.items():
        missing = np.setdiff1d(wanted, source.labels[rows])
        if missing.size:
            names = [source.class_names[label] for label in missing]
            raise ValueError(
                f"evaluation: no {split} image of the {role} classes {some(names)} in "
                f"{list_file or source.name}."
            )
        if list_file:
            of_role = rows[np.isin(source.labels[rows], wanted)]
            chosen[role] = first_per_class(of_role, source.labels, per_class or len(rows))
        else:
            parts = [rows[source.labels[rows] == label] for label in wanted]
            chosen[role] = np.concatenate([part[: per_class or None] for part in parts])
    return chosen


def _sign(label: str, file: str) -> float:
    try:
        sign = np.sign(float(label))
    except ValueError:
        sign = 0
    if sign not in (-1, 1):
        raise ValueError(
            f"{file}: expected labels below 0 (forget) or above 0 (retain), got {label!r}."
        )
    return sign


def _same(path: str) -> str:
    """The path with one name for all folders that the same split may lie in."""
    folder, slash, rest = path.partition("/")
    split = _SPLITS.get(folder.partition("_")[0])
    return f"{split}{slash}{rest}" if split else path


def _nearest(name: str, ids: Sequence[str]) -> list[str]:
    """The id most like the name, preferably in a folder of that name."""
    folder = PurePosixPath(name).parent.name
    inside = [id for id in ids if folder and f"{folder}/" in id]
    return difflib.get_close_matches(name, (inside or ids)[:_NEAREST_OF], 1)
