"""Batches as a pure function of (seed, step): no iterator state, the same for all process counts.

Row k of a stream (the retain rows, or the forget rows, over the whole run) is k modulo the number
of rows, through a permutation keyed by seed, stream and epoch. Resuming at a step costs nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jaxtyping import Int, Shaped, UInt64
from ml_collections import ConfigDict

from unlearn_jax import distributed
from unlearn_jax.data import copies, mask_files, poison, served, splits, transforms
from unlearn_jax.data.copies import Hashes
from unlearn_jax.data.joining import concat, subset
from unlearn_jax.data.preprocess import Crops, View
from unlearn_jax.data.served import Entry
from unlearn_jax.data.sizes import settled
from unlearn_jax.data.sources import Source, from_arrays, open_source
from unlearn_jax.data.splits import Split
from unlearn_jax.files import cache_folder
from unlearn_jax.registry import UserError

__all__ = ["Source", "Split", "concat", "forget_count", "from_arrays", "load"]
__all__ += ["make_eval", "make_train", "open_data"]

Batch = dict[str, Shaped[np.ndarray, "b ..."]]
Rows = Int[np.ndarray, "_"] | None

# Streams and uses of randomness; with the seed and the epoch they key every generator.
_RETAIN, _FORGET, _EVAL = 0, 1, 2
_ORDER, _MASK, _VIEW = 0, 1, 2


def open_data(cfg: ConfigDict) -> tuple[Source, Hashes]:
    """Return the source of a config, proxy data included, and the hashes of its images.

    Hashes are kept: beside prepared records, else in the user's cache.
    """
    common = {key: cfg.data[key] for key in ("cache", "resize", "exif")}
    common["image_size"] = settled(cfg.data.image_size)
    if cfg.data.augment.name:
        scale, ratio = (tuple(cfg.data.augment[key]) for key in ("scale", "ratio"))
        common["crops"] = Crops(scale, ratio, cfg.data.augment.flip)
    where = ("kind", "name", "data_dir", "path", "splits")
    source = _open(**{key: cfg.data[key] for key in where}, **common)
    if cfg.data.train_rows:
        source = subset(source, cfg.data.train_rows, cfg.data.train_seed)
    hashes = _hashes(source, cfg.data, cfg.data.exif)
    if cfg.retain.kind == "proxy":
        proxy = _open(**{key: cfg.retain.data[key] for key in where}, **common)
        more = _hashes(proxy, cfg.retain.data, cfg.data.exif)
        hashes = Hashes(*(np.concatenate(pair) for pair in zip(hashes, more, strict=True)))
        source = concat(source, proxy)
    return source, hashes


def beside(cfg: ConfigDict) -> list[Entry]:
    """Return the requests that the data of a config remember, its proxy data included."""
    found = served.of_data(served.place(cfg.data))
    if cfg.retain.kind == "proxy":
        # Ids of proxy data have a prefix there, see `concat`.
        of_proxy = served.of_data(served.place(cfg.retain.data))
        found += [{**e, "ids": [f"proxy/{id}" for id in e["ids"]]} for e in of_proxy]
    return found


def load(
    cfg: ConfigDict, past: Sequence[Entry] | None = None, apart: Sequence[Entry] = ()
) -> tuple[Source, Split]:
    """Return the source of a config, with proxy data and poison, and the split of its request.

    Of several processes the first one resolves the request, and tells the others.

    Args:
        cfg: a config that has been validated.
        past: requests that the model has served, see `served`; None: there is no model yet, and
            what the data remember is its past.
        apart: requests that others have served on these data.
    """
    manifest, said, problem = None, [], ""
    try:
        source, hashes = open_data(cfg)
        if distributed.first():
            split = splits.resolve(
                source,
                request=cfg.request.to_dict(),
                retain=cfg.retain.to_dict(),
                holdout=cfg.holdout.to_dict(),
                seed=cfg.request.seed,
                poison=cfg.poison.to_dict(),
                served=beside(cfg) if past is None else past,
                apart=apart,
                hashes=hashes,
                cache=cache_folder(),
            )
            manifest, said = split.manifest, list(split.said)
    except ValueError as error:  # told to the others, which would wait for an answer
        problem = str(error)
        if jax.process_count() == 1:
            raise
    manifest, said, told = distributed.agreed([manifest, said, problem])
    if problem or told:
        raise UserError(problem or told)
    split = splits.of_manifest(manifest, said)
    if split.poisoned.size:
        backdoor = poison.design(cfg.task.to_dict(), cfg.data.image_size)
        look = {k: v for k, v in split.manifest["poison"].items() if k in ("seed", "jitter")}
        source = poison.plant(source, split.poisoned, backdoor, task=cfg.task.to_dict(), **look)
    return _with_masks(source, cfg), split


def facts(source: Source) -> dict[str, str]:
    """Return what a run depends on beside its config and its rows, see `identity.relevant`."""
    return {"masks": source.masks.digest} if source.masks else {}


def _with_masks(source: Source, cfg: ConfigDict) -> Source:
    """Add the masks of a task that has them in files."""
    task = cfg.task
    if "masks" not in (task.name, task.train):
        return source
    if source.augmented and transforms.varies({"name": "masks", "path": task.path}):
        raise UserError(
            "task.path: random views are cut from the images, which masks for each image do not "
            "fit. Set data.augment.name to '', or give one mask for all."
        )
    view = View(settled(cfg.data.image_size), cfg.data.resize, exif=cfg.data.exif)
    return replace(source, masks=mask_files.load(task.path, source.ids, view, source.original))


def _hashes(source: Source, where: ConfigDict, exif: bool) -> Hashes:
    """Return the hashes of a source's images; of several processes, the first computes them."""
    if not distributed.first():
        return Hashes(np.zeros((len(source), 2), np.uint64), np.zeros((len(source), 4), np.uint64))
    beside = where.kind == "records" and not exif  # of images as they are stored
    if beside and (found := copies.beside_records(Path(where.path), source.ids)):
        return found
    key = copies.id_digest([*source.ids, *_stamps(source, where), *(["exif"] if exif else [])])[:32]
    name = f"{source.name.replace('/', '-')}-{key}.npz"
    return copies.hash_source(source, cache_folder() / name)


def _stamps(source: Source, where: ConfigDict) -> list[str]:
    """Return stamps that change when files get other contents under the same names."""
    files = [Path(where.path)] if where.kind == "arrays" else []
    if where.kind == "folder":
        files = [Path(where.path) / id for id in source.ids]
    stats = (file.stat() for file in files)
    return [f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino}" for stat in stats]


def _open(splits: tuple[str, ...], **where: Any) -> Source:
    return _open_once(splits=tuple(splits), **where)


_open_once = lru_cache(maxsize=2)(open_source)  # a comparison loads its data for every model


def make_train(
    source: Source,
    *,
    retain_rows: Rows,
    forget_rows: Rows,
    batch_size: int,
    forget_fraction: float,
    task: Mapping[str, Any],
    seed: int,
    first_step: int,
    num_steps: int,
    places: Int[np.ndarray, "_"] | None = None,
    num_threads: int = 4,
    prefetch: int = 8,
    columns: Mapping[str, Shaped[np.ndarray, "n ..."]] | None = None,
) -> grain.DatasetIterator:
    """Iterate over the batches first_step .. first_step + num_steps - 1, or over parts of them.

    A batch has `image` [b h w 3] float32 in [-1, 1], `mask` [b h w 1] float32 (1 = to be
    generated), `label`, `index` (row of the source) int32 [b], `is_forget`, `valid` bool [b];
    retain rows come first. Every row of a stream comes once per epoch, so the smaller set is
    repeated as often as the fixed share of forget rows needs. Images of an augmented source are
    random views, others in every epoch. Call `close()` when done before the end.

    Args:
        source: the images.
        retain_rows: None or empty: batches have forget rows only.
        forget_rows: None or empty: batches have retain rows only.
        batch_size: rows per step over all processes.
        forget_fraction: exactly round(batch_size * forget_fraction) rows of each batch are forget
            rows, if there are both.
        task: see `transforms.make_mask`; random masks differ between epochs. Its "train" names
            another task for training, with the same options.
        seed: in 0 .. 2^32 - 1.
        first_step: the batches depend on seed and step only, so a run can resume anywhere.
        num_steps: how many.
        places: in the batch, of the rows to make, such as `sharding.local_rows`; None: all. What
            is at a place does not depend on who makes it.
        num_threads: that prepare batches.
        prefetch: batches prepared ahead.
        columns: more that a batch shall have, by name: one value per row of the source.

    Raises:
        UserError: no rows at all, a batch that cannot be divided so, an unsuitable task, columns
            of images beside random views, which they would not fit.
    """
    streams = {_RETAIN: retain_rows, _FORGET: forget_rows}
    streams = {key: rows for key, rows in streams.items() if rows is not None and len(rows)}
    if not streams:
        raise UserError("make_train: expected retain rows or forget rows, got neither.")
    rows = {"retain_rows": retain_rows, "forget_rows": forget_rows}
    n_forget = forget_count(batch_size, forget_fraction, **rows)
    counts = {_RETAIN: batch_size - n_forget, _FORGET: n_forget}
    counts = {stream: counts[stream] for stream in streams}
    _check_batch_size(batch_size)
    _check_seed(seed)
    task = {**task, "name": task.get("train") or task["name"]}
    _check_task(source, task)
    if source.augmented and any(values.ndim > 2 for values in (columns or {}).values()):
        raise UserError(
            "make_train: this phase compares with images made beforehand, which random views do "
            "not fit. Set objective_kw.direction=0, or data.augment.name to ''."
        )
    mask_keys = {stream: _key(seed, stream, _MASK, 0) for stream in streams}
    view_keys = {stream: _key(seed, stream, _VIEW, 0) for stream in streams}
    local, before = {}, 0  # places within each stream's part of a batch
    for stream, count in counts.items():
        here = np.arange(batch_size) if places is None else places
        local[stream] = here[(before <= here) & (here < before + count)] - before
        before += count

    def batch_of_step(step: int) -> Batch:
        parts, keys, views = [], [], []
        for stream, rows in streams.items():
            positions = (step * counts[stream] + local[stream]).tolist()
            parts.append(_rows_at(rows, seed, stream, positions))
            keys += [(mask_keys[stream], position) for position in positions]
            views += [(view_keys[stream], position) for position in positions]
        index = np.concatenate(parts)
        is_forget = np.repeat([s == _FORGET for s in streams], [len(part) for part in parts])
        views = np.array(views, np.uint64) if source.augmented else None
        batch = _batch(source, index, task, keys, is_forget, np.ones(len(index), bool), views)
        return batch | {name: values[index] for name, values in (columns or {}).items()}

    return _iterate(batch_of_step, first_step, num_steps, num_threads, prefetch)


def forget_count(
    batch_size: int, forget_fraction: float, *, retain_rows: Rows, forget_rows: Rows
) -> int:
    """Return the number of forget rows in each batch of `make_train`; they are its last rows.

    Args:
        batch_size: rows of a batch.
        forget_fraction: of them, if there are both kinds.
        retain_rows: None or empty if there are none.
        forget_rows: likewise.

    Raises:
        UserError: there are both kinds, and no such batch has both.
    """
    retain, forget = (rows is not None and len(rows) > 0 for rows in (retain_rows, forget_rows))
    if not (retain and forget):
        return batch_size if forget else 0
    count = round(batch_size * forget_fraction)
    if not 0 < count < batch_size:
        raise UserError(
            f"make_train: forget_fraction {forget_fraction} of batch_size {batch_size} is {count} "
            f"forget rows; expected 1..{batch_size - 1}. Change one of them."
        )
    return count


def make_eval(
    source: Source,
    rows: Int[np.ndarray, "_"],
    *,
    batch_size: int,
    task: Mapping[str, Any],
    seed: int,
    is_forget: bool = False,
    places: Int[np.ndarray, "_"] | None = None,
    num_threads: int = 4,
    prefetch: int = 4,
) -> grain.DatasetIterator:
    """Iterate over the rows once, in order, in batches like those of `make_train` or parts of them.

    The last batch is filled up with copies of the last row that have `valid` False, `is_forget`
    False and `index` -1. Random masks depend on seed and row only: every model sees the same ones.

    Raises:
        UserError: no rows, no batch size, an unsuitable task.
    """
    if not len(rows):
        raise UserError("make_eval: expected rows to evaluate, got none.")
    _check_batch_size(batch_size)
    _check_seed(seed)
    _check_task(source, task)
    mask_key = _key(seed, _EVAL, _MASK, 0)
    local = np.arange(batch_size) if places is None else places

    def batch_of_step(step: int) -> Batch:
        positions = step * batch_size + local
        valid = positions < len(rows)
        index = rows[np.minimum(positions, len(rows) - 1)]
        keys = [(mask_key, row) for row in index.tolist()]
        batch = _batch(source, index, task, keys, valid & is_forget, valid)
        batch["index"][~valid] = -1
        return batch

    return _iterate(batch_of_step, 0, -(-len(rows) // batch_size), num_threads, prefetch)


def _batch(
    source: Source,
    index: Int[np.ndarray, "b"],
    task: Mapping[str, Any],
    keys: list[tuple[int, int]],
    is_forget: Shaped[np.ndarray, "b"],
    valid: Shaped[np.ndarray, "b"],
    views: UInt64[np.ndarray, "b 2"] | None = None,
) -> Batch:
    images = source.fetch(index, views)
    if task["name"] == "masks" and source.masks:
        mask = source.masks(index)
    else:
        mask = transforms.make_mask(task, images.shape[1:3], np.array(keys, np.uint64))
    return {
        "image": transforms.to_float(images),
        "mask": mask,
        "label": source.labels[index],
        "index": index.astype(np.int32),
        "is_forget": is_forget,
        "valid": valid,
    }


def _rows_at(
    rows: Int[np.ndarray, "_"], seed: int, stream: int, positions: Sequence[int]
) -> Int[np.ndarray, "_"]:
    """Return the rows at positions of an endless stream that shuffles them anew every epoch."""
    epochs, within = np.divmod(np.asarray(positions, np.int64), len(rows))
    chosen = np.empty(len(positions), rows.dtype)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        order = _permutation(len(rows), _key(seed, stream, _ORDER, epoch))
        chosen[here] = rows[order[within[here]]]
    return chosen


@lru_cache(maxsize=8)  # batches walk through one epoch of each stream, now and then two
def _permutation(n: int, key: int) -> Int[np.ndarray, "_"]:
    return np.random.Generator(np.random.Philox(key=key)).permutation(n)


@lru_cache(maxsize=4096)
def _key(seed: int, stream: int, use: int, epoch: int) -> int:
    """Return 64 bits for a random number generator, different for different arguments."""
    sequence = np.random.SeedSequence(seed, spawn_key=(stream, use, epoch))
    return int(sequence.generate_state(1, np.uint64)[0])


def _iterate(
    batch_of_step: Callable[[int], Batch], first: int, steps: int, num_threads: int, prefetch: int
) -> grain.DatasetIterator:
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    dataset = grain.MapDataset.range(first, first + steps).map(batch_of_step)
    return iter(dataset.to_iter_dataset(options))


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size: expected at least 1, got {batch_size}.")


def _check_task(source: Source, task: Mapping[str, Any]) -> None:
    transforms.check_task(task, source.fetch(np.zeros(1, np.int64)).shape[1:3])


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise UserError(f"seed: expected 0..2^32 - 1, got {seed}.")
