"""Show what a request means before anything is trained: which images, and what can be shown.

    python -m unlearn_jax.request --config=configs/quickstart.py --out=runs/request

Everything is resolved, as training would resolve it, and nothing is trained. The page request.html
has the images to be forgotten, counts by set and class, copies of them elsewhere, requests that the
model has served before, what the audits will be able to show, and the steps that it takes.
"""

from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from unlearn_jax import checkpoint, cli, distributed
from unlearn_jax.audit import limits
from unlearn_jax.config.validation import validate
from unlearn_jax.data import lineage, splits
from unlearn_jax.data.copies import DISTANCE
from unlearn_jax.registry import UserError
from unlearn_jax.report.page import render
from unlearn_jax.request import Request, past_of

FILE = "request.html"
THUMBNAILS, PAIRS = 64, 24  # that the page shows


def run(cfg: ConfigDict, out: Path) -> dict[str, Any]:
    """Return what the page shows, after writing out/request.html.

    Copies that the config refuses are shown, too: `refused` is then what training would say.

    Args:
      cfg: the config; for a model that exists already, with its init_from.
      out: folder of the page; if it is the workdir of a request, times are estimated from it.

    Raises:
      UserError: the config, the data or the request are not what they must be.
    """
    validate(cfg)
    try:
        request, refused = Request(cfg, out), ""
    except ValueError as error:
        if not str(error).startswith("request.copies:"):
            raise
        shown, refused = cfg.copy_and_resolve_references(), str(error)
        shown.request.copies = "keep"
        request = Request(shown, out)
    split, past = request.split, past_of(cfg)
    if cfg.init_from:
        checkpoint.load_params(cfg.init_from, request.like())
        lineage.check_model(split, Path(cfg.init_from))
    exact = split.manifest["copies"]
    facts = {
        "name": cfg.name or "request",
        "confidence": cfg.evaluation.confidence,
        "text": splits.describe(split),
        "said": split.said,
        "hash": "" if refused else split.manifest["hash"],
        "counts": split.manifest["counts"],
        "class_counts": split.manifest["class_counts"],
        "classes": list(split.manifest["class_counts"]["forget"]),
        "forget": len(split.forget),
        "exact": exact["exact"],
        "policy": cfg.request.copies,
        "refused": refused,
        "near": len(split.manifest["near"]),
        "distance": DISTANCE,
        "past": [{"text": of["text"], "n": len(of["rows"])} for of in split.manifest["served"]],
        "claim": past.claim if past else "",
        "limits": limits.of_request(cfg, split),
        "work": _work(cfg, out),
    }
    if distributed.first():
        out.mkdir(parents=True, exist_ok=True)
        page = render("preview.html.j2", {"r": facts, **_pictures(request)})
        (out / FILE).write_text(page, encoding="utf-8", errors="replace")
    return facts


def text(facts: dict[str, Any]) -> str:
    """Return what the page says, for a terminal."""
    lines = [facts["text"]]
    lines += [f"  {name}: {n:,} images" for name, n in facts["counts"].items()]
    lines += [f"Already forgotten: {of['n']:,} images. {of['text']}" for of in facts["past"]]
    lines += [f"No earlier requests, says {facts['claim']}."] if facts["claim"] else []
    lines += [f"Exact copies elsewhere: {facts['exact']}; near copies: {facts['near']}."]
    lines += [f"Cannot be shown: {of.audit}: {of.text}" for of in facts["limits"] if not of.enough]
    for of in facts["work"]:
        time = f"about {of['seconds']:,.0f} s" if of["seconds"] else "time not measured yet"
        lines.append(f"{of['stage']}: at most {of['steps']:,} steps, {time}")
    return "\n".join(lines)


def _work(cfg: ConfigDict, workdir: Path) -> list[dict[str, Any]]:
    """Count the steps of every stage, and seconds where they follow from a run that is there."""
    found = []
    runs = {"original": 0 if cfg.init_from else 1, "unlearned": 1}
    runs["retrained"] = 1 + cfg.audit.shadows
    for stage, times in runs.items():
        phases = [cfg.phases[name] for name in cfg.stages[stage].phases]
        steps = times * sum(phase.steps for phase in phases)
        examples = times * sum(p.steps * (p.batch_size or cfg.batch_size) for p in phases)
        same = ("retrained", "original") if stage != "unlearned" else ("unlearned",)
        rate = next((r for name in same if (r := _rate(workdir / name))), 0.0)
        if not rate and cfg.init_from and stage != "unlearned":
            rate = _rate(Path(cfg.init_from))
        found.append({"stage": stage, "steps": steps, "seconds": examples * rate})
    return found


def _rate(workdir: Path) -> float:
    """Compute seconds per example of an existing run, without compiling; 0.0 if there is none."""
    if not checkpoint.saved_steps(workdir):
        return 0.0
    meta = checkpoint.read_meta(workdir)
    return (meta["wall_s"] - meta["compile_s"]) / meta["examples"] if meta["examples"] else 0.0


def _pictures(request: Request) -> dict[str, Any]:
    """Load the images that the page shows, with their names."""
    source, split = request.source, request.split
    row_of = {id: row for row, id in enumerate(source.ids)}

    def images(ids: list[str]) -> list[tuple[str, np.ndarray]]:
        rows = np.array([row_of[id] for id in ids], np.int64)
        return list(zip(ids, source.fetch(rows) if len(rows) else (), strict=True))

    rng = np.random.default_rng(0)
    some = np.sort(rng.permutation(split.forget)[:THUMBNAILS])
    pairs = {"same": split.manifest["copies"]["pairs"], "alike": split.manifest["near"]}
    return {
        "thumbnails": images([source.ids[row] for row in some.tolist()]),
        **{
            name: [(images(pair[:2]), pair[2:]) for pair in of[:PAIRS]]
            for name, of in pairs.items()
        },
    }


def main(cfg: ConfigDict, out: str) -> None:
    """Run the command."""
    facts = run(cfg, Path(out))
    if distributed.first():
        print(text(facts), f"Page: {Path(out) / FILE}", sep="\n")
    if facts["refused"]:
        raise UserError(facts["refused"])


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/request", "Folder of the page.")
    cli.start(main, needs=("config", "out"), example="--config=quickstart --out=DIR")
