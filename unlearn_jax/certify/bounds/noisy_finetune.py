"""Mechanism B1: noisy clipped fine-tuning on the retain set, after anything that ends in a ball.

The chain is x <- c + (1 - gamma lambda)(x - c) - gamma clip_C1(g(x)) + sigma Z, with g a gradient
on retain rows only and c any fixed point. Two runs of it from starts d0 apart stay |x - y| <=
rho |x - y| + s before noise, rho = 1 - gamma lambda, s = 2 gamma C1, whatever the loss. [P]: by
shifted interpolation (after Bok, Su & Altschuler 2024), proved in docs/certificate.md.

**Guarantee**
* Neighbours: any training data D with any forget set in D, of any size, against D without it; any
  training algorithm and any processing before the projection that starts the chain.
* Compared with: the same chain started from a model trained without the forget set (d0 = 2 C0), or
  from a public reference (d0 = C0), see `decoupling`.
* Assumes: g uses no forget row, no original or teacher and nothing fitted on them; both runs have
  the same law of batches; the whole gradient is clipped, NaN included; noise is on the parameters;
  only the last iterate is released; radii, norms, steps and noise were chosen without D_f.
* Not covered: intermediate iterates (the first one has mu = (rho d0 + s) / sigma), and what
  `decoupling` lists. A stateful optimizer is covered by B1 alone, at exactly T steps, if its final
  update is what is clipped and its state is discarded.
"""

import math
from numbers import Real

from unlearn_jax.certify.bounds.arguments import count, nonnegative, positive
from unlearn_jax.certify.bounds.gaussian import gaussian_mu
from unlearn_jax.registry import UserError


def noisy_finetune_mu(
    init_distance: Real,
    steps: Real,
    step_size: Real,
    clip_norm: Real,
    noise_std: Real,
    weight_decay: Real = 0.0,
    stateful_optimizer: bool = False,
) -> float:
    """Return the mu of T steps of noisy clipped fine-tuning. [P]

    D_T / sqrt(V_T), smallest over 1..T unless the optimizer is stateful; without weight decay
    (d0 + 2 gamma C1 T) / (sigma sqrt(T)).

    Args:
      init_distance: d0: 2 C0 ("retrain") or C0 ("reference") after a projection to radius C0.
      steps: T.
      step_size: gamma, the learning rate.
      clip_norm: C1, of the whole minibatch gradient.
      noise_std: sigma on the parameters, per step.
      weight_decay: lambda, towards a fixed point; step_size * weight_decay within [0, 1).
      stateful_optimizer: with momentum or Adam: exactly T, no minimum.

    Raises:
      UserError: an argument is out of range.
    """
    positive(noise_std=noise_std)
    rho, shift = _chain(init_distance, steps, step_size, clip_norm, weight_decay)
    horizon = steps if stateful_optimizer else _best_step(init_distance, rho, shift, steps)
    return _unit_mu(init_distance, rho, shift, horizon) / noise_std


def noisy_finetune_sigma(
    init_distance: Real,
    steps: Real,
    step_size: Real,
    clip_norm: Real,
    weight_decay: Real = 0.0,
    *,
    epsilon: Real,
    delta: Real,
    stateful_optimizer: bool = False,
) -> float:
    """Return the least noise per step for (epsilon, delta), by `noisy_finetune_mu`. [P]

    Args:
      init_distance: see `noisy_finetune_mu`, as for all others.
      steps: T.
      step_size: gamma.
      clip_norm: C1.
      weight_decay: lambda.
      epsilon: nats, at least 0.
      delta: within (0, 1).
      stateful_optimizer: see there.
    """
    mu = noisy_finetune_mu(
        init_distance, steps, step_size, clip_norm, 1.0, weight_decay, stateful_optimizer
    )
    return mu / gaussian_mu(epsilon, delta)


def noisy_finetune_optimal_steps(
    init_radius: Real, step_size: Real, clip_norm: Real, weight_decay: Real = 0.0
) -> int:
    """Return the horizon of least total noise from a ball ("retrain"); -1 if none is. [P]

    Without weight decay ceil(C0 / (gamma C1)); with it rho^T = 1 - lambda C0 / C1, rounded up. -1:
    lambda C0 >= C1, more steps always need less noise. The continuous optimum rounded up is within
    one step of the best whole number.

    Args:
      init_radius: C0; the starts are 2 C0 apart.
      step_size: gamma.
      clip_norm: C1.
      weight_decay: lambda.

    Raises:
      UserError: an argument is out of range.
    """
    positive(init_radius=init_radius)
    positive(clip_norm=clip_norm)
    rho, shift = _chain(2 * init_radius, 1, step_size, clip_norm, weight_decay)
    best = _continuous_best(2 * init_radius, rho, shift)
    return -1 if best == math.inf else max(1, math.ceil(best * (1 - 1e-12) - 1e-12))


def _chain(
    init_distance: Real, steps: Real, step_size: Real, clip_norm: Real, weight_decay: Real
) -> tuple[float, float]:
    """Return (contraction, shift) of one step, after checking the arguments."""
    nonnegative(init_distance=init_distance, clip_norm=clip_norm, weight_decay=weight_decay)
    count(steps=steps)
    positive(step_size=step_size)
    if step_size * weight_decay >= 1:
        raise UserError(
            "weight_decay: expected step_size * weight_decay within [0, 1), got "
            f"{step_size!r} * {weight_decay!r}."
        )
    return 1 - step_size * weight_decay, 2 * step_size * clip_norm


def _unit_mu(init_distance: Real, rho: Real, shift: Real, steps: Real) -> float:
    """Return D_T / sqrt(V_T) at noise 1."""
    if rho == 1:
        return (init_distance + shift * steps) / math.sqrt(steps)
    decayed = math.expm1(steps * math.log(rho))  # rho^T - 1
    distance = (1 + decayed) * init_distance + shift * -decayed / (1 - rho)
    return distance / math.sqrt(-decayed * (2 + decayed) / (1 - rho**2))


def _continuous_best(init_distance: Real, rho: Real, shift: Real) -> float:
    """Find the real T > 0 at which `_unit_mu` is smallest (it falls, then rises); or inf."""
    if rho == 1:
        return init_distance / shift if shift else math.inf
    remaining = 1 - init_distance * (1 - rho) / shift if shift else -1.0
    return math.log(remaining) / math.log(rho) if remaining > 1e-12 else math.inf


def _best_step(init_distance: Real, rho: Real, shift: Real, steps: Real) -> int:
    best = min(_continuous_best(init_distance, rho, shift), steps)
    near = {max(1, math.floor(best)), min(int(steps), max(1, math.ceil(best)))}
    return min(near, key=lambda t: _unit_mu(init_distance, rho, shift, t))
