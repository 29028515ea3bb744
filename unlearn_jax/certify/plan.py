"""How much noise a target (epsilon, delta) takes, before anything is trained. No JAX.

**Guarantee**: none; the certificate of a run is made from what it did. Neighbours and assumptions
are those of the mechanism's module.
"""

import math
from collections.abc import Mapping
from typing import Any

from unlearn_jax.certify import bounds
from unlearn_jax.certify.certificate import MECHANISMS, Certificate
from unlearn_jax.registry import UserError

EPSILONS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)  # of `tradeoff`
MOST = 500


def plan(
    mechanism: str,
    *,
    epsilon: float,
    delta: float,
    parameters: int,
    radius: float,
    certifier: str = "retrain",
    steps: int = 0,
    step_size: float = 0.0,
    clip_norm: float = 0.0,
    weight_decay: float = 0.0,
    accountant: str = "gdp",
) -> dict[str, Any]:
    """Plan a noised phase: compute its noise and the settings that ask for it.

    Return {"mechanism", "noise_std", "steps", "noise_norm", "total_noise_norm", "sensitivity",
    "noise": the phase's settings}.

    `noise_norm` is sigma sqrt(d), the expected length of one noise; `total_noise_norm` that of what
    has accumulated after all steps (of model clipping: one noise, as each step projects again).

    Args:
      mechanism: "output_perturbation", "noisy_finetune" or "model_clipping".
      epsilon: target, nats.
      delta: target.
      parameters: d, how many are noised.
      radius: C0; of model clipping C2.
      certifier: "retrain" or "reference".
      steps: T; 0: the best number for noisy fine-tuning, 1 of model clipping.
      step_size: gamma, of noisy fine-tuning.
      clip_norm: C1, of noisy fine-tuning.
      weight_decay: lambda, of noisy fine-tuning.
      accountant: "gdp", or "reflection" for noisy fine-tuning.

    Raises:
      UserError: an argument is out of range.
    """
    if mechanism not in MECHANISMS:
        raise UserError(f"mechanism: expected one of {MECHANISMS}, got {mechanism!r}.")
    distance = bounds.decoupling_sensitivity(radius, 1, 1.0, math.inf, radius, certifier)
    grown = 1.0
    if mechanism == "output_perturbation":
        steps, sigma = 0, bounds.analytic_gaussian_sigma(distance, epsilon, delta)
        noise = {"initial_std": sigma, "radius": radius}
    elif mechanism == "model_clipping":
        steps, distance = steps or 1, 2 * radius
        sigma = bounds.model_clipping_sigma(radius, steps, epsilon, delta)
        noise = {"std": sigma, "model_clip": radius}
    else:
        chain = {"step_size": step_size, "clip_norm": clip_norm, "weight_decay": weight_decay}
        steps = steps or _best_steps(distance, chain)
        sigma = bounds.noisy_finetune_sigma(distance, steps, **chain, epsilon=epsilon, delta=delta)
        rho = 1 - step_size * weight_decay
        if accountant == "reflection":
            shift = 2 * step_size * clip_norm
            tighter = bounds.reflection_sigma(
                distance, rho, shift, steps, epsilon=epsilon, delta=delta
            )
            sigma = min(sigma, tighter)
        noise = {"std": sigma, "radius": radius}
        grown = math.sqrt(_grown(steps, rho))
    length = sigma * math.sqrt(parameters)
    return {
        "mechanism": mechanism, "noise_std": sigma, "steps": steps, "sensitivity": distance,
        "noise_norm": length, "total_noise_norm": grown * length, "noise": noise,
    }  # fmt: skip


def _best_steps(distance: float, chain: Mapping[str, float]) -> int:
    found = bounds.noisy_finetune_optimal_steps(distance / 2, **chain)
    if found < 0:
        raise UserError(
            "steps: expected at least 1: with weight_decay * radius >= clip_norm there is no best "
            "number, more steps always need less noise."
        )
    return found


def tradeoff(record: Certificate) -> list[list[float]]:
    """Return [epsilon, noise in radii] of a certified run, with its epsilon and with others.

    The noise is the expected length of all that stays in the released parameters, over the radius
    around the centre. Only the run's own where others take minutes: of the accountant "reflection",
    and of more than `MOST` steps of model clipping.
    """
    given = record.arguments
    radius = given.get("init_radius") or given["model_clip_norm"]
    keys = ("step_size", "clip_norm", "weight_decay")
    chain = {key: given[key] for key in keys if key in given and record.steps}
    rho = 1 - chain.get("step_size", 0.0) * chain.get("weight_decay", 0.0)
    settings = {"parameters": record.parameters, "radius": radius, "steps": record.steps, **chain}
    settings |= {"delta": record.delta, "certifier": record.certifier}
    times = record.steps if record.mechanism == "noisy_finetune" else 1
    own = record.noise_std * math.sqrt(record.parameters * _grown(times, rho)) / radius
    found = {record.epsilon: own}
    slow = record.mechanism == "model_clipping" and record.steps > MOST
    if record.accountant != "reflection" and not slow:
        for epsilon in EPSILONS:
            noise = plan(record.mechanism, epsilon=epsilon, **settings)["total_noise_norm"]
            found.setdefault(epsilon, noise / radius)
    return [list(pair) for pair in sorted(found.items())]


def _grown(steps: int, rho: float) -> float:
    """Return by how much the variance of a noise grows that is added in each step."""
    return float(steps) if rho == 1 else (1 - rho ** (2 * steps)) / (1 - rho**2)


def text(found: Mapping[str, Any], parameters: int) -> str:
    """Write the plan in a few lines."""
    radius = found["noise"].get("radius") or found["noise"]["model_clip"]
    settings = ", ".join(f"{key}={value:.6g}" for key, value in found["noise"].items())
    return "\n".join(
        [
            f"{found['mechanism']}: noise {found['noise_std']:.6g} per parameter"
            + (f" in each of {found['steps']} steps" if found["steps"] else ", once"),
            f"phase settings: steps={found['steps']}, noise: {settings}",
            f"norm of one noise on {parameters:,} parameters: {found['noise_norm']:.6g}; of all "
            f"that stays: {found['total_noise_norm']:.6g}, "
            f"{found['total_noise_norm'] / radius:.4g} times the radius {radius:g}",
        ]
    )
