"""Requests that were served before: what a model has forgotten, and what its data remember of it.

A model carries the requests it has served in its checkpoints. Beside the data, `forgotten.json`
lists all that ended well, and every later training leaves their images out. Both have the same
entries: `hash` of the split, `data` (name of the data set), `text` (the request in words), `date`,
and `ids` and `pixels` (hashes of decoded pixels, as hex, or none) of the forgotten images.
"""

import contextlib
import datetime
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt64
from ml_collections import ConfigDict

from unlearn_jax import files
from unlearn_jax.data.records import digest
from unlearn_jax.data.sampling import Rows
from unlearn_jax.data.sources import Source
from unlearn_jax.data.tfds_records import find_prepared
from unlearn_jax.registry import UserError, brief

FILE = "forgotten.json"
FORMAT = "unlearn_jax.forgotten.v1"
Entry = dict[str, Any]
_SCHEMA = {"hash": str, "data": str, "text": str, "date": str, "ids": [str], "pixels": [str]}
Pixels = UInt64[np.ndarray, "n 2"] | None


def entry(
    hash: str, text: str, source: Source, forget: Rows, pixels: Pixels = None, copies: str = ""
) -> Entry:
    """Return the entry of a request: what it makes models forget.

    Args:
        hash: of its split.
        text: the request in words.
        source: the data set.
        forget: the rows.
        pixels: hashes of all rows, or None.
        copies: what the request said of copies: "refuse", "forget" or "keep".
    """
    return {
        "hash": hash,
        "data": source.name,
        "text": text,
        "copies": copies,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "ids": [source.ids[row] for row in forget.tolist()],
        "pixels": [] if pixels is None else [_hex(p) for p in pixels[forget]],
    }


def rows_of(served: Entry, source: Source, pixels: Pixels = None) -> Rows:
    """Return the rows of a source that an entry means, sorted.

    Every row with the pixels of an image counts, whatever its id, unless copies were to be kept:
    then the row with the id does, if it has the pixels. A row that has the id counts all the same
    if no row has the pixels: better one image too many.

    Args:
        served: an entry.
        source: its data set as it is now; images that are gone from it are no error.
        pixels: hashes of all rows; None: only ids are compared.
    """
    row_of = {id: row for row, id in enumerate(source.ids)}
    rows = [row_of.get(id, -1) for id in served["ids"]]
    if pixels is None or not served["pixels"]:
        return np.unique(np.array([row for row in rows if row >= 0], np.int64))
    found: dict[str, list[int]] = {}
    wanted = set(served["pixels"])
    for row, value in enumerate(map(_hex, pixels)):
        if value in wanted:
            found.setdefault(value, []).append(row)
    chosen = set()
    for row, value in zip(rows, served["pixels"], strict=True):
        same = found.get(value, [])
        if row in same and served.get("copies") == "keep":
            chosen.add(row)
        else:
            chosen.update(same or ([row] if row >= 0 else []))
    return np.array(sorted(chosen), np.int64)


def in_manifest(
    source: Source, entries: Sequence[Entry], pixels: Pixels = None
) -> list[dict[str, Any]]:
    """Return requests as a manifest has them; those of other data only if they meet these."""
    found = []
    for of in entries:
        rows = rows_of(of, source, pixels)
        if len(rows) or not of.get("elsewhere"):
            found.append({"hash": of["hash"], "text": of["text"], "rows": rows.tolist()})
    return found


def rows_of_all(requests: Sequence[Mapping[str, Any]]) -> Rows:
    """Return the rows of requests as a manifest has them, sorted."""
    return np.unique(np.array([row for of in requests for row in of["rows"]], np.int64))


def place(data: ConfigDict) -> tuple[Path, str] | None:
    """Return the forgotten.json of a config's data and the name of the data in it; None: no place.

    It is inside a prepared data set, whatever that is called ("" is its name), and next to a folder
    or an .npz file, where others may be. The bundled sample has none.
    """
    path = Path(data["path"]).resolve()
    if data["kind"] == "records":
        return path / FILE, ""
    if data["kind"] in ("folder", "arrays"):
        return path.parent / FILE, path.name
    if not data["data_dir"]:
        return None
    return find_prepared(data["name"], data["data_dir"]) / FILE, ""


def of_data(where: tuple[Path, str] | None) -> list[Entry]:
    """Return the entries of a `place`, oldest first; none if there is no such file.

    Raises:
        UserError: it cannot be read, or was changed.
    """
    if where is None or not os.path.lexists(where[0]):
        return []
    # A folder may have been renamed, or be part of one: there, only pixels tell its images.
    return [
        e if where[1] in ("", e["data"]) else {**e, "ids": [""] * len(e["ids"]), "elsewhere": True}
        for e in _read(where[0])
    ]


def remember(where: tuple[Path, str], served: Entry) -> None:
    """Write an entry beside the data, once, whole or not at all.

    Raises:
        OSError: it could not be written.
        UserError: the file that is there cannot be read, or was changed.
    """
    path = where[0]
    with _alone(path.parent):
        entries = _read(path) if path.exists() else []
        served = served | {"data": where[1] or served["data"]}
        if any((e["hash"], e["data"]) == (served["hash"], served["data"]) for e in entries):
            return
        content = {"format": FORMAT, "requests": [*entries, served]}
        write(path, content)


def write(path: Path, content: dict[str, Any]) -> None:
    """Write the file with its hash, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        json.dump({**content, "digest": digest(content)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def union(*of: Sequence[Entry]) -> list[Entry]:
    """Return the entries of all, each once, in order."""
    return list({e["hash"]: e for entries in of for e in entries}.values())


def _read(path: Path) -> list[Entry]:
    try:
        content = files.parse(files.regular(path).read_bytes())
        recorded = content.pop("digest")
        if content["format"] != FORMAT or recorded != digest(content):
            raise UserError("it was changed after it was written")
        wrong = files.problems(content["requests"], [_SCHEMA])
        if wrong or any(len(e["pixels"]) not in (0, len(e["ids"])) for e in content["requests"]):
            raise UserError(f"it has other entries {wrong[:1]}")
        return content["requests"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected the list of what was forgotten ({FORMAT}): {brief(error)}. Without "
            "it, forgotten images would be trained on again. Restore it from a copy."
        ) from error


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other writers out, where the file system has locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _hex(pixels: UInt64[np.ndarray, "2"]) -> str:
    return pixels.astype("<u8").tobytes().hex()
