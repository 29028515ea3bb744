"""Prepared records: encoded images in ArrayRecord shards, with a manifest and an index.

    DIR/manifest.json                        what follows, and a hash of itself
    DIR/index.gz                             id, label and size of every image, see `index`
    DIR/train-00000-of-00313.array_record    one record per image: id, a zero byte, the image file
    DIR/quarantine.csv                       path and reason of every file that is no image
    DIR/copies.npz                           hashes of all images, see `copies`; may be missing
    DIR/forgotten.json                       what models were made to forget, see `served`

`python -m unlearn_jax.prepare` writes them. The manifest has format, name, source (layout, lists
and how images are stored), class_names, splits (count and shards, each with file, count, bytes and
sha256), index (its sha256), quarantined (a count), plan (a hash of the files and the options) and
hash, the sha256 of the canonical JSON of all the rest. Rows are in the order of the shards.

Once images were taken out (`removal`), it also has removed (list, sha256 and n of every list of
them) and index_file; index and shards that were written anew have a number in their names.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from array_record.python import array_record_module as array_record
from array_record.python.array_record_data_source import ArrayRecordDataSource

from unlearn_jax import files
from unlearn_jax.data import index, photos
from unlearn_jax.data.readers import Listing, Survey, check_splits, split_ranges
from unlearn_jax.files import file_digest
from unlearn_jax.registry import UserError, brief

FORMAT = "unlearn_jax.records.v1"
MANIFEST, INDEX = "manifest.json", "index.gz"
_SHARD = {"file": str, "count": int, "bytes": int, "sha256": str}
_SCHEMA = {"name": str, "class_names": [str], "index": str, "plan": str}
_SCHEMA |= {"splits": {"*": {"count": int, "shards": [_SHARD]}}}
UNFINISHED = "unfinished"  # folder of what is known of finished shards, until all are
_AGAIN = "Prepare it again into a new folder, or copy it again."


def pack(id: str, image: bytes) -> bytes:
    """Pack an id, of any bytes, and an image into one record."""
    return _id_bytes(id) + b"\0" + image


def _id_bytes(id: str) -> bytes:
    return id.encode("utf-8", "surrogateescape")


def open_writer(path: Path) -> Any:
    """Open a writer with `write(record)` and `close()`; the file depends on the records only."""
    return array_record.ArrayRecordWriter(str(path), "group_size:1,uncompressed")


@contextlib.contextmanager
def lock(folder: Path, shared: bool = False) -> Iterator[Callable[[], None]]:
    """Keep other writers out of the folder; the system ends the lock with the process.

    A shared one admits others that share: until the function is called, which waits for them.

    Raises:
        UserError: another one is at work there.
        OSError: there is no such folder.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        yield lambda: fcntl.flock(handle, fcntl.LOCK_EX)
    except BlockingIOError as error:
        raise UserError(
            f"--out: another preparation is at work in {folder}. Wait for it."
        ) from error
    finally:
        os.close(handle)


def seal(partial: Path, path: Path, count: int) -> dict[str, Any]:
    """Give a shard that is written its name, once it is on disk; return what a manifest has of it.

    Raises:
        OSError: it cannot be read, or not be renamed.
    """
    sync(partial)
    facts = {"file": path.name, "count": count, "bytes": partial.stat().st_size}
    facts |= {"sha256": file_digest(partial)}
    partial.replace(path)
    return facts


def sync(path: Path) -> None:
    """Wait until a file is on disk; raises OSError if it cannot be."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str | bytes) -> None:
    """Write a file, whole or not at all; raises OSError if it cannot be written."""
    partial = path.with_name(f"{path.name}.partial{os.getpid()}")
    partial.write_bytes(text.encode() if isinstance(text, str) else text)
    sync(partial)
    partial.replace(path)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest with its hash, atomically; raises OSError if it cannot be written."""
    rest = {key: value for key, value in manifest.items() if key != "hash"}
    write_text(folder / MANIFEST, json.dumps(rest | {"hash": digest(rest)}, indent=1))


def digest(values: Any) -> str:
    """Return the sha256 of values as canonical JSON."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of prepared records and check its hash.

    Raises:
        UserError: none there, or a changed one.
    """
    path = folder / MANIFEST
    try:
        manifest = files.read_json(path, "the manifest of prepared records")
    except UserError as error:
        raise UserError(
            f"data.path: expected a folder with prepared records; {error} Make them with: python "
            "-m unlearn_jax.prepare --source=... --out=... (an interrupted preparation goes on "
            "with the same command)."
        ) from error
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{path}: expected format {FORMAT}, got {manifest.get('format')!r}. {_AGAIN}"
        )
    rest = {key: value for key, value in manifest.items() if key != "hash"}
    if manifest.get("hash") != digest(rest):
        raise UserError(f"{path}: the manifest was changed after it was written. {_AGAIN}")
    wrong = files.problems(manifest, _SCHEMA) or _misfits(manifest)
    if wrong:
        raise UserError("\n  ".join([f"{path} is no manifest of records. {_AGAIN}", *wrong[:10]]))
    return manifest


def _misfits(manifest: Mapping[str, Any]) -> list[str]:
    """List names that are paths or no line, and counts that do not add up."""
    names, wrong = [manifest.get("index_file", INDEX)], []
    if not manifest["name"].isprintable():  # messages have it
        wrong.append(f"no name: {manifest['name']!r}")
    for split, facts in manifest["splits"].items():
        names += [shard["file"] for shard in facts["shards"]]
        counts = [shard["count"] for shard in facts["shards"]]
        if min(counts, default=0) < 0 or sum(counts) != facts["count"]:
            wrong.append(f"{split}: {facts['count']} images, in its shards {counts[:5]}")
    return wrong + [f"no file beside it: {name!r}" for name in names if not files.is_name(name)]


def list_records(folder: Path, splits: Sequence[str]) -> Listing:
    """Return the images of prepared records; a shard is opened when it is first read.

    Raises:
        UserError: manifest, index and shards do not agree, or there is no such split.
    """
    manifest = read_manifest(folder)
    check_splits(splits, manifest["splits"], str(folder))
    path = folder / manifest.get("index_file", INDEX)
    if not path.exists() or file_digest(path) != manifest["index"]:
        raise UserError(f"{path}: missing, or not the index of this manifest. {_AGAIN}")
    everything = index.read(path)
    counts = {split: facts["count"] for split, facts in manifest["splits"].items()}
    if sum(counts.values()) != len(everything.ids):
        raise UserError(
            f"{path}: expected {sum(counts.values())} images as in {MANIFEST}, got "
            f"{len(everything.ids)}. {_AGAIN}"
        )
    in_index = split_ranges(list(counts), list(counts.values()))
    rows = [row for split in splits for row in in_index[split]]
    ids = [everything.ids[row] for row in rows]
    shards = [shard for split in splits for shard in manifest["splits"][split]["shards"]]
    check_shards(folder, shards)
    # The counts in the names save opening every shard now.
    records = ArrayRecordDataSource(
        [f"{folder / shard['file']}[0:{shard['count']}]" for shard in shards]
    )

    def read_images(rows: Sequence[int]) -> list[bytes]:
        images = []
        for row in rows:
            try:
                id, _, image = records[row].partition(b"\0")
            except Exception as error:
                raise UserError(
                    f"{folder}: the record of {ids[row]} is damaged ({brief(error)}). {_AGAIN}"
                ) from error
            if id != _id_bytes(ids[row]):
                raise UserError(
                    f"{folder}: expected the record of {ids[row]}, got that of "
                    f"{id[:100].decode(errors='replace')!r}: a shard of another preparation. "
                    f"{_AGAIN}"
                )
            images.append(image)
        return images

    return Listing(
        name=manifest["name"],
        class_names=tuple(manifest["class_names"]),
        ids=ids,
        labels=everything.labels[rows],
        splits=split_ranges(splits, [counts[split] for split in splits]),
        encoded=read_images,
        sizes=everything.sizes[rows],
        survey=Survey(photos.quarantined(folder / photos.QUARANTINE)),
    )


def check_shards(folder: Path, shards: Iterable[Mapping[str, Any]], contents: bool = False) -> None:
    """Check that every shard is there with its size (and its sha256, if `contents`).

    Raises:
        UserError: naming the shards that are not.
    """
    bad = []
    for shard in shards:
        path = folder / shard["file"]
        if not path.is_file():
            bad.append(f"{shard['file']} is missing")
        elif path.stat().st_size != shard["bytes"]:
            bad.append(f"{shard['file']} has {path.stat().st_size} bytes, not {shard['bytes']}")
        elif contents and file_digest(path) != shard["sha256"]:
            bad.append(f"{shard['file']} has another sha256 than when it was written")
    if bad:
        more = f"\n  and {len(bad) - 10} more" if len(bad) > 10 else ""
        listed = "".join(f"\n  {line}" for line in bad[:10])
        raise UserError(
            f"{folder}: {len(bad)} shards are not as {MANIFEST} says:{listed}{more}\n{_AGAIN}"
        )
