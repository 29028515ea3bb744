"""Methods x seeds on one request: every audit, beside the original and the retrained model.

    python -m unlearn_jax.compare --config=configs/cifar10_compare.py --workdir=runs/compare \\
        --config.data.data_dir=DIR

For every seed an original and a retrained model are trained, then every method of
`config.compare.methods` is applied to the original. The retrained models of the other seeds serve
as out-models (shadow models) of the membership attacks. It can be interrupted at any moment; the
same command goes on. Models trained from scratch are kept under `config.compare.models`, by a hash
of all that they depend on, and shared with other requests.

Several processes share the models' work, see `distributed`; the first one writes.

Writes results.json (every number), examples.npz, grids.npz and the leaderboard.
"""

import datetime
import hashlib
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from unlearn_jax import checkpoint, cli, config, data, distributed, files, sharding, train
from unlearn_jax.audit import conclusion, panel
from unlearn_jax.audit.measure import Measured, make_measure, witnesses_of
from unlearn_jax.audit.panel import Seed
from unlearn_jax.config import identity
from unlearn_jax.config.validation import validate
from unlearn_jax.data import lineage, poison, splits, transforms
from unlearn_jax.evaluate import results
from unlearn_jax.registry import UserError
from unlearn_jax.report import leaderboard
from unlearn_jax.request import Request, load
from unlearn_jax.training import lease

UTILITY = {
    "unseen_loss": {"label": "Loss on unseen images", "unit": "mean training loss"},
    "retain_loss": {"label": "Loss on retained training images", "unit": "mean training loss"},
}
COSTS = ("steps", "examples", "flops", "wall_s", "compile_s")
FIXED = {"original": "Original", "retrained": "Retrained without the forget set"}


@lease.exclusively()
def run(cfg: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Compare the methods: return workdir/results.json; the leaderboard is written beside it.

    Args:
      cfg: the config; its `compare` section names seeds and methods. `cfg.seed` is not used.
      workdir: gets METHOD/SEED/ (runs), measured/, results.json and the leaderboard.

    Raises:
      UserError: the config, the data or the workdir are not what they must be; no methods.
    """
    validate(cfg)
    if cfg.init_from:
        raise UserError(
            "compare trains originals of its own: expected no config.init_from, got "
            f"{cfg.init_from!r}. Leave it out; request.served names a model whose past counts."
        )
    if not cfg.compare.methods or not cfg.compare.seeds:
        raise UserError("compare: expected config.compare.methods and config.compare.seeds.")
    # Every model of a kind runs the same programs: compile them once.
    jax.config.update("jax_compilation_cache_dir", str((workdir / "compiled").absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    runs = train_all(cfg, workdir)
    measured, grids = measure_all(cfg, workdir, runs)
    found = assemble(cfg, load(cfg, workdir)[1], runs, measured)
    examples = {"index/forget": next(iter(measured.values()))["index/forget"]}
    examples |= {f"error/{m}/{s}": found["error/forget"] for (m, s), found in measured.items()}
    if not distributed.first():
        return found
    workdir.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(workdir / "examples.npz", **examples)
    np.savez_compressed(workdir / "grids.npz", **grids)
    files.write_json(workdir / "results.json", found)
    leaderboard.write(workdir)
    return found


Runs = dict[tuple[str, int], tuple[Path, dict[str, Any]]]  # (model, seed) -> workdir, meta


def train_all(cfg: ConfigDict, workdir: Path) -> Runs:
    """Train the models that are not there yet; return where every model is."""
    source, split = load(cfg, workdir)
    shared = Path(cfg.compare.models or workdir / "models")
    runs: Runs = {}

    def trained(part: ConfigDict, folder: Path) -> dict[str, Any]:
        meta = train.run(part, folder)
        return meta | {"steps": meta["step"]}

    def from_scratch(part: ConfigDict, stage: str) -> tuple[Path, dict[str, Any]]:
        part.stage, part.init_from, part.reference_from = stage, "", ""
        rows = getattr(split, part.stages[stage].rows)
        more = data.facts(source)
        facts = identity.relevant(part, rows=lineage.trained_on(split, rows), **more)
        name = hashlib.sha256(identity.to_json(facts).encode()).hexdigest()[:12]
        folder = shared / f"{stage}-{name}"
        return folder, trained(part, folder)

    for seed in cfg.compare.seeds:
        part = cfg.copy_and_resolve_references()
        part.seed = seed
        for stage in FIXED:
            runs[stage, seed] = from_scratch(part, stage)
    for seed in cfg.compare.seeds:
        for name in config.chosen_methods(cfg):
            method = cfg.compare.methods[name]
            part = cfg.copy_and_resolve_references()
            part.seed = seed
            spent, reference = {}, ""
            used = [part.phases[phase] for phase in method.phases]
            if any("reference" in (*of.goal.split("+"), of.shrink.towards) for of in used):
                folder, spent = from_scratch(part, "reference")
                reference = str(folder)
            part.stage, part.reference_from = "unlearned", reference
            part.init_from = str(runs["original", seed][0])
            part.stages.unlearned.phases = method.phases
            folder = workdir / name / str(seed)
            meta = trained(part, folder)
            for key in COSTS:
                meta[key] += spent.get(key, 0)
            runs[name, seed] = folder, meta
    return runs


def measure_all(
    cfg: ConfigDict, workdir: Path, runs: Runs
) -> tuple[dict[tuple[str, int], Measured], dict[str, np.ndarray]]:
    """Measure every model.

    Return ({(model, seed): what the audits need}, images of the first seed's models).
    """
    request = Request(cfg, workdir)
    split, like = request.split, request.like()
    measure = make_measure(request, witnesses_of(cfg)[0])
    of_request = hashlib.sha256(
        json.dumps([split.manifest["hash"], cfg.audit.to_dict()]).encode()
    ).hexdigest()[:12]
    measured: dict[tuple[str, int], Measured] = {}
    quiet = not distributed.first() or None  # None: where there is no terminal
    for name, seed in tqdm(runs, desc="audit", unit="model", dynamic_ncols=True, disable=quiet):
        folder = runs[name, seed][0]
        path = workdir / "measured" / f"{name}-{seed}-{of_request}.npz"
        if not distributed.agreed(path.exists()):
            params, _ = checkpoint.load_params(folder, like)
            lineage.check_model(split, folder, name if name in FIXED else "unlearned")
            target, _ = checkpoint.load_params(runs["original", seed][0], like)
            found = measure(params, target)
            if distributed.first():
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_suffix(".partial")
                with partial.open("wb") as file:
                    np.savez_compressed(file, **found)
                partial.replace(path)
            distributed.agreed(True)  # that it is there
        with np.load(path, allow_pickle=False) as archive:
            measured[name, seed] = {key: archive[key] for key in archive.files}
    return measured, _grids(request, runs)


def _grids(request: Request, runs: Runs) -> dict[str, np.ndarray]:
    """Complete forget images and, after poison, unseen ones with the trigger; first seed."""
    cfg, mesh, split, model = request.cfg, request.mesh, request.split, request.model
    like, task, grids = request.like(), cfg.task.to_dict(), {}
    chosen = {"forget": np.setdiff1d(split.forget, split.poisoned)}
    if split.poisoned.size:
        chosen["triggered"] = split.audit
    folders = {name: runs[name, seed][0] for name, seed in runs if seed == cfg.compare.seeds[0]}
    generate = sharding.jit_rows(model.generate, mesh)
    for kind, rows in chosen.items():
        rows = np.sort(np.random.default_rng(cfg.request.seed).permutation(rows)[:6])
        loader = data.make_eval(
            request.source, rows, batch_size=cfg.batch_size, task=task, seed=cfg.request.seed
        )
        batch = next(iter(loader))
        if kind == "triggered":
            triggered = poison.design(task, cfg.data.image_size).show
            images = triggered(transforms.to_uint8(batch["image"]))
            batch |= {"image": transforms.to_float(images)}
        shown = {"input": batch["image"] * (1 - batch["mask"]), "truth": batch["image"]}
        for name, folder in folders.items():
            params, _ = checkpoint.load_params(folder, like)
            output = generate(params, sharding.split_batch(batch, mesh), jax.random.key(0))
            shown[name] = distributed.fetch(output)
        grids |= {f"{kind}/{k}": transforms.to_uint8(v[batch["valid"]]) for k, v in shown.items()}
    return grids


def assemble(
    cfg: ConfigDict, split: splits.Split, runs: Runs, measured: Mapping[tuple[str, int], Measured]
) -> dict[str, Any]:
    """Assemble results.json, from what was trained and measured.

    Of each model: "seeds": {seed: {"audits", "utility": {row: estimate}, "cost"}}; of each method
    also "panel", what `conclusion.judge` says of all seeds, paired. In a seed, the retrained models
    of the others are the further ones.
    """
    seeds = list(cfg.compare.seeds)
    bootstrap = {key: cfg.evaluation[key] for key in ("confidence", "resamples")}
    bootstrap |= {"seed": cfg.request.seed}
    audits = witnesses_of(cfg)[0]
    found: dict[str, Any] = {}
    rows: dict[str, Any] = {}
    names = dict(FIXED)
    names |= {name: cfg.compare.methods[name].label for name in config.chosen_methods(cfg)}

    def models(name: str, seed: int) -> Seed:
        three = (measured[m, seed] for m in ("original", name, "retrained"))
        return Seed(*three, [measured["retrained", other] for other in seeds if other != seed])

    for name, label in tqdm(
        names.items(),
        desc="judge",
        unit="model",
        dynamic_ncols=True,
        disable=not distributed.first() or None,
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
            cost = results.cost(runs[name, seed][1], runs["retrained", seed][1])
            _, model, _, outs = models(name, seed)
            values = {
                "audits": panel.estimates(audits, model, outs, **bootstrap),
                "utility": {f"{s}_loss": _mean(model[f"loss/{s}"]) for s in ("unseen", "retain")},
                "cost": {k.replace("_ratio", "_fraction"): v for k, v in cost.items()},
            }
            found[name]["seeds"][str(seed)] = values
    _mark_early_stopped(found, measured)
    return {
        "format": 2,
        "name": cfg.name,
        "command": shlex.join(["python", "-m", "unlearn_jax.compare", *sys.argv[1:]]),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **results.provenance(cfg, split),
        "poison": {"text": splits.describe_poison(split)} if split.poisoned.size else None,
        "seeds": seeds,
        "audits": {
            row: {k: of[k] for k in ("label", "family", "unit")} for row, of in rows.items()
        },
        "utility": UTILITY,
        "models": found,
    }


def _mark_early_stopped(
    found: dict[str, Any], measured: Mapping[tuple[str, int], Measured]
) -> None:
    """Say in its label which training from scratch is best on unseen images: what to compare with.

    Trained to the end, a model is often past its best. Chosen on calibration images, of the
    methods that start from scratch, shrink.alpha = 1, and retraining itself.
    """
    losses = {
        name: np.mean([measured[name, int(s)]["loss/calibration"].mean() for s in of["seeds"]])
        for name, of in found.items()
        if (name == "retrained" or of["phases"][0]["shrink"]["alpha"] == 1)
        and all("loss/calibration" in measured[name, int(s)] for s in of["seeds"])
    }
    best = min(losses, key=losses.get, default="retrained")
    if best != "retrained":
        found[best]["label"] += " (best early-stopped)"


def _mean(loss: np.ndarray) -> dict[str, Any]:
    return {"value": float(loss.mean(dtype=np.float64)), "n": len(loss)}


def main(cfg: ConfigDict, workdir: Path) -> None:
    """Run the command."""
    found = run(cfg, workdir)
    if distributed.first():
        print(
            leaderboard.markdown(found), f"Leaderboard: {workdir / 'leaderboard.html'}", sep="\n\n"
        )


if __name__ == "__main__":
    cli.start(main, needs=("config", "workdir"), several=True)
