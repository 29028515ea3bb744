"""All metrics of a set of generated images from one pass: a plan, and statistics that add up."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from unlearn_jax import distributed, files, sharding
from unlearn_jax.evaluate.metrics import cosine, fid, inception_score, kid
from unlearn_jax.evaluate.towers import extractor as towers
from unlearn_jax.evaluate.towers import features
from unlearn_jax.evaluate.towers.extractor import Extractor
from unlearn_jax.registry import UserError

ROLES = {
    "frechet": ("generated", "reference"),
    "kernel": ("generated", "reference"),
    "score": ("generated",),
    "cosine": ("generated", "reference"),
}
"""Whose features a metric of each kind needs."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """Known facts of the reference images, from `reference.reference`."""

    moments: fid.Moments
    features: Float[np.ndarray, "n d"] | None = None
    """By position; needed for kinds "kernel" and "cosine"."""
    key: str = ""
    """Says what they were made from."""


@dataclasses.dataclass(frozen=True)
class Use:
    """One tower, and the metrics that are made with it."""

    extractor: Extractor
    kinds: tuple[str, ...]
    reference: Reference | None = None
    """None: reference images are in the stream."""
    norm_then_flip_compat: bool = False
    """Red's and blue's normalisation exchanged for generated images (protocol 5.3, 5.4)."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which metrics of how many images.

    Raises:
      UserError: an unknown kind, a metric twice, a reference without the features it needs.
    """

    uses: Mapping[str, Use]
    """By any name."""
    n: int
    """Number of images, whose positions are 0..n-1."""
    seed: int = 0
    """Seeds the blocks of "kernel" and the splits that are "shuffled"."""
    splits: int = 10
    is_split_order: str = "class_grouped"
    block_size: int = kid.BLOCK

    def __post_init__(self):
        names = [name for name, *_ in _metrics(self)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(f"Expected each metric once, got {sorted(twice)} from several towers.")
        for name, kind, use in _metrics(self):
            known = self.uses[use].reference
            if kind in ("kernel", "cosine") and known:
                rows = 0 if known.features is None else len(known.features)
                if rows != self.n:
                    raise UserError(
                        f"{name} needs the features of all {self.n} reference images, got {rows}. "
                        "Make the reference with keep_features=True."
                    )


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics gathered so far; only cosines grow with the images (8 bytes each).

    Attributes:
      seen: whether the image at each position was.
      parts: of each metric: {role: `fid.Moments`}, `kid.Blocks`, `inception_score.Sums`, or a
        cosine at each position (NaN: not seen yet).
    """

    seen: Bool[np.ndarray, "n"]
    parts: Mapping[str, Any]


def order(plan: Plan) -> Int[np.ndarray, "n"]:
    """Order the positions 0..n-1 as the stream should have them.

    Random if there is a metric of kind "kernel", whose blocks must be alike: then it must be kept,
    also within each of several parts that are merged. Otherwise any order will do.
    """
    return _order(plan.n, plan.seed) if _has_blocks(plan) else np.arange(plan.n)


def empty(plan: Plan) -> Statistics:
    """Return the statistics of no images."""
    parts = {}
    for name, kind, use in _metrics(plan):
        tower, known = plan.uses[use].extractor, plan.uses[use].reference
        sizes = _sizes(tower)
        if kind == "frechet":
            none = fid.empty(towers.pooled(sizes))
            parts[name] = {"generated": none, "reference": known.moments if known else none}
        elif kind == "kernel":
            parts[name] = kid.empty(towers.pooled(sizes), plan.block_size)
        elif kind == "score":
            if "logits" not in sizes:
                raise UserError(f"{name}: its tower is no classifier.")
            parts[name] = inception_score.empty(sizes["logits"], plan.splits)
        else:
            parts[name] = np.full(plan.n, np.nan)
    return Statistics(np.zeros(plan.n, bool), parts)


def measure(
    items: Iterable[features.Item | Callable[[], features.Item]],
    plan: Plan,
    mesh: Mesh,
    *,
    batch_size: int,
    statistics: Statistics | None = None,
    **options: Any,
) -> Statistics:
    """Add the images of `items`, decoded and seen once, to the statistics.

    items come in `order(plan)`, all or some of them: the rest can be added later, after `save` and
    `load`. Where the stream is cut changes nothing if the parts hold whole batches, otherwise
    rounding only.

    Args:
      items: see `features.extract`, which also takes the options.
      plan: what is measured.
      mesh: where the towers run.
      batch_size: rows on all devices.
      statistics: of the images before; by default there were none.
      options: total, threads, title.

    Raises:
      UserError: an image a second time, in another order, or out of range.
    """
    statistics = statistics or empty(plan)
    batches = features.extract(items, streams(plan), mesh, batch_size=batch_size, **options)
    for outputs, positions, valid in batches:
        statistics = update(statistics, plan, outputs, positions, valid)
    return statistics


def update(
    statistics: Statistics,
    plan: Plan,
    outputs: features.Outputs,
    positions: Int[np.ndarray, "b"],
    valid: Bool[np.ndarray, "b"],
) -> Statistics:
    """Add the valid rows of one batch of features to the statistics.

    Raises:
      UserError: an image a second time, in another order, or out of range.
    """
    kept = positions[valid]
    _check(statistics, plan, kept)
    parts = {}
    for name, kind, use in _metrics(plan):
        part, generated = statistics.parts[name], outputs[f"{use}/generated"]
        known = plan.uses[use].reference
        if kind == "frechet":
            parts[name] = part | {
                "generated": fid.update(part["generated"], towers.pooled(generated), valid)
            }
            if not known:
                rows = towers.pooled(outputs[f"{use}/reference"])
                parts[name]["reference"] = fid.update(part["reference"], rows, valid)
            continue
        if kind == "score":
            split = _splits(plan.n, plan.splits, plan.is_split_order, plan.seed)
            split = split[np.where(valid, positions, 0)]
            logits = distributed.fetch(generated["logits"])
            parts[name] = inception_score.update(part, logits, split, valid)
            continue
        x = distributed.fetch(towers.pooled(generated))
        if known:
            y = known.features[np.where(valid, positions, 0)]
        else:
            y = distributed.fetch(towers.pooled(outputs[f"{use}/reference"]))
        if kind == "kernel":
            parts[name] = kid.update(part, x, y, valid)
        else:
            parts[name] = part.copy()
            parts[name][kept] = cosine.paired(x[valid], y[valid])
    seen = statistics.seen.copy()
    seen[kept] = True
    return Statistics(seen, parts)


def results(
    statistics: Statistics, plan: Plan, *, confidence: float = 0.95, resamples: int = 2000
) -> dict[str, dict[str, Any]]:
    """Compute {metric: {"kind", "mean" or "value", "n", ...}}, named by `towers.metric_name`.

    A "cosine" has a bootstrap interval over examples, a "score" its std over splits, a "kernel" a
    standard error over blocks, a "frechet" nothing: it is biased upwards by small n (docs/
    metrics.md), and is compared at equal n only.

    Raises:
      UserError: images are missing, or a metric is not defined for so few.
    """
    missing = int((~statistics.seen).sum())
    if missing:
        first = int(np.flatnonzero(~statistics.seen)[0])
        raise UserError(
            f"Metrics of {plan.n} images were asked for, {missing} have not been seen, the first "
            f"at position {first}. Stream the rest."
        )
    found = {}
    for name, kind, _ in _metrics(plan):
        part = statistics.parts[name]
        if kind == "frechet":
            a, b = part["generated"], part["reference"]
            value = {"value": fid.frechet_distance(a, b), "n": int(a.n), "n_reference": int(b.n)}
        elif kind == "kernel":
            value = kid.estimate(part) | {"block_size": plan.block_size}
        elif kind == "score":
            value = inception_score.score(part) | {"split_order": plan.is_split_order}
        else:
            options = {"confidence": confidence, "resamples": resamples, "seed": plan.seed}
            value = cosine.summary(part, **options)
        found[name] = {"kind": kind, **value}
    return found


def provenance(plan: Plan) -> dict[str, dict[str, Any]]:
    """Describe what each metric was made with: tower, weights, preprocessing, compat options."""
    return {
        name: {
            "tower": dict(plan.uses[use].extractor.provenance),
            "preprocessing": dict(plan.uses[use].extractor.recipe),
            "norm_then_flip_compat": plan.uses[use].norm_then_flip_compat,
            "fingerprint": towers.fingerprint(plan.uses[use].extractor),
        }
        for name, _, use in _metrics(plan)
    }


def save(path: Path, statistics: Statistics, plan: Plan) -> None:
    """Write the statistics to an .npz file, whole or not at all."""
    leaves = jax.tree_util.tree_leaves_with_path(dict(statistics.parts))
    arrays = {sharding.leaf_path(keys): np.asarray(leaf) for keys, leaf in leaves}
    files.write_arrays(path, {"seen": statistics.seen, **arrays}, {"plan": _fingerprint(plan)})


def load(path: Path, plan: Plan) -> Statistics:
    """Load the statistics from a file that `save` has written with this plan.

    Raises:
      FileNotFoundError: there is none.
      UserError: it is damaged, or of another plan.
    """
    arrays, about = files.read_arrays(path)
    if about.get("plan") != _fingerprint(plan):
        raise UserError(
            f"{path}: statistics of other metrics, towers, images or options. Remove the file to "
            "start anew."
        )
    seen = arrays.pop("seen")
    like = dict(empty(plan).parts)
    parts = jax.tree_util.tree_map_with_path(lambda keys, _: arrays[sharding.leaf_path(keys)], like)
    return Statistics(seen, parts)


def merge(a: Statistics, b: Statistics, plan: Plan) -> Statistics:
    """Merge the statistics of two disjoint parts of one plan's images.

    Raises:
      UserError: an image is in both.
    """
    if (a.seen & b.seen).any():
        raise UserError(f"{int((a.seen & b.seen).sum())} images are in both parts.")
    parts = {}
    for name, kind, use in _metrics(plan):
        x, y = a.parts[name], b.parts[name]
        if kind == "frechet":
            streamed = ("generated",) if plan.uses[use].reference else ("generated", "reference")
            parts[name] = x | {role: fid.merge(x[role], y[role]) for role in streamed}
        elif kind == "kernel":
            parts[name] = kid.merge(x, y)
        elif kind == "score":
            parts[name] = inception_score.merge(x, y)
        else:
            parts[name] = np.where(np.isnan(x), y, x)
    return Statistics(a.seen | b.seen, parts)


def streams(plan: Plan) -> dict[str, Extractor]:
    """List, by "NAME/ROLE", the extractors that must see all images of the stream."""
    found = {}
    for _, kind, name in _metrics(plan):
        use = plan.uses[name]
        for role in ROLES[kind]:
            if role == "generated" or not use.reference:
                exchanged = role == "generated" and use.norm_then_flip_compat
                found[f"{name}/{role}"] = (
                    towers.flipped(use.extractor) if exchanged else use.extractor
                )
    return found


def _metrics(plan: Plan) -> list[tuple[str, str, str]]:
    """Yield (metric, kind, name of the use)."""
    return [
        (towers.metric_name(kind, use.extractor), kind, name)
        for name, use in plan.uses.items()
        for kind in use.kinds
    ]


def _check(statistics: Statistics, plan: Plan, positions: np.ndarray) -> None:
    if len(positions) and not 0 <= positions.min() <= positions.max() < plan.n:
        raise UserError(f"Expected positions in 0..{plan.n - 1}, got {positions.tolist()}.")
    again = statistics.seen[positions]
    if again.any() or len(set(positions.tolist())) != len(positions):
        raise UserError(f"Expected each image once, got some of {positions.tolist()} twice.")
    if _has_blocks(plan) and (np.diff(np.argsort(order(plan))[positions]) != 1).any():
        raise UserError(
            "The kernel distance needs the images in `statistics.order(plan)`, got positions "
            f"{positions[:9].tolist()}."
        )


def _has_blocks(plan: Plan) -> bool:
    return any(kind == "kernel" for _, kind, _ in _metrics(plan))


@functools.lru_cache(maxsize=8)
def _order(n: int, seed: int) -> np.ndarray:
    return kid.order(n, jax.random.fold_in(jax.random.key(seed), 0))


@functools.lru_cache(maxsize=8)
def _splits(n: int, splits: int, split_order: str, seed: int) -> np.ndarray:
    key = jax.random.fold_in(jax.random.key(seed), 1)
    return inception_score.assignment(n, splits, order=split_order, key=key)


def _sizes(of: Extractor) -> dict[str, int]:
    tower = of.tower
    image = jax.ShapeDtypeStruct((1, tower.image_size, tower.image_size, 3), np.float32)
    outputs = jax.eval_shape(tower.features, of.params, image)
    return {name: leaf.shape[1] for name, leaf in outputs.items()}


def _fingerprint(plan: Plan) -> str:
    about = {
        field.name: getattr(plan, field.name)
        for field in dataclasses.fields(plan)
        if field.name != "uses"
    }
    about["uses"] = {
        name: [towers.fingerprint(use.extractor), use.kinds, use.norm_then_flip_compat]
        + ([use.reference.key] if use.reference else [])
        for name, use in plan.uses.items()
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
