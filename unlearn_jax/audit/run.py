"""The audits of one request: what is left of the forget set in the unlearned model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from unlearn_jax import checkpoint, distributed, files, registry, train
from unlearn_jax.audit import earlier, judge
from unlearn_jax.audit.measure import entries, make_measure
from unlearn_jax.config.validation import validate
from unlearn_jax.data import lineage
from unlearn_jax.registry import UserError
from unlearn_jax.request import Request, original_workdir
from unlearn_jax.training import lease
from unlearn_jax.training.watch import images_of


class Findings(dict):
    """What audits have found; as a string, a line for each verdict."""

    def __str__(self) -> str:
        """Say the verdicts, with reasons."""
        lines = []
        for name, verdict in self["verdicts"].items():
            for variant, of in verdict.items() if name == "backdoor" else [("", verdict)]:
                reasons = f" ({'; '.join(of['reasons'])})" if of["reasons"] else ""
                lines.append(f"{name} {variant}".strip() + f": {of['word']}{reasons}")
        for audit, models in self["own"].items():
            lines += [f"{audit}, {model}: {found}" for model, found in models.items()]
        return "\n".join(lines)


MODELS = ("original", "unlearned", "retrained")


@lease.exclusively()
def run(cfg: ConfigDict, workdir: Path) -> Findings:
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
      UserError: a model is missing, has not finished, or is of another request.
    """
    validate(cfg)
    folders = {name: workdir / name for name in MODELS}
    folders["original"] = original_workdir(cfg, workdir)
    # Before anything is trained: hours later is too late to say what is missing.
    for name, folder in folders.items():
        if not checkpoint.read_meta(folder)["done"]:
            raise UserError(f"audit: the {name} model in {folder} has not finished. Resume it.")
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
        later = (cfg.audit.shadows - k) * images_of(cfg, "retrained")
        train.run(part, folders[f"shadow{k}"], later=later)

    like = request.like()
    target, _ = checkpoint.load_params(folders["original"], like)
    measured, own = {}, {name: registry.find({}, name, "audit") for name in cfg.audit.own}
    of_own: dict[str, dict[str, Any]] = {name: {} for name in own}
    quiet = not distributed.first() or None  # None: where there is no terminal
    for name, folder in tqdm(
        folders.items(), desc="audit", unit="model", dynamic_ncols=True, disable=quiet
    ):
        lineage.check_model(
            request.split, folder, "retrained" if name.startswith("shadow") else name
        )
        params, _ = checkpoint.load_params(folder, like)
        measured[name] = measure(params, target, of_views=name.startswith("shadow"))
        for audit, function in own.items():
            of_own[audit][name] = _numbers(function(request, params, target), audit)

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
    found = Findings(
        {
            "earlier": earlier.still_forgotten(three, texts, cfg.evaluation.confidence),
            "audits": judge.AUDITS,
            "models": estimates,
            "differences": {name: judge.DIFFERENCES[name] | v for name, v in differences.items()},
            "verdicts": verdicts,
            "shadows": len(outs),
            "own": of_own,
        }
    )
    if not quiet:
        files.write_json(workdir / "audit.json", found)
    return found


def _numbers(found: Any, name: str) -> dict[str, float]:
    """Check what an audit of one's own returned; return it as it is written to audit.json.

    Raises:
      UserError: it is neither a number nor a dict of numbers.
    """
    values = found if isinstance(found, Mapping) else {"value": found}
    try:
        return {str(key): float(value) for key, value in values.items()}
    except (TypeError, ValueError) as error:
        raise registry.UserError(
            f"audit.own: expected a number or a dict of numbers of {name}, got {found!r}."
        ) from error
