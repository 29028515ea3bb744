"""The audits of one request: what is left of the forget set in the unlearned model."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from unlearn_jax import checkpoint, distributed, files, train
from unlearn_jax.audit import earlier, judge
from unlearn_jax.audit.measure import entries, make_measure
from unlearn_jax.config.validation import validate
from unlearn_jax.data import lineage
from unlearn_jax.request import Request, original_workdir

MODELS = ("original", "unlearned", "retrained")


def run(cfg: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Run the audits; return them as they are written to workdir/audit.json.

    Several processes share the models' work; each prepares all images, the first one writes.

    {"audits": {name: {"label", "unit"}}, "models": {model: {name: {"value", "ci_low", "ci_high",
    "n"}}}, "differences": {name: {"label", "unit", "value", …}}, "verdicts": {"ood",
    "backdoor", "relearn"}, "earlier": [{"text", "n", "models": {model: AUROC}, "difference",
    "word"}] of requests that were served before, "shadows": count}.

    Args:
      cfg: the config; its `audit` section says how much is done.
      workdir: holds the finished original/, unlearned/ and retrained/, and gets shadow1/ …,
        further models retrained with other seeds, which some attacks compare with.

    Raises:
      ValueError: a model is missing, has not finished, or is of another request.
    """
    validate(cfg)
    folders = {name: workdir / name for name in MODELS}
    folders["original"] = original_workdir(cfg, workdir)
    # Before anything is trained: hours later is too late to say what is missing.
    for name, folder in folders.items():
        if not checkpoint.read_meta(folder)["done"]:
            raise ValueError(f"audit: the {name} model in {folder} has not finished. Resume it.")
    request = Request(cfg, workdir)
    measure = make_measure(request)
    for name, folder in folders.items():
        lineage.check_model(request.split, folder, name)
    for k in range(1, cfg.audit.shadows + 1):
        part = cfg.copy_and_resolve_references()
        part.update({"seed": cfg.seed + k, "stage": "retrained"})
        part.update({"init_from": "", "reference_from": ""})
        part.request.served = cfg.request.served or cfg.init_from
        folders[f"shadow{k}"] = workdir / f"shadow{k}"
        train.run(part, folders[f"shadow{k}"])

    like = request.like()
    target, _ = checkpoint.load_params(folders["original"], like)
    measured = {}
    quiet = not distributed.first()
    for name, folder in tqdm(
        folders.items(), desc="audit", unit="model", dynamic_ncols=True, disable=quiet
    ):
        lineage.check_model(
            request.split, folder, "retrained" if name.startswith("shadow") else name
        )
        params, _ = checkpoint.load_params(folder, like)
        measured[name] = measure(params, target, of_views=name.startswith("shadow"))

    three = {name: measured[name] for name in MODELS}
    outs = [measured[name] for name in folders if name not in MODELS]
    bootstrap = {key: cfg.evaluation[key] for key in ("confidence", "resamples")}
    bootstrap |= {"seed": cfg.seed}
    estimates = {
        name: judge.estimates(
            measured[name],
            three["original"],
            three["retrained"],
            outs,
            entries=entries(cfg),
            **bootstrap,
        )["audits"]
        for name in MODELS
    }
    differences = judge.differences(three, outs, **bootstrap)
    verdicts = judge.verdicts(three, outs)
    if cfg.audit.relearn.seeds:
        verdicts["relearn"] = judge.relearning(
            *([three[name]] for name in ("original", "unlearned", "retrained"))
        )
    texts = [of["text"] for of in request.split.manifest["served"]]
    found = {
        "earlier": earlier.still_forgotten(three, texts, cfg.evaluation.confidence),
        "audits": judge.AUDITS,
        "models": estimates,
        "differences": {name: judge.DIFFERENCES[name] | v for name, v in differences.items()},
        "verdicts": verdicts,
        "shadows": len(outs),
    }
    if not quiet:
        files.write_json(workdir / "audit.json", found)
    return found
