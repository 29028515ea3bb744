"""The record of a certificate, certificate.json, and what its numbers follow from. No JAX.

**Guarantee** of a `Certificate`: for every training set D and every forget set in D, of any size,
the released parameters and those of the certifier, which never saw the forget set, are
(epsilon, delta)-indistinguishable in both directions, under its `assumptions`. Certifier "retrain"
is the same pipeline applied to a model trained without the forget set; "reference", weaker, that
pipeline applied to the public centre. Whether the model is any good is not part of it.
"""

import dataclasses
import hashlib
import importlib.metadata
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import unlearn_jax
from unlearn_jax import files
from unlearn_jax.certify import bounds
from unlearn_jax.certify.bounds.reflection import UNREVIEWED
from unlearn_jax.config.certified import ASSUMPTIONS
from unlearn_jax.registry import UserError

FORMAT = "unlearn_jax.certificate.v1"
FILE = "certificate.json"
HASHES = ("config", "split", "metrics", "original", "centre", "released", "code")
PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "optax")
MECHANISMS = ("output_perturbation", "noisy_finetune", "model_clipping")


@dataclasses.dataclass(frozen=True)
class Certificate:
    """The only object that may print "(epsilon, delta)".

    Attributes:
      mechanism: of MECHANISMS.
      certifier: "retrain" or "reference".
      epsilon: nats, of the released parameters at `delta`.
      delta: within (0, 1).
      mu: of Gaussian DP, None where the accountant has none.
      noise_std: on every noised parameter, per step, or once.
      sensitivity: largest distance that the noise hides: Delta, the initial distance, or 2 C2.
      steps: of the noised phase; 0 if the noise was added once.
      accountant: "gdp", "dobrushin" or "reflection".
      conditional: whether it rests on an assumed distance; never, of certificates issued here.
      assumptions: what it holds under, in words.
      arguments: of the bound, see `account`.
      parameters: how many were noised, d.
      run: {"stage", "phase", "first_step", "last_step", "final_step"}.
      hashes: sha256 of the files config.json, split.json and metrics.jsonl, of the parameters of
        original, centre and released model, and of the package's source.
      versions: of Python and packages.
    """

    mechanism: str
    certifier: str
    epsilon: float
    delta: float
    mu: float | None
    noise_std: float
    sensitivity: float
    steps: int
    accountant: str
    conditional: bool
    assumptions: tuple[str, ...]
    arguments: dict[str, Any]
    parameters: int
    run: dict[str, Any]
    hashes: dict[str, str]
    versions: dict[str, str]


def account(
    mechanism: str, arguments: Mapping[str, Any], *, certifier: str, accountant: str, delta: float
) -> dict[str, Any]:
    """Account for a noised phase.

    Return {"epsilon", "mu", "noise_std", "sensitivity", "steps", "accountant"}.

    Args:
      mechanism: "output_perturbation": init_radius, noise_std. "noisy_finetune": init_radius,
        steps, step_size, clip_norm, noise_std, weight_decay. "model_clipping": the arguments of
        `model_clipping_epsilon`. Each starts with a projection, so that what came before is free.
      arguments: as said.
      certifier: "retrain" or "reference".
      accountant: "gdp"; or "reflection" for noisy fine-tuning, of which the smaller is taken.
        Model clipping is always accounted by contraction, "dobrushin".
      delta: within (0, 1).

    Raises:
      UserError: another mechanism, or an argument out of range.
    """
    if mechanism not in MECHANISMS:
        raise UserError(f"mechanism: expected one of {MECHANISMS}, got {mechanism!r}.")
    noise_std = float(arguments["noise_std"])
    if mechanism == "model_clipping":
        bounds.decoupling_sensitivity(1.0, 0, 0.0, 0.0, None, certifier)  # checks the name
        epsilon = bounds.model_clipping_epsilon(**arguments, delta=delta)
        distance = 2.0 * arguments["model_clip_norm"]
        return {"epsilon": epsilon, "mu": None, "noise_std": noise_std, "sensitivity": distance,
                "steps": int(arguments["steps"]), "accountant": "dobrushin"}  # fmt: skip
    radius = arguments["init_radius"]
    # Any ascent, then the projection to the same radius.
    distance = bounds.decoupling_sensitivity(radius, 1, 1.0, math.inf, radius, certifier)
    if mechanism == "output_perturbation":
        steps, mu = 0, distance / noise_std
    else:
        chain = {key: arguments[key] for key in ("steps", "step_size", "clip_norm", "weight_decay")}
        steps = int(chain["steps"])
        mu = bounds.noisy_finetune_mu(distance, **chain, noise_std=noise_std)
    epsilon = bounds.gaussian_epsilon(mu, delta)
    if accountant == "reflection" and mechanism == "noisy_finetune":
        pull = arguments["step_size"] * arguments["weight_decay"]
        shift = 2 * arguments["step_size"] * arguments["clip_norm"]
        tighter = bounds.reflection_epsilon(
            distance, 1 - pull, shift, noise_std, steps, delta, below=epsilon
        )
        if tighter < epsilon:
            return {"epsilon": tighter, "mu": None, "noise_std": noise_std,
                    "sensitivity": distance, "steps": steps,
                    "accountant": "reflection"}  # fmt: skip
    return {"epsilon": epsilon, "mu": mu, "noise_std": noise_std, "sensitivity": distance,
            "steps": steps, "accountant": "gdp"}  # fmt: skip


def assumptions(certifier: str, accountant: str) -> tuple[str, ...]:
    """Say what a certificate holds under, in words."""
    more = []
    if certifier == "reference":
        more.append(
            "the claim is: as if started from the public centre; the distance to the retrained "
            "pipeline is up to twice as large"
        )
    if accountant == "reflection":
        more.append(UNREVIEWED)
    return ASSUMPTIONS + tuple(more)


def cautions(certificate: Certificate, examples: int | None = None) -> list[str]:
    """Say what a reader should be told beside the numbers; nothing if there is nothing.

    Args:
      certificate: of a run.
      examples: the number n of training images, which delta is compared with.
    """
    found = []
    if certificate.epsilon > 10:
        found.append(f"epsilon = {certificate.epsilon:.4g} is above 10 and says next to nothing")
    if examples and certificate.delta > 1 / examples:
        found.append(f"delta = {certificate.delta:g} is above 1/n = {1 / examples:.3g}")
    if certificate.certifier == "reference":
        found.append('certifier "reference": weaker than comparison with retraining')
    if certificate.accountant == "reflection":
        found.append(UNREVIEWED)
    if certificate.conditional:
        found.append("conditional: rests on an assumed distance, not on a projection")
    return found


def summary(certificate: Certificate) -> str:
    """State the claim in one sentence."""
    c = certificate
    return (
        f"({c.epsilon:.4g}, {c.delta:g})-unlearning, certifier {c.certifier!r}, by {c.mechanism} "
        f"({c.accountant}): noise {c.noise_std:.4g} on {c.parameters:,} parameters"
        + (f" in each of {c.steps} steps" if c.steps else "")
        + f"; norm of the noise about {c.noise_std * math.sqrt(c.parameters):.4g}, of the largest "
        f"distance that it hides {c.sensitivity:.4g}."
    )


def issued_by(certificate: Certificate) -> str:
    """Say which version issued a certificate, and which one has recomputed its numbers."""
    then, now = certificate.versions["unlearn_jax"], unlearn_jax.__version__
    old, new = certificate.hashes["code"][:12], code_hash()[:12]
    if (then, old) == (now, new):
        return f"Issued by and recomputed with unlearn_jax {now} (source {new})."
    return f"Issued by unlearn_jax {then} (source {old}); recomputed with {now} (source {new})."


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and what it computes with."""
    found = {"unlearn_jax": unlearn_jax.__version__, "python": platform.python_version()}
    return found | {package: importlib.metadata.version(package) for package in PACKAGES}


def code_hash() -> str:
    """Hash the package's source files, names and contents, configs left out, by SHA-256."""
    root, digest = Path(unlearn_jax.__file__).parent, hashlib.sha256()
    for path in sorted({*root.rglob("*.py")} - {*(root / "configs").rglob("*.py")}):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def write(certificate: Certificate, path: Path) -> None:
    """Write the record with a SHA-256 of its content."""
    files.write_sealed(path, dataclasses.asdict(certificate), FORMAT)


def read(path: Path) -> Certificate:
    """Read a certificate that is, byte for byte, what `write` wrote.

    Raises:
      UserError: no certificate, or an altered one.
    """
    values = files.read_sealed(path, FORMAT, "a certificate")
    expected = {field.name: field.type for field in dataclasses.fields(Certificate)}
    wrong = sorted(set(expected) ^ set(values))
    wrong += [k for k in expected if k in values and not _is(values[k], expected[k])]
    if wrong:
        raise UserError(f"{path}: missing, unknown or of another type: {wrong}.")
    return Certificate(**values | {"assumptions": tuple(values["assumptions"])})


def _is(value: Any, kind: Any) -> bool:
    if kind is float or kind is int:
        return type(value) is kind
    if kind == float | None:
        return value is None or type(value) is float
    if kind == dict[str, str]:
        texts = value.values() if isinstance(value, dict) else (None,)
        return all(type(text) is str and text.isprintable() for text in texts)
    if kind == tuple[str, ...]:
        return isinstance(value, list) and all(type(x) is str for x in value)
    return isinstance(value, getattr(kind, "__origin__", kind))
