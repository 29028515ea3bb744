"""Arrays in .npz files: written whole or not at all, damage noticed, nothing in them executed."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_ABOUT = "about"


def write(path: Path, arrays: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Writes the arrays and a JSON description of them, with a checksum of both.

    Raises:
      OSError: it could not be written; what was at `path` is still there.
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    described = json.dumps(dict(about), sort_keys=True)
    sealed = json.dumps({"about": described, "sha256": _sha256(arrays, described)})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays, **{_ABOUT: np.array(sealed)})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays, about) of a file that `write` has written.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is something else, or was changed.
    """
    if not path.exists():
        raise FileNotFoundError(f"Expected a file of arrays at {path}, found none.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        sealed = json.loads(str(arrays.pop(_ABOUT)))
        if sealed["sha256"] != _sha256(arrays, sealed["about"]):
            raise ValueError("its checksum is wrong")
        return arrays, json.loads(sealed["about"])
    except Exception as error:  # damage shows up as almost any exception type
        reason = f"{type(error).__name__}: {error}"[:200]
        raise ValueError(f"{path} is damaged, or no file of this package ({reason}).") from error


def _sha256(arrays: Mapping[str, np.ndarray], about: str) -> str:
    digest = hashlib.sha256(about.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
