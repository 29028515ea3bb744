"""Taking images out of prepared records, so that no file there has their pixels any more.

Shards with such images are written again under new names, then the index, then the hashes; the
manifest that names them replaces the old one, and only then old files are deleted. Killed before
that replacement the records are as they were, killed after it they are the new ones; the same call
does the rest. A manifest remembers its lists, so that what was done is not done, or refused, again.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from tqdm import tqdm

from unlearn_jax import files
from unlearn_jax.data import copies, index, names, records
from unlearn_jax.data.readers import Listing
from unlearn_jax.registry import UserError

_GENERATION = re.compile(r"(\.\d+)?\.array_record$")  # before it, all names end in -of-00313


def remove(folder: Path, file: str) -> tuple[dict[str, Any], int]:
    """Take the images that a list names out of records; return the manifest and their number.

    The number is 0 if the same list was done before. `forgotten.json` stays as it is.

    Args:
        folder: prepared records.
        file: the list, see `names.find_images`; of a released table the images to forget.

    Raises:
        UserError: another call is at work; no records, or damaged ones; a name that means no
            image, none at all, or all of a split. The records are as before.
        OSError: a file could not be read or written; the same call goes on.
    """
    names.read_text(file, "--remove")
    entry: dict[str, Any] = {"list": Path(file).name, "sha256": files.file_digest(Path(file))}
    records.read_manifest(folder)  # else there is nothing to lock
    with records.lock(folder):
        manifest = records.read_manifest(folder)
        before = manifest.get("removed", [])
        if any(done["sha256"] == entry["sha256"] for done in before):
            sweep(folder, manifest)
            return manifest, 0
        listing = records.list_records(folder, tuple(manifest["splits"]))
        keep = _kept(listing, file)
        sweep(folder, manifest)
        entry["n"] = int((~keep).sum())
        _commit(folder, manifest | {"removed": [*before, entry]}, listing, keep)
        manifest = records.read_manifest(folder)
        sweep(folder, manifest)
        return manifest, entry["n"]


def _kept(listing: Listing, file: str) -> Bool[np.ndarray, "n"]:
    """Tell which rows stay."""
    ids = names.Ids(listing.ids, listing.splits)
    gone, _ = names.find_images(file, ids, "--remove", listing.name, role="forget")
    keep = np.ones(len(listing.ids), bool)
    keep[gone] = False
    empty = [
        split for split, rows in listing.splits.items() if not keep[rows.start : rows.stop].any()
    ]
    if keep.all() or empty:
        which = f"all images of {empty}" if empty else "no image to remove"
        raise UserError(
            f"--remove: expected some images of {listing.name}, but not all of a split, {file} "
            f"names {which}. Correct the list, or prepare records without that split."
        )
    return keep


def _commit(
    folder: Path, manifest: dict[str, Any], listing: Listing, keep: Bool[np.ndarray, "n"]
) -> None:
    """Write what is left beside the old files; the new manifest then puts it in their place."""
    generation, first, splits = len(manifest["removed"]), 0, {}
    bar = tqdm(desc="rewriting", total=len(keep), delay=2, unit="image", disable=None)
    for split, facts in manifest["splits"].items():
        shards = []
        for shard in facts["shards"]:
            rows = np.arange(first, first + shard["count"])
            first += len(rows)
            left = rows[keep[rows]]
            if 0 < len(left) < len(rows):
                path = folder / _GENERATION.sub(f".{generation}.array_record", shard["file"])
                shard = _rewrite(path, listing, left.tolist())
            shards += [shard] if len(left) or not len(rows) else []
            bar.update(len(rows))
        splits[split] = facts | {"count": sum(s["count"] for s in shards), "shards": shards}
    bar.close()
    ids = [id for id, stays in zip(listing.ids, keep, strict=True) if stays]
    path = folder / f"index.{generation}.gz"
    index.write(path, index.Index(ids, listing.labels[keep], listing.sizes[keep]))
    records.sync(path)
    hashes = copies.load(folder / copies.FILE, listing.ids)
    if hashes:
        copies.save(folder / copies.FILE, ids, copies.Hashes(*(of[keep] for of in hashes)))
    elif not copies.load(folder / copies.FILE, ids):  # written before a kill
        (folder / copies.FILE).unlink(missing_ok=True)  # hashed anew when they are needed
    named = {"splits": splits, "index": files.file_digest(path), "index_file": path.name}
    records.write_manifest(folder, manifest | named)


def _rewrite(path: Path, listing: Listing, rows: Sequence[int]) -> dict[str, Any]:
    """Write a shard of these rows and return its entry in the manifest."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        writer = records.open_writer(partial)
        for row in rows:
            writer.write(records.pack(listing.ids[row], listing.encoded([row])[0]))
        writer.close()
    except RuntimeError as error:
        raise OSError(f"{partial} could not be written: {error}") from error
    return records.seal(partial, path, len(rows))


def sweep(folder: Path, manifest: dict[str, Any]) -> None:
    """Delete what preparations, removals and caches left; never what the manifest names.

    Raises:
        OSError: a file cannot be deleted.
    """
    named = {shard["file"] for split in manifest["splits"].values() for shard in split["shards"]}
    named.add(manifest.get("index_file", records.INDEX))
    caches = f"*-{'[0-9a-f]' * 32}.npz"  # hashes that were not prepared, see `data._hashes`
    for pattern in ("*.array_record", records.INDEX, "index.[0-9]*.gz", caches, "*.partial*"):
        for path in folder.glob(pattern):
            if path.name not in named:
                path.unlink()
    if (folder / records.UNFINISHED).exists():
        shutil.rmtree(folder / records.UNFINISHED)
