"""The index of a large dataset: id, label and size of every record, so that none need be read.

A gzip file: the line `{"format": ..., "n": ...}`, n lines with the ids, then label, width and
height of all, n little-endian 32-bit integers each.
"""

import gzip
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from unlearn_jax import files
from unlearn_jax.registry import UserError, brief

FORMAT = "unlearn_jax.index.v1"
_LARGEST = 2**30  # bytes of an index, of about ten million images


class Index(NamedTuple):
    """Content of an index file; sizes are (width, height), 0 where they are not known."""

    ids: Sequence[str]
    labels: Int32[np.ndarray, "n"]
    sizes: Int32[np.ndarray, "n 2"]


def write(path: Path, index: Index) -> None:
    """Write the index, whole or not at all; equal indexes give equal bytes.

    Raises:
        UserError: an id with a line break.
    """
    ids = "".join(f"{id}\n" for id in index.ids).encode("utf-8", "surrogateescape")
    n = len(index.ids)
    if ids.count(b"\n") != n:
        raise UserError(f"{path}: expected ids without line breaks. Rename those files.")
    header = json.dumps({"format": FORMAT, "n": n}).encode()
    numbers = np.concatenate([index.labels[None], index.sizes.T]).astype("<i4").tobytes()
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(gzip.compress(header + b"\n" + ids + numbers, 6, mtime=0))
    partial.replace(path)


def read(path: Path) -> Index:
    """Read the index in a file.

    Raises:
        UserError: not one, or a damaged one (gzip has a checksum).
        OSError: it cannot be opened.
    """
    packed = files.regular(path).read_bytes()
    try:
        unpacker = zlib.decompressobj(wbits=31)  # a few bytes can unpack to many
        content = unpacker.decompress(packed, _LARGEST)
        if not unpacker.eof:
            raise UserError(f"truncated, or of more than {_LARGEST} bytes")
        header, rest = content.split(b"\n", 1)
        facts = json.loads(header)
        n = facts["n"]
        if facts["format"] != FORMAT:
            raise UserError(f"format {facts['format']!r}")
        end = len(rest) - 12 * n
        numbers = np.frombuffer(rest, "<i4", offset=end).reshape(3, n).astype(np.int32)
        ids = rest[:end].decode("utf-8", "surrogateescape").split("\n")[:-1]
        if len(ids) != n:
            raise UserError(f"{len(ids)} ids for {n} records")
    except (EOFError, KeyError, OSError, TypeError, ValueError, zlib.error) as error:
        raise UserError(
            f"{path}: expected an index ({FORMAT}), or it is damaged: {brief(error)}."
        ) from None
    return Index(ids, numbers[0], numbers[1:].T)
