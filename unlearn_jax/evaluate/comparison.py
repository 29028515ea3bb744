"""The record of a comparison: what was measured of each point, and the results made of it.

A point is a model with a seed. WORKDIR/points.jsonl gets a line of each as it is measured, after
one that says what comparison they are of. The panel needs numbers of every image: they, and a few
completed images, are compressed arrays in WORKDIR/measured/, and the line has their sha256. Results
and leaderboard are made of both alone, without the models and the data.
"""

import copy
import datetime
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from unlearn_jax import config, distributed, files, registry
from unlearn_jax.audit import conclusion, panel
from unlearn_jax.audit.measure import Measured, witnesses_of
from unlearn_jax.audit.panel import Seed
from unlearn_jax.config import identity
from unlearn_jax.data import splits
from unlearn_jax.evaluate import results
from unlearn_jax.registry import UserError

POINTS, ARRAYS = "points.jsonl", "measured"  # in the workdir
PICTURES = "pictures/"  # prefix of the arrays that are completed images
FIXED = {"original": "Original", "retrained": "Retrained without the forget set"}
UTILITY = {
    "unseen_loss": {"label": "Loss on unseen images", "unit": "mean training loss"},
    "retain_loss": {"label": "Loss on retained training images", "unit": "mean training loss"},
}
COSTS = ("steps", "examples", "flops", "wall_s", "compile_s")
Key = tuple[str, int]  # model, seed
# Keys that parts of one comparison may differ in: who computes what, where, and how fast.
_FREE = ("name", "mesh", "sharding", "log_every", "log", "accumulate", "checkpoint", "report")
_FREE += ("seed", "stage", "init_from", "reference_from")


class Point(NamedTuple):
    """A point as it was measured: its line, and its arrays."""

    line: Mapping[str, Any]
    measured: Measured


Points = dict[Key, Point]


def about(cfg: ConfigDict, split: splits.Split) -> dict[str, Any]:
    """Describe a comparison: config, request and versions, for its points and its results."""
    found = results.provenance(cfg, split)
    poison = {"text": splits.describe_poison(split)} if split.poisoned.size else None
    return {k: v for k, v in found.items() if k not in ("created", "hardware")} | {"poison": poison}


def append(
    workdir: Path, of: Mapping[str, Any], key: Key, trained: Mapping[str, Any], path: Path
) -> None:
    """Add a point's line: what training took, mean losses, where and when, its arrays' sha256.

    Args:
      workdir: of the comparison.
      of: `about` it.
      key: of the point.
      trained: `COSTS` of all training that the model took.
      path: of the arrays, which are there.
    """
    lines = files.read_jsonl(workdir / POINTS)
    if {"about": of} not in lines:
        lines.append({"about": dict(of)})
    measured = read_arrays(path)
    line = {"of": tag(of), "model": key[0], "seed": key[1], "created": _now()}
    line |= {"hardware": results.hardware(), **{k: trained[k] for k in COSTS}}
    line |= {f"{s}_loss": _mean(measured[f"loss/{s}"]) for s in ("unseen", "retain")}
    lines.append(line | {"arrays": path.name, "sha256": files.file_digest(path)})
    files.write_text(workdir / POINTS, "".join(json.dumps(line) + "\n" for line in lines))


def read(workdir: Path, of: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Points]:
    """Return what a comparison is about, and its points; of several in a workdir, the last one's.

    Raises:
      UserError: there is none, or a file is not what was written.
    """
    path = workdir / POINTS
    with files.of_others(path, "the record of a comparison"):
        lines = files.read_jsonl(path)
        headers = {tag(line["about"]): line["about"] for line in lines if "about" in line}
        if not headers:
            raise UserError(f"{path}: expected the points of a comparison, found none.")
        chosen = tag(of) if of else list(headers)[-1]
        found = {(p["model"], p["seed"]): p for p in lines if p.get("of") == chosen}
        arrays = {key: workdir / ARRAYS / Path(p["arrays"]).name for key, p in found.items()}
        altered = [
            str(arrays[key])
            for key, p in found.items()
            if not arrays[key].is_file() or files.file_digest(arrays[key]) != p["sha256"]
        ]
        if altered:
            raise UserError(f"missing, or not as measured: {', '.join(altered[:5])}.")
        return headers.get(chosen, {}), {
            k: Point(p, read_arrays(arrays[k])) for k, p in found.items()
        }


def merge(workdirs: Sequence[Path]) -> tuple[dict[str, Any], Points]:
    """Return the points of several workdirs, which are parts of one comparison.

    They may differ in seeds and methods, and in what `_FREE` names.

    Raises:
      UserError: config, versions or request differ (the message says in what), or two workdirs
        have the same point with other numbers.
    """
    merged, points = read(workdirs[0])
    for workdir in workdirs[1:]:
        other, more = read(workdir)
        if changed := identity.changes(_shared(merged), _shared(other), "comparison"):
            listed = "\n".join(f"  {line}" for line in changed[:20])
            raise UserError(f"{workdir} is of another comparison than {workdirs[0]}:\n{listed}")
        for (name, seed), point in more.items():
            if points.setdefault((name, seed), point).line["sha256"] != point.line["sha256"]:
                raise UserError(
                    f"{name}, seed {seed}: {workdir} has other numbers of it than the workdirs "
                    "before it. Leave one of them out."
                )
    merged = copy.deepcopy(merged)
    names = {name for name, _ in points}
    merged["config"]["compare"] |= {
        "seeds": sorted({seed for _, seed in points}),
        "only": [name for name in merged["config"]["compare"]["methods"] if name in names],
    }
    return merged, points


def tag(of: Mapping[str, Any]) -> str:
    """Return a hash of what parts of one comparison share."""
    return files.digest(_shared(of))[:12]


def _shared(of: Mapping[str, Any]) -> dict[str, Any]:
    full = identity.filled(identity.tuples(of["config"]))  # as if all keys had been there
    config = {k: v for k, v in json.loads(identity.to_json(full)).items() if k not in _FREE}
    config["data"] = {k: v for k, v in config["data"].items() if k not in identity.NOT_HASHED_DATA}
    config["compare"] = {"methods": config["compare"]["methods"]}
    versions = {k: v for k, v in of["versions"].items() if k != "python"}
    return {"config": config, "versions": versions, "request": of["split"]["hash"]}


@registry.of_record()
def assemble(of: Mapping[str, Any], points: Points) -> dict[str, Any]:
    """Assemble results.json, from what was trained and measured.

    Of each model: "seeds": {seed: {"audits", "utility": {row: estimate}, "cost"}}; of each method
    also "panel", what `conclusion.judge` says of all seeds, paired. In a seed, the retrained models
    of the others are the further ones.

    Raises:
      UserError: a point is missing, or points are of different images.
    """
    cfg = identity.filled(identity.tuples(of["config"]))
    seeds = list(cfg.compare.seeds)
    names = dict(FIXED)
    names |= {name: cfg.compare.methods[name].label for name in config.chosen_methods(cfg)}
    _check_complete(points, list(names), seeds)
    bootstrap = {key: cfg.evaluation[key] for key in ("confidence", "resamples")}
    bootstrap |= {"seed": cfg.request.seed}
    audits = witnesses_of(cfg)[0]
    found: dict[str, Any] = {}
    rows: dict[str, Any] = {}

    def models(name: str, seed: int) -> Seed:
        three = (points[m, seed].measured for m in ("original", name, "retrained"))
        others = [points["retrained", other].measured for other in seeds if other != seed]
        return Seed(*three, others)

    quiet = not distributed.first() or None  # None: where there is no terminal
    for name, label in tqdm(
        names.items(), desc="judge", unit="model", dynamic_ncols=True, disable=quiet
    ):
        method = cfg.compare.methods.get(name)
        phases = method.phases if method else cfg.stages[name].phases
        found[name] = {
            "kind": name if name in FIXED else "method",
            "label": label,
            "source": method.source if method else "",
            "default": bool(method) and tuple(phases) == tuple(cfg.stages.unlearned.phases),
            "phases": [{"name": p} | cfg.phases[p].to_dict() for p in phases],
            "seeds": {},
        }
        if method:
            judged = conclusion.judge(audits, [models(name, s) for s in seeds], **bootstrap)
            found[name]["panel"] = judged
            rows = judged["witnesses"]
        for seed in seeds:
            line = points[name, seed].line
            cost = results.cost(line, points["retrained", seed].line)
            of_seed = models(name, seed)
            values = {
                "audits": panel.estimates(audits, of_seed.unlearned, of_seed.further, **bootstrap),
                "utility": {row: line[row] for row in UTILITY},
                "cost": {k.replace("_ratio", "_fraction"): v for k, v in cost.items()},
            }
            found[name]["seeds"][str(seed)] = values
    _mark_early_stopped(found, points)
    module = getattr(sys.modules["__main__"].__spec__, "name", "unlearn_jax.compare")
    return {
        "format": 2,
        **of,
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "created": _now(),
        "hardware": "; ".join(sorted({point.line["hardware"] for point in points.values()})),
        "seeds": seeds,
        "audits": {
            row: {k: of[k] for k in ("label", "family", "unit")} for row, of in rows.items()
        },
        "utility": UTILITY,
        "models": found,
    }


def _mark_early_stopped(found: dict[str, Any], points: Points) -> None:
    """Say in its label which training from scratch is best on unseen images: what to compare with.

    Trained to the end, a model is often past its best. Chosen on calibration images, of the
    methods that start from scratch, shrink.alpha = 1, and retraining itself.
    """
    seeds = next(iter(found.values()))["seeds"]
    losses = {
        name: np.mean([points[name, int(s)].measured["loss/calibration"].mean() for s in seeds])
        for name, of in found.items()
        if (name == "retrained" or of["phases"][0]["shrink"]["alpha"] == 1)
        and all("loss/calibration" in points[name, int(s)].measured for s in seeds)
    }
    best = min(losses, key=losses.get, default="retrained")
    if best != "retrained":
        found[best]["label"] += " (best early-stopped)"


def _check_complete(points: Points, names: Sequence[str], seeds: Sequence[int]) -> None:
    wanted = [(name, seed) for seed in seeds for name in names]
    if missing := [
        f"{name} with seed {seed}" for name, seed in wanted if (name, seed) not in points
    ]:
        raise UserError(
            f"comparison: {len(missing)} of {len(wanted)} points are not measured: "
            f"{', '.join(missing[:10])}. Finish them, or merge the workdirs that have them."
        )
    rows = [points[key].measured["index/forget"] for key in wanted]
    if odd := [key for key, x in zip(wanted, rows, strict=True) if not np.array_equal(x, rows[0])]:
        raise UserError(f"comparison: {odd[0]} was measured on other images than {wanted[0]}.")


def write(workdir: Path, of: Mapping[str, Any], points: Points) -> dict[str, Any]:
    """Write results.json, examples.npz and grids.npz of all points; return the results."""
    found = assemble(of, points)
    chosen = [(name, seed) for name in found["models"] for seed in found["seeds"]]
    examples = {"index/forget": points[chosen[0]].measured["index/forget"]}
    grids = {}
    for name, seed in chosen:
        measured = points[name, seed].measured
        examples[f"error/{name}/{seed}"] = measured["error/forget"]
        if seed == found["seeds"][0]:
            grids |= {k.removeprefix(PICTURES): v for k, v in measured.items() if PICTURES in k}
    if distributed.first():
        workdir.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(workdir / "examples.npz", **examples)
        np.savez_compressed(workdir / "grids.npz", **grids)
        files.write_json(workdir / "results.json", found)
    return found


def read_arrays(path: Path) -> Measured:
    """Read the arrays of a point; raise UserError if they are damaged."""
    with files.of_others(path, "the arrays of a point"):
        return files.unzip(files.regular(path))


def _mean(loss: np.ndarray) -> dict[str, Any]:
    return {"value": float(loss.mean(dtype=np.float64)), "n": len(loss)}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
