"""The audits of one request: what is left of the forget set in the unlearned model.

docs/audits.md says what audit.json holds; it opens with "conclusion": {"word": "refuted", "not
refuted" or "not tested", "text": one sentence, …}.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from unlearn_jax import checkpoint, distributed, files, registry, train
from unlearn_jax.audit import conclusion, earlier, one_run
from unlearn_jax.audit.measure import Measured, make_measure, witnesses_of
from unlearn_jax.audit.panel import Seed
from unlearn_jax.config.validation import validate
from unlearn_jax.data import lineage
from unlearn_jax.registry import UserError
from unlearn_jax.request import Request, original_workdir
from unlearn_jax.training import lease
from unlearn_jax.training.watch import images_of

FORMAT = 2  # of audit.json


class Findings(dict):
    """What audits have found; as a string, the conclusion and a line for each witness."""

    def __str__(self) -> str:
        """Say the conclusion, and every witness's word."""
        lines = [self["conclusion"]["text"]]
        for row in self["witnesses"].values():
            reason = f" ({row['reason']})" if row["reason"] else ""
            lines.append(f"{row['label']}: {row['word']}{reason}")
        if of := self.get("one_run"):
            bound = "none" if of["epsilon"] is None else f"at least {of['epsilon']:.2f}"
            known = (
                of.get("reason") or f"{of['correct']} of {of['guesses']} right, {of['pairs']} pairs"
            )
            lines.append(f"ε of the released model, from one run: {bound} ({known})")
        for audit, models in self["own"].items():
            lines += [f"{audit}, {model}: {found}" for model, found in models.items()]
        return "\n".join(lines)


MODELS = ("original", "unlearned", "retrained")


@lease.exclusively()
def run(cfg: ConfigDict, workdir: Path) -> Findings:
    """Run the audits; return them as they are written to workdir/audit.json, see docs/audits.md.

    Several processes share the models' work; each prepares all images, the first one writes.

    Args:
      cfg: the config; its `audit` section says how much is done.
      workdir: holds the finished original/, unlearned/ and retrained/, and gets shadow1/ …,
        further models retrained with other seeds, which the floor and some attacks need.

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
    audits, own = witnesses_of(cfg)
    measure = make_measure(request, audits)
    for name, folder in folders.items():
        lineage.check_model(request.split, folder, name)
    folders |= _shadows(cfg, workdir)

    like = request.like()
    target, _ = checkpoint.load_params(folders["original"], like)
    measured: dict[str, Measured] = {}
    of_own: dict[str, dict[str, Any]] = {name: {} for name in own}
    quiet = not distributed.first() or None  # None: where there is no terminal
    for name, folder in tqdm(
        folders.items(), desc="audit", unit="model", dynamic_ncols=True, disable=quiet
    ):
        lineage.check_model(
            request.split, folder, "retrained" if name.startswith("shadow") else name
        )
        params, _ = checkpoint.load_params(folder, like)
        measured[name] = measure(params, target)
        for audit, function in own.items():
            of_own[audit][name] = _numbers(function(request, params, target), audit)

    three = {name: measured[name] for name in MODELS}
    shadows = [measured[name] for name in folders if name not in MODELS]
    bootstrap = {key: cfg.evaluation[key] for key in ("confidence", "resamples")}
    judged = conclusion.judge(
        audits, [Seed(**three, further=shadows)], **bootstrap, seed=cfg.request.seed
    )
    texts = [of["text"] for of in request.split.manifest["served"]]
    found = Findings(
        {
            "format": FORMAT,
            **judged,
            "models": list(folders),
            "shadows": len(shadows),
            "settings": {key: value for key, value in cfg.audit.to_dict().items() if key != "own"},
            "earlier": earlier.still_forgotten(three, texts, cfg.evaluation.confidence),
            "own": of_own,
            "one_run": one_run.of_request(
                cfg, request.source.labels, measured["unlearned"], shadows
            ),
        }
    )
    if not quiet:
        files.write_json(workdir / "audit.json", found)
    return found


def _shadows(cfg: ConfigDict, workdir: Path) -> dict[str, Path]:
    """Train the further retrained models that are not there; return their folders."""
    folders = {}
    for k in range(1, cfg.audit.shadows + 1):
        part = cfg.copy_and_resolve_references()
        part.update({"seed": cfg.seed + k, "stage": "retrained"})
        part.update({"init_from": "", "reference_from": ""})
        part.request.served = cfg.request.served or cfg.init_from
        folders[f"shadow{k}"] = workdir / f"shadow{k}"
        later = (cfg.audit.shadows - k) * images_of(cfg, "retrained")
        train.run(part, folders[f"shadow{k}"], later=later)
    return folders


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
