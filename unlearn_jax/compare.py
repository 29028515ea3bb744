"""Methods x seeds on one request: every audit, beside the original and the retrained model.

    python -m unlearn_jax.compare --config=configs/cifar10_compare.py --workdir=runs/compare \\
        --config.data.data_dir=DIR

For every seed an original and a retrained model are trained, then every method of
`config.compare.methods` is applied to the original. The retrained models of the other seeds serve
as out-models (shadow models) of the membership attacks. It can be interrupted at any moment; the
same command goes on. Models trained from scratch are kept under `config.compare.models`, by a hash
of all that they depend on, and shared with other requests.

Several processes share the models' work, see `distributed`; the first one writes.

Writes points.jsonl and measured/ as it goes, see `evaluate.comparison`, and from these results.json
(every number), examples.npz, grids.npz and the leaderboard. With --only_seed=N, a machine makes one
seed's part; `leaderboard --merge=DIR,DIR --workdir=OUT` joins them.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from unlearn_jax import checkpoint, cli, config, data, distributed, files, sharding, train
from unlearn_jax.audit.measure import Measured, make_measure, witnesses_of
from unlearn_jax.config import identity
from unlearn_jax.config.validation import validate
from unlearn_jax.data import lineage, poison, transforms
from unlearn_jax.evaluate import comparison
from unlearn_jax.models import Params
from unlearn_jax.registry import UserError
from unlearn_jax.report import leaderboard
from unlearn_jax.request import Request, load
from unlearn_jax.training import lease

Runs = dict[comparison.Key, tuple[Path, dict[str, Any]]]  # (model, seed) -> workdir, meta


@lease.exclusively()
def run(cfg: ConfigDict, workdir: Path, only_seed: int | None = None) -> dict[str, Any] | None:
    """Compare the methods: return workdir/results.json; the leaderboard is written beside it.

    Args:
      cfg: the config; its `compare` section names seeds and methods. `cfg.seed` is not used.
      workdir: gets METHOD/SEED/ (runs), points.jsonl, measured/, results.json and the leaderboard.
      only_seed: of `cfg.compare.seeds`: train and measure this seed's models and return None; what
        machines made is joined by the command `leaderboard --merge`. None: all seeds.

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
    if only_seed not in (None, *cfg.compare.seeds):
        raise UserError(
            f"--only_seed: expected one of config.compare.seeds, {tuple(cfg.compare.seeds)}, got "
            f"{only_seed}."
        )
    # Every model of a kind runs the same programs: compile them once.
    jax.config.update("jax_compilation_cache_dir", str((workdir / "compiled").absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    of = comparison.about(cfg, load(cfg, workdir)[1])
    seeds = cfg.compare.seeds if only_seed is None else (only_seed,)
    measure_all(cfg, workdir, train_all(cfg, workdir, seeds), of)
    if only_seed is not None:
        return None
    found = comparison.write(workdir, of, comparison.read(workdir, of)[1])
    if distributed.first():
        leaderboard.write(workdir)
    return found


def train_all(cfg: ConfigDict, workdir: Path, seeds: Sequence[int]) -> Runs:
    """Train the models of some seeds that are not there yet; return where every model is."""
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

    for seed in seeds:
        part = cfg.copy_and_resolve_references()
        part.seed = seed
        for stage in comparison.FIXED:
            runs[stage, seed] = from_scratch(part, stage)
    for seed in seeds:
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
            for key in comparison.COSTS:
                meta[key] += spent.get(key, 0)
            runs[name, seed] = folder, meta
    return runs


def measure_all(cfg: ConfigDict, workdir: Path, runs: Runs, of: Mapping[str, Any]) -> None:
    """Measure every model that is not measured yet; write its arrays and its line.

    Args:
      cfg: of the comparison.
      workdir: of it, see `comparison`.
      runs: models and originals.
      of: what the comparison is about.
    """
    request = Request(cfg, workdir)
    split, like = request.split, request.like()
    measure, pictures = make_measure(request, witnesses_of(cfg)[0]), make_pictures(request)
    of_request = hashlib.sha256(
        json.dumps([split.manifest["hash"], cfg.audit.to_dict()]).encode()
    ).hexdigest()[:12]
    lines = [line for line in files.read_jsonl(workdir / comparison.POINTS) if "of" in line]
    done = {(line["arrays"], line["of"] == comparison.tag(of)) for line in lines}
    quiet = not distributed.first() or None  # None: where there is no terminal
    for name, seed in tqdm(runs, desc="audit", unit="model", dynamic_ncols=True, disable=quiet):
        folder, trained = runs[name, seed]
        path = workdir / comparison.ARRAYS / f"{name}-{seed}-{of_request}.npz"
        if distributed.agreed((path.name, True) in done and path.exists()):
            continue
        params, _ = checkpoint.load_params(folder, like)
        lineage.check_model(split, folder, name if name in comparison.FIXED else "unlearned")
        # Arrays of before there were lines are taken; those of other versions are not.
        if distributed.agreed(path.exists() and (path.name, False) not in done):
            found = comparison.read_arrays(path)
        else:
            target, _ = checkpoint.load_params(runs["original", seed][0], like)
            found = measure(params, target)
        found |= pictures(params, truth=name == "original", name=name)
        if distributed.first():
            with files.whole(path) as partial, partial.open("wb") as file:
                np.savez_compressed(file, **found)
            comparison.append(workdir, of, (name, seed), trained, path)
        distributed.agreed(True)  # that it is there


def make_pictures(request: Request) -> Callable[..., Measured]:
    """Return a function that completes a few forget images and, after poison, triggered ones.

    (params, name, truth) -> {"pictures/forget/NAME": [6 h w 3] uint8, …}, with the input and the
    truth if asked for.
    """
    cfg, split, model = request.cfg, request.split, request.model
    chosen = {"forget": np.setdiff1d(split.forget, split.poisoned)}
    if split.poisoned.size:
        chosen["triggered"] = split.audit
    batches = {}
    for kind, rows in chosen.items():
        rows = np.sort(np.random.default_rng(cfg.request.seed).permutation(rows)[:6])
        loader = data.make_eval(
            request.source, rows, batch_size=cfg.batch_size, task=cfg.task.to_dict(),
            seed=cfg.request.seed,
        )  # fmt: skip
        batch = batches[kind] = next(iter(loader))
        if kind == "triggered":
            triggered = poison.design(cfg.task.to_dict(), cfg.data.image_size).show
            images = triggered(transforms.to_uint8(batch["image"]))
            batch |= {"image": transforms.to_float(images)}
    generate = sharding.jit_rows(model.generate, request.mesh)

    def complete(params: Params, name: str, truth: bool) -> Measured:
        found = {}
        for kind, batch in batches.items():
            shown = {}
            if truth:
                shown = {"input": batch["image"] * (1 - batch["mask"]), "truth": batch["image"]}
            output = generate(params, sharding.split_batch(batch, request.mesh), jax.random.key(0))
            shown[name] = distributed.fetch(output)
            for column, images in shown.items():
                found[f"{comparison.PICTURES}{kind}/{column}"] = transforms.to_uint8(
                    images[batch["valid"]]
                )
        return found

    return complete


def main(cfg: ConfigDict, workdir: Path) -> None:
    """Run the command."""
    found = run(cfg, workdir, flags.FLAGS.only_seed)
    if not distributed.first():
        return
    if found is None:
        print(f"Measured all models of this seed: {workdir / comparison.POINTS}.")
        return
    print(leaderboard.markdown(found), f"Leaderboard: {workdir / 'leaderboard.html'}", sep="\n\n")


if __name__ == "__main__":
    flags.DEFINE_integer("only_seed", None, "Make this seed only; leaderboard --merge joins.")
    cli.start(main, needs=("config", "workdir"), several=True)
