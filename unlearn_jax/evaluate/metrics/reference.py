"""Cache of what is known of reference images; it cannot be stale."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from unlearn_jax import distributed, files
from unlearn_jax.evaluate.metrics import fid
from unlearn_jax.evaluate.metrics.streaming import Reference
from unlearn_jax.evaluate.towers import extractor as towers
from unlearn_jax.evaluate.towers import features
from unlearn_jax.evaluate.towers.extractor import Extractor
from unlearn_jax.registry import UserError

FORMAT = 1
"""Raised whenever the same images, tower and preprocessing come to give other numbers."""


def image_hash(image: bytes | UInt8[np.ndarray, "h w 3"]) -> str:
    """Hash an image file's bytes, or a decoded image, by SHA-256."""
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    shape = str(image.shape).encode()
    return hashlib.sha256(shape + np.ascontiguousarray(image).tobytes()).hexdigest()


def cache_key(hashes: Sequence[str], extractor: Extractor, treated: str = "") -> str:
    """Hash all that a reference depends on, but not the images' order, by SHA-256.

    Args:
      hashes: of the images, from `image_hash`.
      extractor: its tower, weights and preprocessing are all in the key.
      treated: what was done to images after they were hashed, such as the `fid_reference`.
    """
    images = hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()
    about = [FORMAT, len(hashes), images, towers.fingerprint(extractor), treated]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def reference(
    directory: Path,
    hashes: Sequence[str],
    items: Iterable[features.Item | Callable[[], features.Item]],
    extractor: Extractor,
    mesh: Mesh,
    *,
    batch_size: int,
    treated: str = "",
    keep_features: bool = False,
    **options: Any,
) -> Reference:
    """Compute moments, and on demand features, of the reference images; keep them in `directory`.

    Where a file of this `cache_key` is there and undamaged, `items` are not touched. A damaged one
    is made anew, which is said on stderr. Files are named by their key and written whole or not at
    all; an old one can be removed at any time. Several processes share the tower's
    work, the first one writes.

    Args:
      directory: of the cache.
      hashes: of the image at each position.
      items: {"position", "reference": image} of all positions, in any order.
      extractor: what features are made with.
      mesh: where the tower runs.
      batch_size: rows on all devices.
      treated: what was done to the images after they were hashed.
      keep_features: keep them, as kinds "kernel" and "cosine" need: 4 bytes a number.
      options: of `features.extract`.

    Raises:
      UserError: items that are not the positions 0..len(hashes)-1, each once.
    """
    key = cache_key(hashes, extractor, treated)
    path = directory / f"{key}{'_features' if keep_features else ''}.npz"
    # Of equal images any one's row will do: rows are stored sorted by hash.
    by_hash = np.argsort(np.array(hashes), kind="stable")
    try:
        arrays, _ = files.read_arrays(path)
        moments = fid.Moments(*(arrays.pop(name) for name in fid.Moments._fields))
        rows = arrays.pop("features", None)
    except FileNotFoundError:
        moments = None
    except (KeyError, ValueError) as error:
        print(f"warning: {error} It is computed again.", file=sys.stderr)
        moments = None
    if not distributed.everywhere(moments is not None):
        moments, found = _compute(
            len(hashes), items, extractor, mesh, batch_size, keep_features, options
        )
        rows = None if found is None else found[by_hash]
        kept = {} if rows is None else {"features": rows}
        about = {"key": key, "n": len(hashes), "provenance": dict(extractor.provenance)}
        if distributed.first():
            files.write_arrays(path, moments._asdict() | kept, about)
    if rows is not None:
        position_of_row = np.empty_like(by_hash)
        position_of_row[by_hash] = np.arange(len(by_hash))
        rows = rows[position_of_row]
    return Reference(moments, rows, key)


def _compute(n, items, extractor, mesh, batch_size, keep_features, options):
    moments, rows, seen = None, None, np.zeros(n, bool)
    batches = features.extract(
        items, {"it/reference": extractor}, mesh, batch_size=batch_size, **options
    )
    for outputs, positions, valid in batches:
        found = towers.pooled(outputs["it/reference"])
        kept = positions[valid]
        if (kept >= n).any() or seen[kept].any() or len(set(kept.tolist())) != len(kept):
            raise UserError(f"Expected positions 0..{n - 1}, each once; got {kept.tolist()}.")
        seen[kept] = True
        moments = moments or fid.empty(found.shape[1])
        moments = fid.update(moments, found, valid)
        if keep_features:
            rows = np.zeros((n, found.shape[1]), np.float32) if rows is None else rows
            rows[kept] = distributed.fetch(found)[valid]
    if not seen.all():
        raise UserError(f"Expected {n} reference images, got {int(seen.sum())}.")
    return fid.Moments(*distributed.fetch(tuple(moments))), rows
