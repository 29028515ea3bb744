"""Features of a stream of images: prepared in threads, towers on the mesh, one pass for all."""

import collections
import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int
from tqdm import tqdm

from unlearn_jax import distributed, sharding
from unlearn_jax.evaluate.towers import preprocessing
from unlearn_jax.evaluate.towers.extractor import Extractor
from unlearn_jax.registry import UserError

Item = Mapping[str, Any]
"""{"position": its place in the protocol's order, "generated": uint8 [h w 3], "reference": same}.

Either image may be left out, by all items alike. Images may have any size.
"""
Outputs = dict[str, dict[str, jax.Array]]
Batch = tuple[Outputs, Int[np.ndarray, "b"], Bool[np.ndarray, "b"]]

_AHEAD = 3  # batches that threads prepare while the towers work


def extract(
    items: Iterable[Item | Callable[[], Item]],
    extractors: Mapping[str, Extractor],
    mesh: Mesh,
    *,
    batch_size: int,
    total: int | None = None,
    threads: int | None = None,
    title: str = "features",
) -> Iterator[Batch]:
    """Yield ({"NAME/ROLE": features [b d] on the mesh}, positions [b], valid [b]), in order.

    The same items give the same features, whatever the number of threads. Several processes have
    the same items, and share the towers' work.

    Args:
      items: or functions that give them, which threads call: decode there.
      extractors: by "NAME/ROLE", where the role is the image in the item: "fid/generated".
      mesh: where the towers run; rows are split over it.
      batch_size: rows of a batch, divisible by the devices. The last one is padded, and says so.
      total: number of items, for the progress bar.
      threads: by default as many as cores.
      title: of the progress bar.

    Raises:
      UserError: a batch size that does not fit, an item without one of the images; what `items`
        raises passes through.
    """
    sharding.check_batch_size(batch_size, mesh)
    run = {
        name: partial(
            forward, found.tower, hashable(found.recipe), mesh, _on_mesh(found.params, mesh)
        )
        for name, found in extractors.items()
    }

    def dispatch(rows: list[dict[str, Any]]) -> Batch:
        n = len(rows)
        rows = rows + [rows[-1]] * (batch_size - n)
        batch = {name: np.stack([row[name] for row in rows]) for name in run}
        batch = sharding.split_batch(batch, mesh)
        positions = np.array([row["position"] for row in rows], np.int32)
        outputs = {name: call(batch[name]) for name, call in run.items()}
        return outputs, positions, np.arange(batch_size) < n

    def finish(batch: Batch) -> Batch:
        bar.update(int(batch[2].sum()))
        return batch

    with (
        tqdm(
            desc=title,
            total=total,
            unit="img",
            dynamic_ncols=True,
            disable=not distributed.first() or None,
        ) as bar,
        _prepared(items, extractors, batch_size, threads) as prepared,
    ):
        late = None  # the towers have the next batch before the statistics wait for this one
        while rows := list(itertools.islice(prepared, batch_size)):
            queued = dispatch(rows)
            if late:
                yield finish(late)
            late = queued
        if late:
            yield finish(late)


@partial(jax.jit, static_argnums=(0, 1, 2))
def forward(tower, recipe, mesh, params, pixels):
    """Compute the features of prepared pixels, rows split over the mesh; recipe: of `hashable`."""
    features = tower.features(params, preprocessing.to_tower(pixels, dict(recipe)))
    return jax.lax.with_sharding_constraint(features, sharding.batch_sharding(mesh))


def hashable(recipe: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return the recipe as an argument that a compiled program may depend on."""
    return tuple(sorted(recipe.items()))


def _on_mesh(params: Any, mesh: Mesh) -> Any:
    """Put the params on the mesh, split by the default rules, unless they are there."""

    def place(leaf, split):
        on_mesh = getattr(getattr(leaf, "sharding", None), "mesh", None) == mesh
        return leaf if on_mesh else jax.device_put(leaf, split)

    return jax.tree.map(place, params, sharding.params_sharding(params, mesh))


@contextlib.contextmanager
def _prepared(items, extractors, batch_size, threads):
    """Iterate over prepared rows, a few batches of them ahead, in threads."""
    pool = ThreadPoolExecutor(threads or os.cpu_count() or 1)

    def rows():
        waiting, source = collections.deque(), iter(items)
        while True:
            for item in itertools.islice(source, _AHEAD * batch_size - len(waiting)):
                waiting.append(pool.submit(_prepare, item, extractors))
            if not waiting:
                return
            yield waiting.popleft().result()

    try:
        yield rows()
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare(item, extractors):
    item = item() if callable(item) else item
    row = {"position": item["position"]}
    for name, found in extractors.items():
        role = name.rpartition("/")[2]
        if role not in item:
            raise UserError(
                f"Expected images {role!r} in every item, got one with {sorted(item)} at position "
                f"{item['position']}."
            )
        row[name] = preprocessing.prepare(item[role], found.recipe)
    return row
