"""Which images and classes a list means: the one resolver of requests, retain lists, evaluations.

A name means an image if it is the image's whole id, or a path that ends in it. Part of an id never
does, nor does a path into another split. Whatever means no image is an error, never a guess.
"""

import bisect
import csv
import difflib
import os
import re
import traceback
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unlearn_jax.data.readers import some
from unlearn_jax.data.sampling import Rows
from unlearn_jax.data.sources import Source
from unlearn_jax.registry import UserError

NONE, SEVERAL = -1, -2  # instead of a row
_DELIMITERS = ",;\t"
_WORDS = {"id", "image", "img", "path", "file", "photo", "picture", "filename", "filepath"}
_WORDS |= {"imageid", "imagepath", "imgpath", "imagefile", "imagename", "imgname", "photoid"}
_SIGNS = {"forget": -1, "retain": 1}  # of the labels in the released lists
# Folders that the same split of a published data set lies in.
_TRAIN = ("train", "train_256", "train_large", "data_256", "data_256_standard", "data_large")
_FOLDERS = dict.fromkeys(_TRAIN, "train")
_FOLDERS |= {"val": "val", "val_256": "val", "val_large": "val", "validation": "val"}
_FOLDERS |= {"test": "test", "test_256": "test", "test_large": "test"}
# Folders that are no other name of a published one, but certainly of another split than train.
_SPLITS = _FOLDERS | {"training": "train", "valid": "val", "testing": "test"}


class Name(NamedTuple):
    """A name as a list has it, and its line in the file, from 1."""

    text: str
    line: int


class Ids:
    """The ids of a data set, to look names up in.

    Args:
        ids: one per row.
        splits: rows of each split, by name.
        root: the folder that the ids are paths in; "" if there is none.
        bad: why files could not be read, by the ids that they would have.
    """

    def __init__(
        self,
        ids: Sequence[str],
        splits: Mapping[str, range] = {},
        root: str = "",
        bad: Mapping[str, str] = {},
    ):
        self.ids, self.splits, self.root, self.bad = ids, splits, root, bad
        self.rows = {id: row for row, id in enumerate(ids)}
        self.deepest = max((id.count("/") for id in ids), default=0) + 1
        self.same: dict[str, int] = {}  # by the id in Unicode's normal form
        self.alias: dict[str, int] = {}  # by the id with one name for the folders of a split
        for row, id in enumerate(ids):
            path = _normal(id)
            for table, key in ((self.same, path), (self.alias, _canonical(path))):
                table[key] = SEVERAL if key in table else row
        named = [_FOLDERS[split] for split in splits if split in _FOLDERS]
        if len(named) > len({*named}):  # train and train_256 are two splits of its own
            self.alias = {}
        roots = (root, os.path.abspath(root), os.path.realpath(root)) if root else ()
        self.roots = {f"{_clean(r).rstrip('/')}/" for r in roots if r != "."}
        own = {name.lower(): name for name in splits if name not in _SPLITS}
        self.folders = {**_SPLITS, **own}  # to the split that they are of
        self.order: list[str] = []  # made when first needed
        self.comments = not any(id.startswith("#") for id in ids)

    def find(self, name: str) -> int:
        """Return the row that a name means; NONE or SEVERAL if it is not one."""
        if name in self.rows:
            return self.rows[name]
        path = _clean(name)
        for root in self.roots:
            if path.startswith(root):
                return self.same.get(path.removeprefix(root), NONE)
        parts = path.split("/")
        for table, key in ((self.same, str), (self.alias, _canonical)):
            found = set()
            for start in range(max(0, len(parts) - self.deepest), len(parts)):
                row = table.get(key("/".join(parts[start:])), NONE)
                if row != NONE and not self._elsewhere(parts[:start], row):
                    found.add(row)
                if found and not start:
                    break  # all of it
            if found:
                return found.pop() if len(found) == 1 else SEVERAL
        return NONE

    def _elsewhere(self, before: Sequence[str], row: int) -> bool:
        """Tell whether the folders before an id belong to another split than the row's."""
        if row < 0:
            return False
        split = next((name for name, rows in self.splits.items() if row in rows), "")
        has_own = self.ids[row].partition("/")[0].lower() in self.folders
        names = (folder.lower() for folder in reversed(before[-1:] if has_own else before))
        named = next((self.folders[name] for name in names if name in self.folders), "")
        return bool(split and named) and named != _SPLITS.get(split, split)

    def nearest(self, name: str) -> str:
        """Return the id most like a name that means none, or ""."""
        self.order = self.order or sorted(self.ids)
        path, order = _clean(name), self.order
        same_file = [id for id in self.ids if id.rpartition("/")[2] == path.rpartition("/")[2]]
        at = bisect.bisect(order, path)
        near = same_file[:500] or order[max(0, at - 500) : at + 500]
        return next(iter(difflib.get_close_matches(path, near, 1, 0.3)), "")


def ids_of(source: Source) -> Ids:
    """Return the ids of a source, to look names up in."""
    return Ids(source.ids, source.splits, source.root, source.survey.bad)


def read_text(file: str | Path, where: str) -> str:
    """Return the text of a UTF-8 file, or of one in UTF-16 that says so by its first two bytes.

    Other bytes are kept as `os.fsdecode` keeps them, since names of files may have any.

    Raises:
        UserError: there is none; the message starts with `where`, the option that named it.
    """
    if not str(file):
        raise UserError(
            f"{where}: expected the path of a list, got ''. Write one name on each line."
        )
    try:
        if not Path(file).is_file():
            raise OSError("there is no such file")
        data = Path(file).read_bytes()
        wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = data.decode("utf-16") if wide else data.decode("utf-8-sig", "surrogateescape")
        if "\0" in text:
            raise OSError("it has zero bytes; is it UTF-16 without its mark?")
        return text
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: {file} is no readable UTF-8 file ({error}).") from error


def find_images(
    file: str | Path, ids: Ids, where: str, dataset: str, *, role: str = "", column: str = ""
) -> tuple[Rows, dict[str, Any]]:
    """Return the rows that a list of images means, each once, and a record of how it was read.

    Args:
        file: one id or path per line; or a table (comma, semicolon or tab) whose header names a
            column of images. Blank lines are skipped, and lines that start with # unless an id
            does.
        ids: of the data set.
        where: the option that gave the file, for messages.
        dataset: its name, for messages.
        role: "forget" or "retain": of a released table, with columns imgs and labels, only the rows
            with labels below 0, or above 0.
        column: the header of the column to use; "": the only one that can be.

    Returns:
        Rows in the order of the list. The record counts names, repeats and paths, with an example:
        {"named", "repeated", "by_path", "example"}, and "of_another_role" if there are such rows.

    Raises:
        UserError: no such file, no table, or names that mean no image: how many, the first ten
            with their lines, and the nearest ids.
    """
    text = read_text(file, where)
    names = read_names(text, str(file), ids, role, column, where)
    rows = [ids.find(name.text) for name in names]
    wrong = [i for i, row in enumerate(rows) if row < 0]
    if wrong:
        _refuse_unreadable([names[i] for i in wrong], ids, file, where)
        lines = []
        for i in wrong[:10]:
            near = "it ends in several ids" if rows[i] == SEVERAL else ids.nearest(names[i].text)
            if near and rows[i] == NONE:
                other = f"/{_clean(names[i].text)}".endswith(f"/{_normal(near)}")
                near = f"{'another file than' if other else 'nearest:'} {_show(near)}"
            lines.append(f"\n  line {names[i].line}: {_show(names[i].text)} ({near or 'no id'})")
        more = f"\n  and {len(wrong) - 10} more" if wrong[10:] else ""
        example = f"Ids look like {_show(ids.ids[0])}; " if ids.ids else ""
        raise UserError(
            f"{where}: {len(wrong)} of the {len(names)} names in {file} are no examples of "
            f"{dataset}:{''.join(lines)}{more}\n{example}a path must end in a whole id, in no "
            "folder of another split, and a table needs a header such as id or path. Correct these "
            "lines, or remove them."
        )
    unique = np.array(list(dict.fromkeys(rows)), np.int64)
    paths = [i for i, row in enumerate(rows) if names[i].text != ids.ids[row]]
    record = {"named": len(names), "repeated": len(names) - len(unique), "by_path": len(paths)}
    if left_out := len(read_names(text, str(file), ids, "", column, where)) - len(names):
        record["of_another_role"] = left_out
    if paths:
        record["example"] = [names[paths[0]].text, ids.ids[rows[paths[0]]]]
    return unique, record


def _refuse_unreadable(names: Sequence[Name], ids: Ids, file: str | Path, where: str) -> None:
    """Raise UserError if names mean files that are there, but could not be read."""
    reasons, there = list(ids.bad.values()), Ids(list(ids.bad), {}, ids.root)
    found = [(name, row) for name in names if (row := there.find(name.text)) >= 0]
    if found:
        lines = [f"\n  line {n.line}: {_show(n.text)}: {reasons[row]}" for n, row in found[:10]]
        more = f"\n  and {len(found) - 10} more" if found[10:] else ""
        raise UserError(
            f"{where}: {len(found)} of the images in {file} cannot be read:{''.join(lines)}{more}\n"
            "Put whole files in their place (from a copy, or saved again as PNG), or remove them "
            "from the list: what cannot be read is not trained on."
        )


def read_names(
    text: str, file: str, ids: Ids, role: str = "", column: str = "", where: str = "request.file"
) -> list[Name]:
    """Return the names in a list or a table, see `find_images`, in order, repeats included."""
    lines = re.split(r"\r\n|\n|\r", text)
    skipped = [not s.strip() or (ids.comments and s.lstrip().startswith("#")) for s in lines]
    first = next((i for i, skip in enumerate(skipped) if not skip), None)
    if first is None:
        return []
    head = lines[first]
    delimiter = max(_DELIMITERS, key=head.count)
    try:
        header = [cell.strip() for cell in next(csv.reader([head], delimiter=delimiter))]
        words = any(map(_of_images, header)) if len(header) > 1 else _of_images(head, alone=True)
        known = any(ids.find(name) != NONE for name in (_written(head, ids), *header))
        is_table = column or (words and not known)
        if not is_table:
            plain = enumerate(lines, start=1)
            return [
                Name(_written(s, ids), n) for (n, s), skip in zip(plain, skipped, strict=True)
                if not skip
            ]  # fmt: skip
        # A cell may go over lines, so comments are rows that begin with #, not lines that do.
        reader = csv.reader((f"{s}\n" for s in lines[first:]), delimiter=delimiter, strict=True)
        table = [(row, first + reader.line_num) for row in reader if any(map(str.strip, row))][1:]
        table = [(row, n) for row, n in table if not (ids.comments and row[0].strip()[:1] == "#")]
    except csv.Error as error:
        raise UserError(f"{where}: {file} is no table: {error}.") from error
    short = [(row, n) for row, n in table if len(row) != len(header)]
    if short:
        row, n = short[0]
        raise UserError(
            f"{where}: {file}, line {n}: expected {len(header)} columns as in {header}, got {row}."
        )
    at = _column(header, table, ids, column, file, where)
    lowered = [name.lower() for name in header]
    if role and lowered[at] == "imgs" and "labels" in lowered:
        sign = lowered.index("labels")
        table = [(row, n) for row, n in table if _sign(row[sign], file, n) == _SIGNS[role]]
    return [Name(row[at].strip(), n) for row, n in table]


def label_of(source: Source, name: str | int, where: str) -> int:
    """Return the label of a class: by its name, with or without a leading /, else by its number.

    Raises:
        UserError: no such class; the message has the nearest.
    """
    known, text = source.class_names, _normal(str(name))
    exact = {known_name: label for label, known_name in enumerate(known)}
    labels = {_normal(known_name): label for known_name, label in exact.items()} | exact
    for candidate in (str(name), text, text.lstrip("/")):
        if candidate in labels:
            return labels[candidate]
    # Not 02, which may mean a folder 2 that has another label.
    if not isinstance(name, bool) and re.fullmatch("0|[1-9][0-9]{0,8}", text):
        if int(text) < len(known):
            return int(text)
    listed = str(known) if len(known) <= 20 else some(known)
    raise UserError(
        f"{where}: {source.name} has no class {name!r}.{closest(name, known)} Its classes are "
        f"{listed}; a number that is no name is a label, 0..{len(known) - 1}."
    )


def labels_of(source: Source, classes: Iterable[str | int], where: str) -> dict[str, int]:
    """Return the label of each of the classes, by what was written.

    Args:
        source: whose classes they are.
        classes: names or numbers; "cat,dog" as it comes from a command line is two of them, unless
            a class has that name.
        where: the option that gave them, for messages.

    Raises:
        UserError: one string instead of several, or no such class.
    """
    if isinstance(classes, str | int):
        raise UserError(f'{where}: expected names, as ("cat",), got {classes!r}.')
    found = {}
    for given in classes:
        try:
            found[str(given)] = label_of(source, given, where)
        except ValueError:  # not one name, so it must be several
            parts = [part.strip() for part in str(given).split(",") if part.strip()]
            if parts in ([], [str(given)]):
                raise
            found |= {part: label_of(source, part, where) for part in parts}
    return found


def explain(source: Source, labels: Mapping[str, int], rows: Rows) -> list[str]:
    """Return what was understood of written classes, a line each, with their images in rows."""
    lines = []
    for written, label in labels.items():
        name, of_class = source.class_names[label], rows[source.labels[rows] == label]
        in_folder = len(of_class) and f"{name}/" in source.ids[of_class[0]]
        kind = "folder" if in_folder else "class"
        lines.append(f"class {written}: {kind} {name!r}, label {label}, {len(of_class)} images")
    return lines


def closest(name: str | int, known: Sequence[str]) -> str:
    """Return " Did you mean ...?", of the known name most like it; "" if none is."""
    near = difflib.get_close_matches(str(name), known, 1, 0.4)
    return f" Did you mean {near[0]!r}?" if near else ""


def line_in(error: BaseException, file: str) -> str:
    """Return ", line 7", where in a file of the user's an error was raised; "" if not in it."""
    name = os.path.abspath(file)
    if isinstance(error, SyntaxError) and error.filename:
        return f", line {error.lineno}" if os.path.abspath(error.filename) == name else ""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if os.path.abspath(frame.filename) == name]
    return f", line {lines[-1]}" if lines else ""


def _column(
    header: Sequence[str], table: Sequence[Any], ids: Ids, column: str, file: str, where: str
) -> int:
    """Find the column that holds the images."""
    if column:
        if header.count(column) == 1:
            return header.index(column)
        option = where.replace("file", "column")
        raise UserError(f"{option}: {file} has no column {column!r}, only {header}.")
    choices = [i for i, name in enumerate(header) if _of_images(name)]
    if len(choices) > 1:  # by their content
        some_rows = [row for row, _ in table[:1000]]
        there = [i for i in choices if any(ids.find(row[i].strip()) >= 0 for row in some_rows)]
        choices = there or choices
    if len(choices) == 1:
        return choices[0]
    names = [header[i] for i in choices]
    raise UserError(
        f"{where}: expected one column of images in {file}, {names} could be it. Say which, with "
        "request.column or retain.column, or keep one."
    )


def _of_images(header: str, alone: bool = False) -> bool:
    """Tell whether a column of that name can hold image names; the name itself must be none.

    Args:
        header: the name.
        alone: there is no other column, so that every word must be one of a header.
    """
    if re.search(r"[/\\\d]|\.(jpe?g|png|webp|gif|bmp|tiff?)$", header.strip().strip('"'), re.I):
        return False
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", header)]
    whole, singular = "".join(words), [word.removesuffix("s") for word in words]
    if alone and not all(word in _WORDS or word == "name" for word in singular):
        return whole.removesuffix("s") in _WORDS
    return any(word in _WORDS for word in [*singular, whole.removesuffix("s")])


def _written(line: str, ids: Ids) -> str:
    """Return the name in a line: as it is if it is an id, else without quotes and outer spaces."""
    if line in ids.rows:
        return line
    line = line.strip()
    if line in ids.rows or not (len(line) > 1 and line[0] == line[-1] == '"'):
        return line
    return line[1:-1].replace('""', '"')


def _sign(label: str, file: str, line: int) -> float:
    try:
        sign = np.sign(float(label))
    except ValueError:
        sign = 0
    if sign not in (-1, 1):
        raise UserError(
            f"{file}, line {line}: expected labels below 0 (forget) or above 0 (retain), got "
            f"{label!r}."
        )
    return sign


def _normal(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _clean(name: str) -> str:
    """Return a path with plain slashes and without "./"."""
    parts = _normal(name).replace("\\", "/").split("/")
    return "/".join(
        part for i, part in enumerate(parts) if part not in ("", ".") or not (i or part)
    )


def _canonical(path: str) -> str:
    """Return the path with one name for all folders in which the same split may lie."""
    folder, slash, rest = path.partition("/")
    return f"{_FOLDERS[folder]}/{rest}" if slash and folder in _FOLDERS else path


def _show(name: str) -> str:
    """Quote a name, so that names that look alike can be told apart."""
    return ascii(name)
