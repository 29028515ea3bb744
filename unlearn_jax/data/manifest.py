"""What the manifest of a split must hold, which may be somebody else's; see `splits.resolve`."""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from unlearn_jax import files
from unlearn_jax.data.sampling import Rows
from unlearn_jax.registry import UserError

_KINDS = {
    "classes": {"classes": [str]},
    "random": {"fraction": int | float, "seed": int},
    "ids": {"file": str},
    "predicate": {"file": str},
}
_DATA = {"name": str, "n": int, "fingerprint": str}
_SERVED = [{"hash": str, "text": str, "rows": list}]
_SCHEMA: dict[str, Any] = {
    "dataset": _DATA,
    "holdout": {"split": str},
    "counts": dict.fromkeys(("train", "forget", "*"), int),
}
_SCHEMA |= {"sets": {"*": list}, "hash": str, "poison": dict | None}
# Later versions have these, too.
_LATER = {"proxy": dict | None, "class_names": [str], "withdrawn": list, "held_out": list}
_LATER |= {"served": _SERVED, "apart": _SERVED, "copies": dict | None, "near": list, "id_keys": str}


def problems(manifest: Mapping[str, Any], sets: Mapping[str, str]) -> list[str]:
    """List what is wrong with the values of a manifest.

    Args:
        manifest: of a split.
        sets: the key of each set.
    """
    later = {key: kind for key, kind in _LATER.items() if key in manifest}
    asked = manifest.get("request")
    kind = asked.get("kind") if isinstance(asked, dict) else None
    request = {"kind": str} | (_KINDS.get(kind, {}) if isinstance(kind, str) else {})
    found = files.problems(manifest, _SCHEMA | later | {"request": request})
    found += [f"/request: unknown kind {kind!r}"] if kind not in [*_KINDS] else []
    for of in () if found else (manifest.get("proxy"), manifest["poison"]):
        wanted = _DATA if of is manifest.get("proxy") else {"rows": list, "pattern": str}
        found += [] if of is None else files.problems(of, wanted)
    if found:
        return found
    lists = {f"/sets/{key}": manifest["sets"].get(key, "missing") for key in sets.values()}
    lists |= {f"/{key}": manifest.get(key, []) for key in ("withdrawn", "held_out")}
    lists |= {"/poison": (manifest["poison"] or {"rows": []})["rows"]}
    lists |= {f"/{key}/{i}": of["rows"] for key in ("served", "apart")
              for i, of in enumerate(manifest.get(key, ()))}  # fmt: skip
    n = manifest["dataset"]["n"] + (manifest.get("proxy") or {"n": 0})["n"]
    for name, values in lists.items():
        try:
            listed = rows(values)
            inside = not listed.size or 0 <= listed.min() <= listed.max() < n
        except (ValueError, OverflowError):
            inside = False
        found += [] if inside else [f"{name}: expected row numbers below {n}"]
    return found + _keys(manifest)


def _keys(manifest: Mapping[str, Any]) -> list[str]:
    try:
        keys = base64.b64decode(manifest.get("id_keys", ""), validate=True)
        fine = "id_keys" not in manifest or len(keys) == 8 * manifest["dataset"]["n"]
    except ValueError:
        fine = False
    return [] if fine else ["/id_keys: expected 64 bits for each image, in base64"]


def rows(values: Any) -> Rows:
    """Return a list of row numbers as an array.

    Raises:
        ValueError: it is none.
    """
    found = np.array(values)
    if found.ndim != 1 or (found.size and found.dtype.kind != "i"):
        raise UserError("expected a list of row numbers")
    return found.astype(np.int64)
