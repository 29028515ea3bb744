"""Count how often the panel refutes models that never saw the images: at most one in twenty.

    python -m experiments.level --config=quickstart --workdir=runs/level --models=62

trains an original and so many retrained models, each with a seed of its own, measures them, and
judges every one as if it were the unlearned model: the next one is the retrained model that it is
compared with, the one after it is the further one. A model is refuted if any witness refutes it, so
the share of refuted ones is the level of the panel as a family. Triples overlap, which the exact
binomial bound takes no notice of. With a quarter of the forget set poisoned, all witnesses count.

What was measured is kept in results/level/NAME/SEED.npz, so that an interrupted run goes on, and a
change of a test needs no model: --models that are there are not trained again. Some 90 seconds a
model on two CPU cores.
"""

import platform
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

import unlearn_jax as uj
from unlearn_jax import checkpoint, cli, files
from unlearn_jax.audit import AUDITS, gap, panel
from unlearn_jax.audit.measure import Measured, make_measure
from unlearn_jax.audit.panel import Seed
from unlearn_jax.audit.statistics import clopper_pearson_upper
from unlearn_jax.certify.certificate import versions
from unlearn_jax.registry import UserError

RESULTS = Path("results/level")
EXAMPLE = "--config=quickstart --workdir=runs/level --models=62"


def measure_all(cfg: ConfigDict, workdir: Path, models: int, folder: Path) -> list[Measured]:
    """Return what is measured of the original and of the retrained models, in this order."""
    cfg = ConfigDict(cfg.to_dict())  # not locked
    cfg.poison.fraction, cfg.request.remember = 0.25, False
    request, paths = uj.Request(cfg), [folder / "original.npz"]
    paths += [folder / f"{seed}.npz" for seed in range(models)]
    if not all(path.exists() for path in paths):
        original = request.train("original", workdir / "original")
        measure, like = make_measure(request), request.like()
        target, _ = checkpoint.load_params(workdir / "original", like)
    for seed, path in enumerate(paths, start=-1):
        if path.exists():
            continue
        model = original
        if seed >= 0:
            cfg.seed = seed
            model = uj.Request(cfg).train("retrained", workdir / f"retrained{seed}")
        params, _ = checkpoint.load_params(model.workdir, like)
        kept = {k: v for k, v in measure(params, target).items() if not k.endswith("/retain")}
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".partial").open("wb") as file:
            np.savez_compressed(file, **kept)
        path.with_suffix(".partial").replace(path)
    return [dict(np.load(path, allow_pickle=False)) for path in paths]


def judge_all(original: Measured, retrained: list[Measured], cfg: ConfigDict) -> dict[str, Any]:
    """Judge every retrained model; return how many are refuted, and by which witnesses."""
    bootstrap = {key: cfg.evaluation[key] for key in ("confidence", "resamples")}
    count, refuted, by = len(retrained), 0, Counter[str]()
    for k in range(count):
        unlearned, other, further = (retrained[(k + i) % count] for i in range(3))
        seed = Seed(original, unlearned, other, [further])
        rows = panel.rows(AUDITS, [seed], seed=cfg.request.seed, **bootstrap)
        names = [name for name, row in rows.items() if row["word"] == "refuted"]
        refuted += bool(names)
        by.update(names)
    upper = clopper_pearson_upper(refuted, count, gap.LEVEL)
    return {"models": count, "refuted": refuted, "upper_bound": upper, "by_witness": dict(by)}


def main(cfg: ConfigDict, workdir: Path, models: int) -> None:
    """Run the command."""
    if models < 3:
        raise UserError(
            f"--models: expected at least 3, one, another, a further one, got {models}."
        )
    original, *retrained = measure_all(cfg, workdir, models, RESULTS / cfg.name)
    found = judge_all(original, retrained, cfg)
    path = RESULTS / f"{cfg.name}.json"
    files.write_json(path, found | {"versions": versions(), "machine": platform.machine()})
    print(
        f"{found['refuted']} of {models} retrained models are refuted, at most "
        f"{found['upper_bound']:.3f} of all (95 %, exact). Wrote {path}."
    )


if __name__ == "__main__":
    flags.DEFINE_integer("models", 62, "Retrained ones.")
    cli.start(main, needs=("config", "workdir", "models"), example=EXAMPLE)
