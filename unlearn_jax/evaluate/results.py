"""The results of a request: every model on every set, with intervals, and the costs."""

import datetime
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

import unlearn_jax
from unlearn_jax import checkpoint, data, distributed, files, sharding
from unlearn_jax.audit import limits
from unlearn_jax.certify import guarantee
from unlearn_jax.certify.exact import verify as exact
from unlearn_jax.config import identity
from unlearn_jax.data import lineage, served, splits
from unlearn_jax.evaluate.metrics import displacement, reconstruction
from unlearn_jax.evaluate.metrics.reconstruction import METRICS, interval
from unlearn_jax.request import Request, original_workdir, past_of
from unlearn_jax.training import lease

MODELS = ("original", "unlearned", "retrained")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy")


@lease.exclusively()
def run(cfg: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Measure the models; return the results as they are written to workdir/results.json.

    Several processes share the models' work; each prepares all images, the first one writes.

    Raises:
      UserError: there is no original, or a run has not finished.
    """
    request, past = Request(cfg, workdir), past_of(cfg)
    mesh, split, model = request.mesh, request.split, request.model
    sharding.check_batch_size(cfg.batch_size, mesh)
    like = request.like()

    params, stages = {}, {}
    for name in MODELS:
        folder = original_workdir(cfg, workdir) if name == "original" else workdir / name
        if name == "original" or (folder / checkpoint.DIRECTORY).exists():
            params[name], meta = checkpoint.load_params(folder, like)
            lineage.check_model(split, folder, role=name)
            if folder.parent == workdir:  # trained in this request, not taken from elsewhere
                keys = ("phases", "wall_s", "compile_s", "examples", "flops")
                stages[name] = {"steps": meta["step"]} | {key: meta[key] for key in keys}

    examples, grids = {}, {}
    rng = np.random.default_rng(cfg.seed)
    sets = {"forget": split.forget, "retain": split.remaining, "holdout": split.audit}
    sets = {name: rows for name, rows in sets.items() if len(rows)}
    if len(sets.get("retain", ())) > cfg.evaluation.retain_rows:
        sets["retain"] = np.sort(rng.choice(sets["retain"], cfg.evaluation.retain_rows, False))
    audit = _recorded(workdir / "audit.json")
    best_known = [of["index"] for of in (audit or {}).get("worst_images", ())]
    best_known = [row for row in best_known if row in split.forget]
    if cfg.report.pictures and (worst := best_known[: cfg.evaluation.grid_rows]):
        sets["worst"] = np.array(worst)
    total = sum(map(len, sets.values()))
    quiet = not distributed.first() or None  # None: where there is no terminal
    with tqdm(desc="evaluate", total=total, unit="img", dynamic_ncols=True, disable=quiet) as bar:
        for number, (name, rows) in enumerate(sets.items()):
            if name != "worst":  # so that the first ones, which are shown, are typical
                rows = rng.permutation(rows)
            batches = data.make_eval(
                request.source,
                rows,
                batch_size=cfg.batch_size,
                task=cfg.task.to_dict(),
                seed=cfg.seed,
            )
            key = jax.random.fold_in(jax.random.key(cfg.seed), number)
            keep = cfg.evaluation.grid_rows
            measured = reconstruction.measure(
                model, params, batches, mesh, key, keep=keep, seen=bar.update
            )
            for collected, part in zip((examples, grids), measured, strict=True):
                collected |= {_insert(name, key): value for key, value in part.items()}
    examples = {key: value for key, value in examples.items() if "worst/" not in key}
    shown = {row for key, rows in grids.items() if key.endswith("/index") for row in rows.tolist()}
    shown |= {*best_known, *((audit or {}).get("images") or {}).get("rows", ())}
    named = sorted(shown) if cfg.report.names else ()

    results = {
        "format": 1,
        "seed": cfg.seed,
        **provenance(cfg, split),
        "task": cfg.task.to_dict(),
        "metrics": METRICS,
        "stages": stages,
        "certificate": guarantee.of_run(workdir / "unlearned", original_workdir(cfg, workdir)),
        "exact": exact.of_model(workdir / "unlearned"),
        "audit": audit,
        "names": {str(row): request.source.ids[row] for row in named},
        "past": {
            "claim": past.claim if past else "",
            "requests": [of["text"] for of in split.manifest["served"]],
        },
        "limits": [limit._asdict() for limit in limits.of_request(cfg, split, list(params))],
        **statistics(cfg, examples, list(params)),
        "displacement": displacement.of_request(examples, cfg, list(params)),
        **costs(stages),
    }
    if quiet:
        return results
    np.savez_compressed(workdir / "examples.npz", **examples)
    if cfg.report.pictures:
        np.savez_compressed(workdir / "grids.npz", **grids)
    files.write_json(workdir / "results.json", results)
    if "unlearned" in params and cfg.request.remember:
        _remember(request)
    return results


def _remember(request: Request) -> None:
    """Write the request beside its data, for every later training."""
    if where := served.place(request.cfg.data):
        try:
            served.remember(where, request.entry())
        except OSError as error:
            print(
                f"warning: {where[0]} could not be written ({error}): later trainings on these "
                "data will not leave the forgotten images out. Make it writable, and evaluate "
                "again.",
                file=sys.stderr,
            )


def provenance(cfg: ConfigDict, split: splits.Split) -> dict[str, Any]:
    """Describe what results of this config and split were made from, with, and on."""
    return {
        "name": cfg.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": json.loads(identity.to_json(cfg)),
        "versions": {"unlearn_jax": unlearn_jax.__version__, "python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in PACKAGES},
        "hardware": hardware(),
        "request": {"kind": cfg.request.kind, "text": splits.describe(split)},
        "split": {"hash": split.manifest["hash"], "n": split.manifest["counts"]},
        "copies": {"exact": split.manifest.get("copies"), "near": split.manifest.get("near", [])},
        "confidence": cfg.evaluation.confidence,
    }


def hardware() -> str:
    """Describe the machine: devices, CPU cores."""
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return f"{devices}, {os.cpu_count()} CPU cores ({platform.machine()})"


def statistics(cfg: ConfigDict, examples: dict[str, np.ndarray], names: list[str]) -> dict:
    """Compute means with intervals.

    They are per model and set, for forget minus holdout, and for unlearned minus retrained.
    """
    settings = cfg.evaluation
    mean = partial(
        interval, confidence=settings.confidence, resamples=settings.resamples, seed=cfg.seed
    )
    sets = [s for s in ("forget", "retain", "holdout") if _columns(examples, f"{names[0]}/{s}/")]
    found: dict[str, Any] = {"evaluation": {}, "contrasts": {}}
    for model in names:
        of = {s: _columns(examples, f"{model}/{s}/") for s in sets}
        found["evaluation"][model] = {
            s: {metric: mean(values) for metric, values in of[s].items()} for s in sets
        }
        if "holdout" in sets:
            found["contrasts"][model] = {
                metric: mean(of["forget"][metric], of["holdout"][metric]) for metric in of["forget"]
            }
    if {"unlearned", "retrained"} <= set(names):
        found["gaps"] = {}
        for s in sets:
            a, b = (_columns(examples, f"{model}/{s}/") for model in ("unlearned", "retrained"))
            found["gaps"][s] = {metric: mean(a[metric] - b[metric]) for metric in a}
    return found


def _insert(name: str, key: str) -> str:
    """Insert the set: "index" -> "forget/index"; "original/psnr" -> "original/forget/psnr"."""
    model, slash, metric = key.rpartition("/")
    return f"{model}{slash}{name}/{metric}"


def _columns(examples: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in examples.items() if k.startswith(prefix)}


def costs(stages: dict[str, Any]) -> dict[str, Any]:
    """Return {"cost": `cost` of unlearning over retraining}, if both were done here."""
    if not {"unlearned", "retrained"} <= set(stages):
        return {}
    return {"cost": cost(stages["unlearned"], stages["retrained"])}


def cost(run: Mapping[str, Any], retraining: Mapping[str, Any]) -> dict[str, float | None]:
    """Return one run over another: ratios of steps, examples, FLOPs, seconds without compiling.

    That of FLOPs is None if those of one were not counted, as of models of version 0.2 that were
    trained on a GPU or a TPU.
    """
    seconds = [found["wall_s"] - found["compile_s"] for found in (run, retraining)]
    ratios = {f"{key}_ratio": run[key] / retraining[key] for key in ("steps", "examples")}
    counted = run["flops"] and retraining["flops"]
    flops = run["flops"] / retraining["flops"] if counted else None
    return ratios | {"flops_ratio": flops, "wall_ratio": seconds[0] / seconds[1]}


def _recorded(path: Path) -> dict[str, Any] | None:
    """Read what another part has written, if it has run."""
    return files.read_json(path, "an audit") if path.exists() else None
