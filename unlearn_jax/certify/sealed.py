"""Records as JSON with a sha256 of their content: whatever is altered by accident is noticed.

**Guarantee**: what is read is, byte for byte, what was written. Not covered: whoever alters a
record on purpose can seal it again, so nothing is believed because of the seal.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def text(values: Mapping[str, Any], kind: str) -> str:
    """The file's text; raises ValueError for what JSON does not have, such as NaN."""
    values = json.loads(json.dumps({**values, "format": kind}, allow_nan=False))
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return json.dumps(values | {"sha256": digest}, indent=1, sort_keys=True) + "\n"


def write(values: Mapping[str, Any], path: Path, kind: str) -> None:
    """Nothing; writes the file, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(text(values, kind).encode("utf-8"))
    partial.replace(path)


def read(path: Path, kind: str, what: str) -> dict[str, Any]:
    """The values of a file that is, byte for byte, what `write` wrote.

    Args:
      path: of the file.
      kind: format and version.
      what: the record, in words, for messages.

    Raises:
      ValueError: no such file, another record, or an altered one.
    """
    try:
        found = path.read_bytes().decode("utf-8")  # read_text would hide other line ends
        values = json.loads(found)
        name, _ = values.pop("format"), values.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected {what} ({kind}); {type(error).__name__}: {error}."
        ) from error
    if name != kind:
        raise ValueError(f"{path}: expected format {kind!r}, got {name!r}.")
    if text(values, kind) != found:
        raise ValueError(
            f"{path}: altered after it was written: the sha256 of its content differs."
        )
    return values
