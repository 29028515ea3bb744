"""Files that are written whole or not at all: text, JSON, sealed JSON, arrays; and their hashes.

**Guarantee** of what is sealed: what is read is, byte for byte, what was written. Not covered:
whoever alters a file on purpose can seal it again, so nothing is believed because of the seal.
Nothing in a file is executed.
"""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unlearn_jax.registry import UserError, brief

_ABOUT = "about"
_LARGEST = 2**30  # bytes of a JSON file
_DEEPEST = 100  # levels of it
_DEEP = f"nested deeper than {_DEEPEST} levels"


def cache_folder() -> Path:
    """Return the folder of the user's where this package keeps what saves time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unlearn_jax"


@contextlib.contextmanager
def whole(path: Path, suffix: str = ".partial") -> Iterator[Path]:
    """Yield the path of a file to write, which then takes the place of `path`.

    Folders are made. If anything fails, what was at `path` is still there.

    Args:
      path: of the file.
      suffix: of the unfinished one; processes that may write at once need different ones.

    Raises:
      OSError: it could not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + suffix)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, with the line ends that it has."""
    with whole(path) as partial:
        partial.write_bytes(text.encode("utf-8"))


def write_json(path: Path, values: Any) -> None:
    """Write values as JSON for people to read."""
    write_text(path, json.dumps(values, indent=1))


def digest(values: Any) -> str:
    """Return the sha256 of values as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the sha256 of a regular file."""
    with regular(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def regular(path: Path, most: int | float = math.inf) -> Path:
    """Return the path of a regular file, or of a link to one: reading it will end.

    Raises:
      OSError: it is something else, is larger than `most` bytes, or is not there.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "a folder, a pipe or a device", str(path))
    if found.st_size > most:
        raise OSError(errno.EFBIG, f"more than {most} bytes", str(path))
    return path


def is_name(name: Any) -> bool:
    """Tell whether a text can be the name of a file beside another one, and is no path."""
    fits = isinstance(name, str) and name.isprintable() and 0 < len(os.fsencode(name)) < 256
    return fits and os.path.basename(name) == name and name not in (".", "..")


def read_json(path: Path, what: str, fix: str = "", schema: Any = dict) -> dict[str, Any]:
    """Return the values of a JSON object in a file, which may be somebody else's.

    Args:
      path: of the file.
      what: it should be, in words, for the message.
      fix: what to do, a sentence for the message.
      schema: of the values, see `problems`.

    Raises:
      UserError: it cannot be read, is no such JSON object, or is nested too deep.
    """
    try:
        values = parse(regular(path, _LARGEST).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected {what}; {brief(error)}. {fix}".rstrip()) from error
    if wrong := problems(values, schema):
        raise UserError("\n  ".join([f"{path}: expected {what}. {fix}".rstrip(), *wrong[:10]]))
    return values


def parse(content: bytes) -> dict[str, Any]:
    """Return the values of a JSON object, which may be somebody else's.

    Raises:
      ValueError: it is none, or nested so deep that no function that reads it could end well.
    """
    try:
        values = json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise UserError(_DEEP) from error
    if not isinstance(values, dict):
        raise UserError(f"not a JSON object, {{…}}, but a {type(values).__name__}")
    level: list[Any] = [values]
    for _ in range(_DEEPEST):
        parts = (part for of in level for part in (of.values() if isinstance(of, dict) else of))
        level = [part for part in parts if isinstance(part, dict | list)]
        if not level:
            return values
    raise UserError(_DEEP)


@contextlib.contextmanager
def of_others(path: Path, what: str, fix: str = "") -> Iterator[None]:
    """Let whatever fails inside be a UserError about a file or folder of others, which it names.

    For functions that read deep into values of others: damage shows up as almost any exception.

    Args:
      path: of the file or the folder.
      what: it should be, in words, for the message.
      fix: what to do, a sentence for the message.
    """
    try:
        yield
    except UserError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
    except Exception as error:
        if getattr(error, "filename", None):  # of an OSError, whose text has it
            raise
        raise UserError(f"{path}: expected {what}; {brief(error)}. {fix}".rstrip()) from error


def problems(value: Any, schema: Any, at: str = "") -> list[str]:
    """List where `value` departs from `schema`: types, [x] for a list of x, {"*": x} for all keys.

    "u4" stands for a uint8 array with 4 axes.
    """
    if isinstance(schema, str):
        kind = {"f": np.floating, "i": np.integer, "u": np.uint8}[schema[0]]
        fits = np.issubdtype(value.dtype, kind) and value.ndim == int(schema[1])
        got = f"{value.dtype} {list(value.shape)}"
        return [] if fits else [f"{at}: expected {kind.__name__}, {schema[1]} axes; got {got}"]
    kind = type(schema) if isinstance(schema, dict | list) else schema
    if not isinstance(value, kind):
        return [f"{at}: expected {getattr(kind, '__name__', kind)}, got {type(value).__name__}"]
    if isinstance(schema, list):
        return [p for i, entry in enumerate(value) for p in problems(entry, *schema, f"{at}[{i}]")]
    if not isinstance(schema, dict):
        return []
    found = [f"{at}/{key} is missing" for key in schema if key != "*" and key not in value]
    for key in (key for key in value if "*" in schema or key in schema):
        found += problems(value[key], schema.get(key, schema.get("*")), f"{at}/{key}")
    return found


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return all whole lines of a file of JSON lines; one cut short by a kill is left out.

    Raises:
      UserError: there is something else.
    """
    if not path.exists():
        return []
    try:
        content = regular(path).read_bytes()
        return [parse(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected a JSON object on each line; {brief(error)}.") from error


def sealed(values: Mapping[str, Any], kind: str) -> str:
    """Return the text of a sealed record; raise UserError for what JSON lacks, such as NaN."""
    values = json.loads(json.dumps({**values, "format": kind}, allow_nan=False))
    return json.dumps(values | {"sha256": digest(values)}, indent=1, sort_keys=True) + "\n"


def write_sealed(path: Path, values: Mapping[str, Any], kind: str) -> None:
    """Write a record with a sha256 of its content; kind: its format and version."""
    write_text(path, sealed(values, kind))


def read_sealed(path: Path, kind: str, what: str) -> dict[str, Any]:
    """Return the values of a file that is, byte for byte, what `write_sealed` wrote.

    Args:
      path: of the file.
      kind: format and version.
      what: the record, in words, for messages.

    Raises:
      UserError: no such file, another record, or an altered one.
    """
    try:
        found = regular(path, _LARGEST).read_bytes()  # as text, line ends would be hidden
        values = parse(found)
        name, _ = values.pop("format"), values.pop("sha256")
        again = sealed(values, name).encode()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: expected {what} ({kind}); {brief(error)}.") from error
    if name != kind:
        raise UserError(f"{path}: expected format {kind!r}, got {name!r}.")
    if again != found:
        raise UserError(f"{path}: altered after it was written: the sha256 of its content differs.")
    return values


def write_arrays(path: Path, arrays: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write arrays as .npz with a JSON description, and a checksum of both."""
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    described = json.dumps(dict(about), sort_keys=True)
    checked = json.dumps({"about": described, "sha256": _of_arrays(arrays, described)})
    with whole(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays, **{_ABOUT: np.array(checked)})


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return (arrays, about) of a file that `write_arrays` has written.

    Raises:
      FileNotFoundError: there is none.
      UserError: it is something else, or was changed.
    """
    if not path.exists():
        raise FileNotFoundError(f"Expected a file of arrays at {path}, found none.")
    try:
        arrays = unzip(regular(path))
        checked = json.loads(str(arrays.pop(_ABOUT)))
        if checked["sha256"] != _of_arrays(arrays, checked["about"]):
            raise UserError("its checksum is wrong")
        return arrays, json.loads(checked["about"])
    except Exception as error:  # damage shows up as almost any exception type
        raise UserError(
            f"{path} is damaged, or no file of this package ({brief(error)})."
        ) from error


def unzip(file: Path | io.BytesIO) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file, which may be somebody else's; no pickle is ever opened.

    Raises:
      UserError: they would take half of the memory: a small file can claim any size.
      Exception: of almost any type, if it is damaged.
    """
    with zipfile.ZipFile(file) as archive:
        size = sum(info.file_size for info in archive.infolist())
    if size > memory() / 2:
        raise UserError(f"arrays of {size / 2**30:.0f} GiB, too many for this memory")
    with np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    if other := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise UserError(f"{other[0]!r} in it is no array")
    return arrays


def memory() -> int:
    """Return the bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _of_arrays(arrays: Mapping[str, np.ndarray], about: str) -> str:
    found = hashlib.sha256(about.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        found.update(array.tobytes())
    return found.hexdigest()
