"""Whether the panel tells exact deletion from training again without the images.

    python -m experiments.deletion --config=quickstart --workdir=runs/deletion --images=200 \\
        --config.data.slices.count=10 --config.phases.pretrain.optimizer.schedule=late_cosine

Trains the config's original by slices, deletes that many images of its newest slice by replay, and
trains twice more without them, by the same slices and with other seeds: the yardstick and its
floor. Exact deletion has the bits of a training with the original's own seed, so the panel should
see what lies between seeds and no more. Models that are there are kept. Writes
results/deletion/NAME.json.
"""

import json
import platform
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from unlearn_jax import checkpoint, cli, files, train
from unlearn_jax.audit import AUDITS, conclusion
from unlearn_jax.audit.measure import make_measure
from unlearn_jax.audit.panel import Seed
from unlearn_jax.certify.certificate import versions
from unlearn_jax.certify.exact import delete
from unlearn_jax.data import slices
from unlearn_jax.request import Request


def newest(cfg: ConfigDict, images: int) -> list[str]:
    """Draw ids of that many training images of the newest slice."""
    request = Request(cfg)
    rows = request.split.train
    rows = rows[slices.assign(request.source, rows, cfg.data.slices) == cfg.data.slices.count - 1]
    drawn = np.random.default_rng(0).permutation(rows)[:images]
    return [request.source.ids[row] for row in np.sort(drawn).tolist()]


def make_models(cfg: ConfigDict, workdir: Path, asked: Path) -> dict[str, Path]:
    """Make the model before, the one after the deletion, and two that were trained without."""
    folders = {"original": workdir / "original", "unlearned": workdir / "deleted"}
    train.run(cfg, folders["original"])
    delete.delete(
        delete.config_of(folders["original"], str(asked)),
        folders["original"],
        folders["unlearned"],
    )
    for name, more in (("retrained", 1), ("shadow1", 2)):
        part = cfg.copy_and_resolve_references()
        part.update({"seed": cfg.seed + more, "stage": "retrained"})
        part.request.update({"kind": "ids", "file": str(asked)})
        folders[name] = workdir / name
        train.run(part, folders[name])
    return folders


def main(cfg: ConfigDict, workdir: Path, images: int) -> None:
    """Run the command."""
    asked = workdir / "ids.txt"
    workdir.mkdir(parents=True, exist_ok=True)
    asked.write_text("".join(f"{id}\n" for id in newest(cfg, images)))
    folders = make_models(cfg, workdir, asked)
    cfg.request.update({"kind": "ids", "file": str(asked)})
    request = Request(cfg)
    measure, like = make_measure(request), request.like()
    loaded = {name: checkpoint.load_params(folder, like)[0] for name, folder in folders.items()}
    measured = {name: measure(params, loaded["original"]) for name, params in loaded.items()}
    seed = Seed(*(measured[n] for n in ("original", "unlearned", "retrained")),
                further=[measured["shadow1"]])  # fmt: skip
    bootstrap = {key: cfg.evaluation[key] for key in ("confidence", "resamples")}
    found = conclusion.judge(AUDITS, [seed], **bootstrap, seed=cfg.request.seed)
    print(found["conclusion"]["text"])
    for row in found["witnesses"].values():
        print(f"{row['label']}: {row['word']} {row['reason']}")
    about = {"config": cfg.to_dict(), "machine": platform.machine(), "versions": versions()}
    out = Path("results/deletion") / f"{cfg.name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(out, json.loads(json.dumps(found | about, default=str)))


if __name__ == "__main__":
    flags.DEFINE_integer("images", 200, "Of the newest slice, to delete.", lower_bound=1)
    cli.start(main, needs=("config", "workdir", "images"))
