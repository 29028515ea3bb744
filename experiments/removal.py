"""Screen methods on one seed: what is left of the forget images, and what comes back.

    python -m experiments.removal --config=quickstart_removal --workdir=runs/removal

trains an original, two retrained models and every method of `config.compare.methods`, and appends a
line to results/removal/NAME.jsonl for each. Models and lines that are there are kept, so that an
interrupted run goes on, and a method that is added is all that is computed. A few measurements of
the panel, without intervals over seeds: it says which methods are worth comparing, not how good
they are.
"""

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

import unlearn_jax as uj
from unlearn_jax import checkpoint, cli, compare
from unlearn_jax.audit import backdoor, statistics
from unlearn_jax.audit.measure import Lab
from unlearn_jax.audit.witness import References, calibrated
from unlearn_jax.certify.certificate import versions
from unlearn_jax.config import chosen_methods
from unlearn_jax.evaluate import results
from unlearn_jax.files import read_jsonl

RESULTS = Path("results/removal")
SETS = ("forget", "unseen", "retain")
GATE = 0.75
EXAMPLE = "--config=quickstart_removal --workdir=runs/removal"


def look(lab: Lab, params: Any, out: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return mean losses, and the AUROC of membership, calibrated by another retrained model."""
    found = lab.over("loss", lab.loss, params, sets=SETS)
    scores = calibrated(found, References(outs=[out] if out else []), "loss/{}")
    interval = statistics.auroc_interval(scores.forget, scores.unseen, 0.95)
    made = {name: float(found[f"loss/{name}"].mean()) for name in SETS}
    made |= {"auroc": statistics.auroc(scores.forget, scores.unseen), "auroc_ci": list(interval)}
    return {key: np.round(value, 4).tolist() for key, value in made.items()}


def of_backdoor(measured: dict[str, np.ndarray]) -> dict[str, float]:
    """Return how far the trigger moves outputs to the payload; nothing if none is planted."""
    if not measured:
        return {}
    pair = [measured[f"backdoor/{k}"].astype(np.float64) for k in ("triggered", "clean")]
    each = np.ones((1, len(pair[0])))
    values = {name: backdoor.statistics[name] for name in ("share", "correlation")}
    return {name: round(float(of(*pair, each, each)[0]), 4) for name, of in values.items()}


class Screen:
    """What every model is measured with."""

    def __init__(self, cfg: ConfigDict, workdir: Path):
        """Train the further retrained model, by which others are calibrated."""
        shadow = cfg.copy_and_resolve_references()
        shadow.seed, shadow.audit.rows = cfg.compare.seeds[0] + 1, 100_000
        further = uj.Request(shadow).train("retrained", workdir / "shadow")
        self.lab = Lab(uj.Request(shadow, workdir))
        self.like, self.planted = self.lab.request.like(), backdoor.measure(self.lab)
        self.n = {name: len(self.lab.rows[name]) for name in SETS}
        self.out = self.lab.over("loss", self.lab.loss, self.load(further.workdir), sets=SETS)

    def load(self, folder: Path) -> Any:
        """Return the parameters of a finished run."""
        return checkpoint.load_params(folder, self.like)[0]

    def measure(self, folder: Path) -> dict[str, Any]:
        """Measure a model, before and after further training on retained images."""
        params, more = self.load(folder), self.lab.cfg.audit.resurfacing
        found = look(self.lab, params, self.out)
        found["backdoor"] = of_backdoor(self.planted(params, params))
        rows = self.lab.split.remaining
        tuned = self.lab.finetune(params, rows, more.steps, more.learning_rates[0])
        found["after"] = {str(step): look(self.lab, p, self.out) for step, p in tuned}
        return found


def point(cfg: ConfigDict, name: str) -> dict[str, Any]:
    """Return what a line is of: the model and all that its method is made of."""
    of = {"seed": cfg.compare.seeds[0], "request_seed": cfg.request.seed}
    method = cfg.compare.methods.get(name)
    if method:
        of["phases"] = [cfg.phases[used].to_dict() for used in method.phases]
    text = json.dumps([cfg.model.to_dict(), cfg.phases.pretrain.to_dict(), of], default=list)
    return {"model": name, "label": method.label if method else name} | {
        "of": hashlib.sha256(text.encode()).hexdigest()[:12]
    }


def run(cfg: ConfigDict, workdir: Path, path: Path) -> None:
    """Append a line for every model that has none yet."""
    there = {(line["model"], line["of"]) for line in read_jsonl(path)} if path.exists() else set()
    screen = None
    for name in [*compare.FIXED, *chosen_methods(cfg)]:
        of = point(cfg, name)
        if (name, of["of"]) in there:
            continue
        part = cfg.copy_and_resolve_references()
        part.compare.only = (name,) if name in cfg.compare.methods else ()
        part.compare.methods = {name: cfg.compare.methods[name] for name in part.compare.only}
        screen = screen or Screen(cfg, workdir)
        runs, seed = compare.train_all(part, workdir), cfg.compare.seeds[0]
        folder, meta = runs[name, seed]
        cost = results.cost(meta, runs["retrained", seed][1])
        found = screen.measure(folder)
        line = of | {"cost": round(cost["flops_ratio"], 4), "n": screen.n} | found
        line |= {"seed": seed, "request_seed": cfg.request.seed, "config": cfg.name}
        line |= {"machine": f"{jax.device_count()} x {jax.devices()[0].device_kind}"}
        line |= {"arch": platform.machine(), "versions": versions()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if name == "retrained":
            _gate(read_jsonl(path))
        print(text(line), flush=True)


def _gate(lines: list[dict[str, Any]]) -> None:
    """Say whether there was something to forget."""
    known = {line["model"]: line["auroc"] for line in lines}["original"]
    word = "something" if known >= GATE else "too little"
    print(f"Gate: the original's AUROC is {known:.3f}, at least {GATE}? There is {word} to forget.")


def text(line: dict[str, Any]) -> str:
    """Say a line in a row of a table."""
    (after,) = list(line["after"].values())[-1:]
    cells = [f"{line['model']:16}", *(f"{line[name]:.3f}" for name in SETS), f"{line['auroc']:.3f}"]
    cells += [f"after {after['forget']:.3f} {after['auroc']:.3f}"]
    cells += [f"{value:.2f}" for value in line["backdoor"].values()]
    return "  ".join([*cells, f"cost {line['cost']:.3f}"])


def main(cfg: ConfigDict, workdir: Path, name: str) -> None:
    """Run the command."""
    run(cfg, workdir, RESULTS / f"{name or cfg.name}.jsonl")


if __name__ == "__main__":
    flags.DEFINE_string("name", "", "Of the file of results; by default the config's.")
    cli.start(main, needs=("config", "workdir", "name"), example=EXAMPLE)
