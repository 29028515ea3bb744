"""Copies of images elsewhere in a data set: pixel-identical ones, and near-duplicates.

An image is not forgotten if a copy of it stays. Pixels are compared by BLAKE2b, looks by pHash
(ImageHash): brightness, tint, scale and JPEG quality hardly matter; mirroring and cropping do.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import imagehash
import numpy as np
from jaxtyping import Int, Int64, UInt8, UInt64
from PIL import Image
from tqdm import tqdm

from unlearn_jax import files
from unlearn_jax.data import index, records
from unlearn_jax.data.sources import Source

FORMAT = "unlearn_jax.copies.v1"
FILE = "copies.npz"  # beside prepared records
HASH_SIZE = 16  # frequencies per axis; with 8, a third of the pairs found were false alarms
# Finds 60 % of the near-duplicates that ciFAIR's authors saw between CIFAR-10's test and training
# images, at 3 to 5 % false alarms (by eye); 64 finds 55 % at 1 %, 72 finds 64 % at 8 %.
DISTANCE = 68  # of 256 bits; unrelated images differ in about 128
_BLOCK = 2**21  # pairs compared at once; 11 bytes each
_WORTH_KEEPING = 2**31  # pairs; fewer are compared in ten seconds
_CHUNK = 4096  # images queued at once
_PROBES = 16  # images hashed again before a cache file is believed

Rows = Sequence[int] | Int[np.ndarray, "_"]
Hash = tuple[UInt64[np.ndarray, "2"], UInt64[np.ndarray, "4"]]


class Hashes(NamedTuple):
    """Hashes of n images: of shape and RGB values, and of looks.

    Few bits of `near` differ between near-duplicates. Images of one colour each all look the same.
    """

    pixels: UInt64[np.ndarray, "n 2"]
    near: UInt64[np.ndarray, "n 4"]


def hash_image(image: UInt8[np.ndarray, "h w 3"]) -> Hash:
    """Return the hash of the pixels (0..255), 128 bits, and that of the looks, 256 bits."""
    near = imagehash.phash(Image.fromarray(image), hash_size=HASH_SIZE).hash
    return _hash_pixels(image), np.packbits(near).view("<u8").astype(np.uint64)


def _hash_pixels(image: UInt8[np.ndarray, "h w 3"]) -> UInt64[np.ndarray, "2"]:
    pixels = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    pixels.update(np.ascontiguousarray(image))
    return np.frombuffer(pixels.digest(), "<u8").astype(np.uint64)


def hash_pixels(source: Source, rows: Rows) -> UInt64[np.ndarray, "n 2"]:
    """Return the hash of the pixels of each of these n rows, read anew."""

    def hash_row(row: int) -> UInt64[np.ndarray, "2"]:
        one = source.fetch(np.array([row]))[0] if source.original is None else source.original(row)
        return _hash_pixels(one)

    return np.array([hash_row(int(row)) for row in rows], np.uint64).reshape(-1, 2)


def hash_source(source: Source, cache: Path | None = None) -> Hashes:
    """Return the hashes of every row of a source.

    Args:
        source: of n images, hashed as stored if it can tell (`original`), else as `fetch`ed.
        cache: file that keeps the hashes. One for these ids is read, after a look at a few images;
            any other, or a damaged one, is written anew. That it cannot be written is no error.

    Raises:
        UserError: an image that cannot be read; the message names it.
    """
    original, n = source.original, len(source)

    def hash_row(row: int) -> Hash:
        return hash_image(source.fetch(np.array([row]))[0] if original is None else original(row))

    known = load(cache, source.ids) if cache else None
    if known and _agrees(known, hash_row):  # other data, too, have ids such as train_0
        return known
    pixels, near = np.empty((n, 2), np.uint64), np.empty((n, 4), np.uint64)
    bar = tqdm(desc=f"hashing {source.name}", total=n, delay=2, unit="image", disable=None)
    with bar, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for first in range(0, n, _CHUNK):
            chunk = range(first, min(first + _CHUNK, n))
            for row, (pixels[row], near[row]) in zip(chunk, pool.map(hash_row, chunk), strict=True):
                bar.update(row - bar.n + 1)
    hashes = Hashes(pixels, near)
    if cache:
        with contextlib.suppress(OSError):  # read-only, or full: it only saves time
            save(cache, source.ids, hashes)
    return hashes


def save(path: Path, ids: Sequence[str], hashes: Hashes) -> None:
    """Write the hashes of the images with these ids, atomically; folders are made.

    Raises:
        OSError: it cannot be written; a file that was there is as before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # processes may share the cache
    try:
        with partial.open("wb") as file:  # given a name, numpy would append .npz to it
            np.savez(file, format=FORMAT, ids=id_digest(ids), **hashes._asdict())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path, ids: Sequence[str]) -> Hashes | None:
    """Return the hashes in a file; None if it is missing, damaged, or not of just these ids."""
    try:
        arrays = files.unzip(files.regular(path))
        found = {key: arrays[key] for key in ("format", "ids", *Hashes._fields)}
    except Exception:  # no file, no zip, a bad checksum, an array missing: whatever zipfile meets
        return None
    hashes = Hashes(*(found[key] for key in Hashes._fields))
    good = [str(found[key]) for key in ("format", "ids")] == [FORMAT, id_digest(ids)]
    shapes = [(array.dtype, array.shape) for array in hashes]
    good = good and shapes == [(np.uint64, (len(ids), 2)), (np.uint64, (len(ids), 4))]
    return hashes if good else None


def beside_records(folder: Path, ids: Sequence[str]) -> Hashes | None:
    """Return the hashes of images that `prepare` stored beside its records; None if it did not.

    Args:
        folder: the records.
        ids: of the images, some or all, in any order.
    """
    known = index.read(folder / records.read_manifest(folder).get("index_file", records.INDEX)).ids
    found = load(folder / FILE, known)
    if found is None:
        return None
    row_of = {id: row for row, id in enumerate(known)}
    rows = np.array([row_of[id] for id in ids], np.int64)
    return Hashes(*(part[rows] for part in found))


def exact(hashes: Hashes, of: Rows, among: Rows) -> Int64[np.ndarray, "k 2"]:
    """Return the pairs (row of `of`, row of `among`) of pixel-identical images, sorted.

    No row is paired with itself. Two rows that are both in `of` and in `among` make two pairs.

    Raises:
        IndexError: rows that are not in 0..n-1.
    """
    of, among = (_checked(rows, len(hashes.pixels)) for rows in (of, among))
    _, group = np.unique(hashes.pixels, axis=0, return_inverse=True)
    among = among[np.argsort(group[among])]
    first = np.searchsorted(group[among], group[of], "left")
    count = np.searchsorted(group[among], group[of], "right") - first
    others = [among[f : f + c] for f, c in zip(first, count, strict=True)]
    pairs = np.stack([np.repeat(of, count), np.concatenate([among[:0], *others])], 1)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    return pairs[np.lexsort(pairs.T[::-1])]


def near_once(
    hashes: Hashes, of: Rows, among: Rows, folder: Path | None
) -> Int64[np.ndarray, "k 3"]:
    """Return what `near` finds; what takes minutes is kept in a folder, and read next time.

    Args:
        folder: for the file; None: nothing is kept. That it cannot be written is no error.
    """
    if folder is None or len(of) * len(among) < _WORTH_KEEPING:
        return near(hashes, of, among)
    key = hashlib.sha256(repr((FORMAT, DISTANCE)).encode())
    for array in (of, among, hashes.pixels, hashes.near):
        key.update(np.ascontiguousarray(array))
    path = folder / f"near-{key.hexdigest()[:32]}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        return np.load(path, allow_pickle=False).reshape(-1, 3).astype(np.int64)
    pairs = near(hashes, of, among)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.save(file, pairs)
        partial.replace(path)
    return pairs


def near(
    hashes: Hashes, of: Rows, among: Rows, distance: int = DISTANCE
) -> Int64[np.ndarray, "k 3"]:
    """Return (row of `of`, row of `among`, bits that differ) of near-duplicates, nearest first.

    Pixel-identical images are left out: see `exact`, also for which rows are paired.

    All pairs are compared, block by block. An index by parts of the hash excludes nothing: one of
    69 parts would have to agree, but parts of three bits often do.

    Args:
        distance: the most bits that may differ, 0..256.

    Raises:
        IndexError: rows that are not in 0..n-1.
    """
    of, among = (_checked(rows, len(hashes.near)) for rows in (of, among))
    words = np.ascontiguousarray(hashes.near[among].T)
    step = max(1, _BLOCK // max(1, len(among)))
    found = [np.empty((0, 3), np.int64)]
    for first in range(0, len(of), step):
        rows = of[first : first + step]
        bits = np.zeros((len(rows), len(among)), np.uint16)  # 256 is too much for uint8
        for k, word in enumerate(words):
            bits += np.bitwise_count(hashes.near[rows, k, None] ^ word)
        i, j = np.nonzero(bits <= distance)
        left, right = rows[i], among[j]
        other = (hashes.pixels[left] != hashes.pixels[right]).any(1)  # not so of a row and itself
        found.append(np.stack([left, right, bits[i, j].astype(np.int64)], 1)[other])
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0], pairs[:, 2]))]


def _agrees(hashes: Hashes, hash_row: Callable[[int], Hash]) -> bool:
    n = len(hashes.pixels)
    rows = np.unique(np.linspace(0, n - 1, min(n, _PROBES)).astype(int)).tolist()
    now = (zip(hash_row(row), (kept[row] for kept in hashes), strict=True) for row in rows)
    return all(np.array_equal(a, b) for pairs in now for a, b in pairs)


def id_digest(ids: Sequence[str]) -> str:
    """Return a hash of the ids and their order."""
    digest = hashlib.sha256(str(len(ids)).encode())
    for id in ids:
        digest.update(f":{len(id)}:{id}".encode("utf-8", "surrogateescape"))  # of any character
    return digest.hexdigest()


def _checked(rows: Rows, n: int) -> Int64[np.ndarray, "_"]:
    rows = np.asarray(rows, np.int64)
    if rows.size and not 0 <= rows.min() <= rows.max() < n:
        raise IndexError(f"expected rows in 0..{n - 1}, got {rows.min()}..{rows.max()}.")
    return rows
