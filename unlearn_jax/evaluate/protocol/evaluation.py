"""The published evaluation: validation images of forgotten and of kept classes, completed.

Tables of Li et al. (ICLR 2024, arXiv 2402.00351): for each model, task and size of the hole, FID,
Inception Score and CLIP cosine of the images of forgotten classes, which should be far from the
originals, and of those of kept classes, which should be near. What is finished is kept: the same
command goes on where it was interrupted. Several processes share the work of models and towers;
each decodes all images, the first one writes.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from unlearn_jax import checkpoint, data, distributed, sharding
from unlearn_jax.config.validation import validate
from unlearn_jax.data import published
from unlearn_jax.data.names import labels_of
from unlearn_jax.evaluate.metrics import inception_score, kid, reference
from unlearn_jax.evaluate.metrics import streaming as statistics
from unlearn_jax.evaluate.protocol import generation, pictures, tables
from unlearn_jax.evaluate.results import provenance
from unlearn_jax.evaluate.towers import extractor as towers
from unlearn_jax.evaluate.towers import features, preprocessing
from unlearn_jax.files import digest, file_digest, read_json, write_json
from unlearn_jax.models.layers import DTYPES
from unlearn_jax.registry import UserError
from unlearn_jax.request import Request

SETS = tables.SETS
METRICS = {
    "fid": ("frechet",),
    "kid": ("kernel",),
    "inception_score": ("score",),
    "places365_score": ("score",),
    "clip_cosine": ("cosine",),
    "cifar10_classifier": ("frechet", "score", "cosine"),
}
"""Kinds of metrics by their names in a config; "kid" is made with the tower of "fid"."""
FLIPPED = ("inception_score", "clip_cosine")
"""Metrics that `norm_then_flip` is about."""
COMPAT = {
    "fid_reference": preprocessing.FID_REFERENCES,
    "clip_reference": preprocessing.FID_REFERENCES,
    "is_split_order": inception_score.SPLIT_ORDERS,
    "image_format": tuple(generation.FORMATS),
}
FOLDER = "protocol"

Rows = pictures.Rows
Files = pictures.Files


def run(cfg: ConfigDict, checkpoints: Mapping[str, Path], workdir: Path) -> dict[str, Any]:
    """Run the protocol; return the results as they are written to workdir/protocol/results.json.

    Beside it are rows.csv (a row of the published tables for each model, task and size), grids.npz,
    tsne_MODEL.png, images/MODEL/TASK_SIZE/SET/… and references/, a cache.

    Args:
      cfg: its section `protocol` says which images, tasks and metrics.
      checkpoints: workdirs of finished models, by the names they get in the tables.
      workdir: where protocol/ is made, or continued.

    Raises:
      UserError: the config, a model, a tower or the data are not what they must be.
      OSError: a file could not be written.
    """
    validate(cfg)
    settings, root = cfg.protocol, workdir / FOLDER
    if wrong := _problems(settings, checkpoints):
        listed = "\n".join(f"  - {problem}" for problem in wrong)
        raise UserError(f"The protocol has {len(wrong)} problem(s):\n{listed}")
    mesh = sharding.make_mesh(**cfg.mesh)
    sharding.check_batch_size(settings.batch_size, mesh, "protocol.batch_size")
    extractors = _extractors(settings, mesh)  # first: a missing tower should not cost a night
    request = Request(cfg, workdir)
    if settings.dtype:
        request.model = dataclasses.replace(request.model, dtype=settings.dtype)
    rows = _evaluation_rows(cfg, request)
    if "kid" in settings.metrics and (short := _below_block(rows)):
        raise UserError(f"config.protocol.metrics: {short} Leave kid out, or add images.")
    files, models = _complete_all(request, checkpoints, rows, root)
    references = {name: _references(request, rows[name], extractors, root) for name in SETS}
    found, metrics = [], {}
    for (model, task, size), of_sets in files.items():
        row = {"model": model, "task": task, "size": size}
        for name in SETS:
            plan = _plan(cfg, extractors, references[name], len(rows[name]))
            part = root / "measured" / model / f"{task}_{size}" / name
            title = f"{model}: {task} {size}/16, {name}"
            row[name] = _measure(request, plan, of_sets[name], part, title)
            metrics = statistics.provenance(plan)
        found.append(row)
    results = {
        "format": 1,
        "seed": cfg.seed,
        **provenance(cfg, request.split),
        "models": models,
        "sets": {
            name: {"n": len(some), "classes": len(np.unique(request.source.labels[some]))}
            for name, some in rows.items()
        },
        "metrics": metrics,
        "compat": settings.compat.to_dict(),
        "rows": found,
    }
    if distributed.first():
        pictures.save_grids(request, tasks(settings), rows, files, root / "grids.npz")
    pictures.plot_embeddings(request, extractors, files, root)
    if distributed.first():
        tables.write_csv(root / "rows.csv", results)
        write_json(root / "results.json", results)
    return results


def tasks(settings: ConfigDict) -> dict[tuple[str, int], dict[str, Any]]:
    """List tasks by name and size k in sixteenths of the side, for `transforms.make_mask`.

    Inpainting k: a centred hole of k / 16 of the side. Outpainting k: a border is generated, and
    what stays visible in the centre has 1 - k / 16 of the side (protocol 4.1).
    """
    found = {("inpaint", k): {"name": "inpaint", "hole": k / 16} for k in settings.inpaint}
    return found | {
        ("outpaint", k): {"name": "outpaint", "visible": 1 - k / 16} for k in settings.outpaint
    }


def _problems(settings: ConfigDict, checkpoints: Mapping[str, Path]) -> list[str]:
    found = []

    def expect(good: bool, where: str, expected: str, got: Any) -> None:
        if not good:
            found.append(f"{where}: expected {expected}, got {got!r}")

    expect(
        bool(checkpoints) and all(n.isidentifier() and f != Path() for n, f in checkpoints.items()),
        "--checkpoints",
        "NAME=WORKDIR,… with names of letters, digits and _",
        [f"{name}={folder}" for name, folder in checkpoints.items()],
    )
    sizes = (*settings.inpaint, *settings.outpaint)
    expect(bool(sizes), "config.protocol.inpaint and .outpaint", "one size or more", sizes)
    for name in ("inpaint", "outpaint"):
        good = all(isinstance(k, int) and 1 <= k <= 15 for k in settings[name])
        expect(good, f"config.protocol.{name}", "sixteenths, 1 to 15", settings[name])
    for metric in settings.metrics:
        expect(metric in METRICS, "config.protocol.metrics", f"some of {tuple(METRICS)}", metric)
    expect(bool(settings.metrics), "config.protocol.metrics", "one or more", settings.metrics)
    if "kid" in settings.metrics:
        good, got = "fid" in settings.metrics, settings.metrics
        expect(good, "config.protocol.metrics", '"fid" beside "kid", which shares its tower', got)
    dtype = settings.dtype
    expect(dtype in ("", *DTYPES), "config.protocol.dtype", f'"" or one of {DTYPES}', dtype)
    for name in ("batch_size", "shard_size", "grid_rows"):
        expect(settings[name] >= 1, f"config.protocol.{name}", "at least 1", settings[name])
    expect(settings.per_class >= 0, "config.protocol.per_class", "0 or more", settings.per_class)
    for name, known in COMPAT.items():
        value = settings.compat[name]
        expect(value in known, f"config.protocol.compat.{name}", f"one of {known}", value)
    return found


def _extractors(settings: ConfigDict, mesh: Mesh) -> dict[str, towers.Extractor]:
    """Load the towers of the metrics, by metric; "kid" shares that of "fid"."""
    found = {}
    for metric in settings.metrics:
        if metric == "cifar10_classifier":
            found[metric] = towers.small()
        elif metric != "kid":
            found[metric] = towers.require(metric, settings.towers[metric], mesh)
    return found


def _evaluation_rows(cfg: ConfigDict, request: Request) -> Rows:
    source, settings = request.source, cfg.protocol
    forget = labels_of(source, cfg.request.classes, "request.classes").values()
    classes = settings.retain_classes or cfg.retain.classes * (cfg.retain.kind == "classes")
    retain = labels_of(source, classes, "protocol.retain_classes").values()
    if not forget:
        raise UserError(
            "evaluate --checkpoints compares forgotten with kept classes. Expected the forgotten "
            "ones in config.request.classes, got none."
        )
    if not retain:
        present = np.unique(source.labels[np.array(source.splits.get(settings.split, ()), int)])
        retain = [label for label in present.tolist() if label not in forget]
    forget, retain = ([source.class_names[label] for label in of] for of in (forget, retain))
    return published.evaluation_rows(
        source,
        forget=forget,
        retain=retain,
        split=settings.split,
        per_class=settings.per_class,
        list_file=settings.list_file,
    )


def _below_block(rows: Rows) -> str:
    """Say which sets are too small for KID; "" if none is."""
    few = [f"{len(some)} {name}" for name, some in rows.items() if len(some) < kid.BLOCK]
    return few and f"kid needs {kid.BLOCK} images of each set, there are {' and '.join(few)}."


def _complete_all(
    request: Request, checkpoints: Mapping[str, Path], rows: Rows, root: Path
) -> tuple[Files, dict[str, Any]]:
    """Complete all images; return their files, and what the models are."""
    cfg, settings = request.cfg, request.cfg.protocol
    todo = tasks(settings)
    generate = sharding.jit_rows(request.model.generate, request.mesh)
    like = request.like()
    files, models = {}, {}
    total = len(checkpoints) * len(todo) * sum(map(len, rows.values()))
    quiet = not distributed.first() or None  # None: where there is no terminal
    with tqdm(desc="complete", total=total, unit="img", dynamic_ncols=True, disable=quiet) as bar:
        for model, folder in checkpoints.items():
            params, meta = checkpoint.load_params(folder, like)
            facts = {"model": cfg.model.to_dict(), "checksums": digest(meta["checksums"])}
            facts |= {"dtype": settings.dtype} if settings.dtype else {}
            models[model] = {"step": meta["step"], "checksums": facts["checksums"]}
            for (task, size), spec in todo.items():
                files[model, task, size] = {
                    name: generation.complete(
                        generate,
                        params,
                        request.source,
                        rows[name],
                        spec,
                        root / "images" / model / f"{task}_{size}" / name,
                        facts=facts,
                        seed=cfg.seed,
                        batch_size=settings.batch_size,
                        shard_size=settings.shard_size,
                        mesh=request.mesh,
                        format=settings.compat.image_format,
                        seen=bar.update,
                    )
                    for name in SETS
                }
            del params
    return files, models


def _references(
    request: Request, rows: np.ndarray, extractors: Mapping[str, towers.Extractor], root: Path
) -> dict[str, statistics.Reference]:
    """Compute what the towers make of the originals, by metric; a score has no reference."""
    settings, found, hashes = request.cfg.protocol, {}, {}
    for metric, extractor in extractors.items():
        kinds = _kinds(settings, metric)
        if kinds == ("score",):
            continue
        compat = settings.compat
        kind = compat.clip_reference if metric == "clip_cosine" else compat.fid_reference
        item = partial(_original, request.source, rows, kind)
        if kind not in hashes:
            read = (item(i)["reference"] for i in range(len(rows)))
            hashes[kind] = [reference.image_hash(image) for image in read]
        found[metric] = reference.reference(
            root / "references",
            hashes[kind],
            (partial(item, i) for i in range(len(rows))),
            extractor,
            request.mesh,
            batch_size=settings.batch_size,
            keep_features=bool({"cosine", "kernel"} & set(kinds)),
            total=len(rows),
            title=f"originals: {metric}",
        )
    return found


def _original(source: data.Source, rows: np.ndarray, kind: str, position: int) -> features.Item:
    """Fetch the image that a completed one is compared with; see `preprocessing.FID_REFERENCES`."""
    if kind == "original_fullsize":
        image = source.original(int(rows[position]))
    else:
        image = source.fetch(rows[position : position + 1])[0]
    if kind == "resaved_gt":
        image = preprocessing.resaved(image)
    return {"position": position, "reference": image}


def _kinds(settings: ConfigDict, metric: str) -> tuple[str, ...]:
    kinds = METRICS[metric]
    return kinds + METRICS["kid"] if metric == "fid" and "kid" in settings.metrics else kinds


def _plan(
    cfg: ConfigDict,
    extractors: Mapping[str, towers.Extractor],
    references: Mapping[str, statistics.Reference],
    n: int,
) -> statistics.Plan:
    compat = cfg.protocol.compat
    uses = {
        metric: statistics.Use(
            extractor,
            _kinds(cfg.protocol, metric),
            references.get(metric),
            norm_then_flip_compat=compat.norm_then_flip and metric in FLIPPED,
        )
        for metric, extractor in extractors.items()
    }
    splits = min(10, n)  # fewer images than the published ten splits: demos only
    return statistics.Plan(
        uses, n, seed=cfg.seed, splits=splits, is_split_order=compat.is_split_order
    )


def _measure(
    request: Request, plan: statistics.Plan, files: list[Path], part: Path, title: str
) -> dict[str, Any]:
    """Measure one set of images; metrics that are found are read, new ones are kept on the way."""
    cfg, settings = request.cfg, request.cfg.protocol
    known = {name: use.reference.key for name, use in plan.uses.items() if use.reference}
    key = [statistics.provenance(plan), known, plan.is_split_order, plan.seed, plan.splits]
    key = digest([*key, [file_digest(file) for file in files]])
    done, half_done = part / f"{key[:16]}.json", part / f"{key[:16]}.npz"
    if found := distributed.agreed(read_json(done, "what was measured") if done.exists() else None):
        return found
    try:
        gathered = statistics.load(half_done, plan)
    except FileNotFoundError:
        gathered = statistics.empty(plan)
    order = statistics.order(plan)
    order = order[~gathered.seen[order]]
    format = settings.compat.image_format

    def item(position: int) -> features.Item:
        return {"position": position, "generated": generation.read(files[position], format)}

    batches = features.extract(
        (partial(item, position) for position in order.tolist()),
        statistics.streams(plan),
        request.mesh,
        batch_size=settings.batch_size,
        total=len(order),
        title=title,
    )
    unsaved = 0
    for outputs, positions, valid in batches:
        gathered = statistics.update(gathered, plan, outputs, positions, valid)
        unsaved += len(positions)
        if unsaved >= settings.shard_size:
            if distributed.first():
                statistics.save(half_done, gathered, plan)
            unsaved = 0
    bootstrap = {key: cfg.evaluation[key] for key in ("confidence", "resamples")}
    metrics = statistics.results(gathered, plan, **bootstrap)
    if distributed.first():
        done.parent.mkdir(parents=True, exist_ok=True)
        write_json(done, metrics)
        half_done.unlink(missing_ok=True)
    return metrics
