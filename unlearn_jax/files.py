"""Files that are written whole or not at all: text, JSON, sealed JSON, arrays; and their hashes.

**Guarantee** of what is sealed: what is read is, byte for byte, what was written. Not covered:
whoever alters a file on purpose can seal it again, so nothing is believed because of the seal.
Nothing in a file is executed.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unlearn_jax.registry import UserError

_ABOUT = "about"


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
    """Return the sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return all whole lines of a file of JSON lines; one cut short by a kill is left out."""
    if not path.exists():
        return []
    text = path.read_text("utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


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
        found = path.read_bytes().decode("utf-8")  # read_text would hide other line ends
        values = json.loads(found)
        name, _ = values.pop("format"), values.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: expected {what} ({kind}); {type(error).__name__}: {error}."
        ) from error
    if name != kind:
        raise UserError(f"{path}: expected format {kind!r}, got {name!r}.")
    if sealed(values, kind) != found:
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
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        checked = json.loads(str(arrays.pop(_ABOUT)))
        if checked["sha256"] != _of_arrays(arrays, checked["about"]):
            raise UserError("its checksum is wrong")
        return arrays, json.loads(checked["about"])
    except Exception as error:  # damage shows up as almost any exception type
        reason = f"{type(error).__name__}: {error}"[:200]
        raise UserError(f"{path} is damaged, or no file of this package ({reason}).") from error


def _of_arrays(arrays: Mapping[str, np.ndarray], about: str) -> str:
    found = hashlib.sha256(about.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        found.update(array.tobytes())
    return found.hexdigest()
