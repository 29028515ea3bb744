"""Whether a certificate is what the files beside it could have led to.

**Guarantee**: what passes is consistent: the numbers follow from the arguments by the bound, the
arguments from the config, the config is that of the run, the run was of the kind that the bound is
about and went through all of it, and the parameters are those that were hashed. What cannot be
checked afterwards is in the certificate's assumptions: that the noise was drawn as the code draws
it, and that nobody looked at the forget set while choosing. The code may have changed since: all
numbers are recomputed with the code that is here, and both versions are named. A record is not a
signature: whoever can write all of these files can write consistent ones; sign certificate.json to
say who did.
"""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from unlearn_jax import checkpoint, files, models, registry
from unlearn_jax.certify import certificate, public
from unlearn_jax.certify import stage as run
from unlearn_jax.certify.certificate import Certificate
from unlearn_jax.config import certified, identity
from unlearn_jax.config.validation import validate
from unlearn_jax.data import splits
from unlearn_jax.models import Params
from unlearn_jax.models.params import select
from unlearn_jax.registry import UserError
from unlearn_jax.sharding import leaf_path
from unlearn_jax.training import noisy

# A bound takes some time for each step: the closed one of clipped updates least.
_MAX_STEPS = {"noisy_finetune": 10**6, "model_clipping": 10**5, "reflection": 10**4}


@registry.of_record()
def verify(workdir: Path, original: Path | None = None, original_hash: str = "") -> Certificate:
    """Verify the run in workdir: check everything that can be checked, return its certificate.

    Args:
      workdir: of the certified stage: certificate.json, config.json, split.json, metrics.jsonl,
        checkpoints/.
      original: where the original is now, if not where the config says.
      original_hash: of its parameters, if it was deleted; what was not noised is then compared
        with the centre only.

    Raises:
      UserError: the first thing that is not as it should be.
    """
    found = certificate.read(workdir / certificate.FILE)
    with files.of_others(workdir, "a certified run"):
        _numbers(found)
        cfg = _config(found, workdir)
        split = splits.load(workdir / "split.json")
        _record(found, cfg, workdir, split)
        _noise_seen(found, workdir)
        deleted = original_hash if original is None else ""
        _parameters(found, cfg, workdir, deleted, original or Path(cfg.init_from), split)
    if (workdir / noisy.SECRET_FILE).exists():
        raise UserError(
            f"{workdir / noisy.SECRET_FILE} still exists: with it the noise can be subtracted. "
            "Destroy it and every copy of it."
        )
    return found


def _expect(what: str, expected: Any, got: Any) -> None:
    if expected != got:
        raise UserError(f"certificate: {what}: expected {expected!r}, got {got!r}.")


def _numbers(found: Certificate) -> None:
    """Recompute everything that follows from mechanism, arguments, certifier, accountant, delta."""
    steps, accountant = found.arguments.get("steps", 0), found.accountant
    kind = accountant if accountant == "reflection" else found.mechanism
    most = _MAX_STEPS.get(kind, 10**6)
    if not 1e-300 <= found.delta < 1 or type(steps) is not int or steps > most:
        raise UserError(
            f"certificate: expected a delta from 1e-300 to 1 and at most {most:,} steps, got "
            f"{found.delta!r} and {steps!r}: the bound would take hours to recompute."
        )
    wanted = "reflection" if found.accountant == "reflection" else "gdp"
    try:
        numbers = certificate.account(
            found.mechanism, found.arguments, certifier=found.certifier,
            accountant=wanted, delta=found.delta,
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise UserError(
            f"certificate: arguments: {found.arguments} are not those of {found.mechanism!r} "
            f"({error})."
        ) from error
    for name, value in numbers.items():
        got = getattr(found, name)
        if type(value) is float and type(got) is float and math.isclose(value, got, rel_tol=1e-9):
            continue
        _expect(name, value, got)
    _expect("conditional", False, found.conditional)
    wanted = certificate.assumptions(found.certifier, found.accountant)
    _expect("assumptions", wanted, found.assumptions)
    _expect("hashes", sorted(certificate.HASHES), sorted(found.hashes))
    if not {"unlearn_jax", "python", "jax"} <= set(found.versions):
        raise UserError(
            f"certificate: versions: unlearn_jax, python or jax missing: {found.versions}."
        )


def _config(found: Certificate, workdir: Path) -> ConfigDict:
    """Read the run's config and check that it leads to the certificate's arguments."""
    parts = {"config": "config.json", "split": "split.json", "metrics": "metrics.jsonl"}
    for key, name in parts.items():
        if not (workdir / name).exists():
            raise UserError(f"certificate: expected {workdir / name}, which is missing.")
        digest = files.file_digest(workdir / name)
        if digest != found.hashes[key]:
            raise UserError(
                f"{workdir / name} is not the file that was certified: its sha256 is {digest}, "
                f"in the certificate {found.hashes[key]}."
            )
    cfg, _ = identity.of_run(workdir)
    validate(cfg)
    _expect("run.stage", cfg.stage, found.run.get("stage"))
    where = certified.position(cfg)
    if where is None:
        raise UserError(f"certificate: the stage {cfg.stage!r} of config.json has no noised phase.")
    name = cfg.stages[cfg.stage].phases[where]
    mechanism, arguments = certified.mechanism(cfg.phases[name])
    _expect("run.phase", name, found.run.get("phase"))
    _expect("mechanism", mechanism, found.mechanism)
    _expect("arguments", arguments, found.arguments)
    _expect("delta", cfg.certificate.delta, found.delta)
    _expect("certifier", cfg.certificate.certifier, found.certifier)
    if found.accountant == "reflection":
        _expect("accountant", cfg.certificate.accountant, found.accountant)
    return cfg


def _record(found: Certificate, cfg: ConfigDict, workdir: Path, split: splits.Split) -> None:
    """Check that the run went through the config's phases, by its last checkpoint's meta."""
    params_like, meta = checkpoint.stored(workdir)
    del params_like
    phases = list(cfg.stages[cfg.stage].phases)
    _expect("phases of the run", phases, [ended["name"] for ended in meta["phases"]])
    step = 0
    for k, (name, ended) in enumerate(zip(phases, meta["phases"], strict=True)):
        spec = cfg.phases[name]
        _expect(f"phase {name!r}, its objective", spec.objective, ended["objective"])
        _expect(f"phase {name!r}, its first step", step, ended["first_step"])
        step = ended["last_step"]
        if k >= certified.position(cfg):
            _expect(f"phase {name!r}, why it ended", "steps", ended["stopped_by"])
            _expect(f"phase {name!r}, its last step", ended["first_step"] + spec.steps, step)
    noised = meta["phases"][certified.position(cfg)]
    _expect("versions", meta.get("versions"), found.versions)
    expected = {key: noised[key] for key in ("first_step", "last_step")}
    expected |= {"stage": cfg.stage, "phase": noised["name"], "final_step": meta["step"]}
    _expect("run", expected, found.run)
    _expect("final step", step, meta["step"])
    _expect("earlier checkpoints", [meta["step"]], sorted(checkpoint.saved_steps(workdir)))
    rows = identity.of_run(workdir)[1].get("rows")
    _expect("split of the run", rows, split.manifest["hash"])


def _noise_seen(found: Certificate, workdir: Path) -> None:
    """Tell whether the logged lengths of the updates are those of noisy updates."""
    lines = files.read_jsonl(workdir / "metrics.jsonl")
    steps = [line["step"] for line in lines]
    if steps != sorted(set(steps)) or (steps and steps[-1] != found.run["final_step"]):
        raise UserError(
            "certificate: expected the steps of metrics.jsonl to rise to "
            f"{found.run['final_step']}, they end at {steps[-3:]}."
        )
    mine = [line for line in lines if line["phase"] == found.run["phase"]]
    if found.steps and not mine:
        raise UserError(f"certificate: metrics.jsonl has nothing of {found.run['phase']!r}.")
    if found.mechanism != "noisy_finetune":
        return
    a, d = found.arguments, found.parameters
    norm = a["noise_std"] * math.sqrt(d)
    spread = a["init_radius"] + a["steps"] * a["step_size"] * a["clip_norm"] + 2 * norm * math.sqrt(
        a["steps"]
    )  # fmt: skip
    drift = a["step_size"] * (a["clip_norm"] + a["weight_decay"] * spread)
    tolerance = drift + 6 * a["noise_std"] + 1e-5 * norm
    for line in mine:
        if abs(line["update_norm"] - norm) > tolerance:
            raise UserError(
                f"certificate: updates of the noised phase have a mean norm of "
                f"{line['update_norm']:.6g} at step {line['step']}; noise of {a['noise_std']:g} on "
                f"{d} parameters and a drift of at most {drift:.3g} make {norm:.6g}."
            )


def _parameters(
    found: Certificate,
    cfg: ConfigDict,
    workdir: Path,
    deleted: str,
    original_dir: Path,
    split: splits.Split,
) -> None:
    """Check the three models: hashes, sizes, and that what was not noised is public."""
    released = _loaded(workdir, "released")
    _hash(found, "released", released, workdir)
    _expect("hashes.original", deleted or found.hashes["original"], found.hashes["original"])
    if deleted:
        original = released
    elif not str(original_dir) or not (original_dir / checkpoint.DIRECTORY).exists():
        raise UserError(
            f"certificate: the original is not in {str(original_dir)!r}; say where: --original=DIR."
        )
    else:
        original = _loaded(original_dir, "original")
        _hash(found, "original", original, original_dir)
    model = models.of(cfg)
    if cfg.certificate.centre_from:
        public.check(Path(cfg.certificate.centre_from), split)
        centre = _loaded(Path(cfg.certificate.centre_from), "centre")
    else:
        init_key = jax.random.split(jax.random.key(cfg.seed), 3)[0]
        centre = jax.jit(model.init)(init_key)
    drawn = f"the initial parameters, as jaxlib {jax.lib.__version__} draws them (certified with "
    drawn += f"{found.versions.get('jaxlib')}: another version may draw other last bits)"
    _hash(found, "centre", centre, cfg.certificate.centre_from or drawn)
    noised = select(released, model.trainable)
    _expect("parameters", sum(leaf.size for leaf in jax.tree.leaves(noised)), found.parameters)
    paths = {leaf_path(p) for p, _ in jax.tree_util.tree_leaves_with_path(noised)}
    by_path = [dict(run._by_path(tree)) for tree in (released, original, centre)]
    for path in sorted(set(by_path[0]) - paths):
        ours, theirs, public_leaf = (np.asarray(tree[path]) for tree in by_path)
        if not (np.array_equal(ours, public_leaf) and np.array_equal(theirs, public_leaf)):
            raise UserError(f"certificate: {path} was not noised, and is not that of the centre.")


def _hash(found: Certificate, name: str, params: Params, where: Any) -> None:
    digest = run.params_hash(params)
    if digest != found.hashes[name]:
        raise UserError(
            f"certificate: the {name} parameters in {where} are not those that were certified: "
            f"sha256 {digest}, in the certificate {found.hashes[name]}."
        )


def _loaded(folder: Path, name: str) -> Params:
    try:
        return checkpoint.load_params(folder, checkpoint.stored(folder)[0])[0]
    except ValueError as error:
        raise UserError(f"certificate: the {name} model cannot be read: {error}") from error


def report(found: Certificate, examples: int | None = None) -> str:
    """Write what was verified, with cautions and assumptions, as text."""
    lines = [certificate.summary(found), "Verified: numbers, config, split, record, parameters."]
    lines.append(certificate.issued_by(found))
    lines += [f"Caution: {text}." for text in certificate.cautions(found, examples)]
    lines += ["Assumed:"] + [f"- {text}" for text in found.assumptions]
    return "\n".join(lines)
