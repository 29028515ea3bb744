"""How far ascent gets: for planning; what was reached is measured on the final model.

**Guarantee**: none on privacy. Both bounds assume a forget loss that is L-smooth along the path and
full-batch clipped ascent; a memorised forget set (gradient 0) never moves, whatever the steps.
"""

import math
from collections.abc import Sequence
from numbers import Real

from unlearn_jax.certify.bounds.arguments import nonnegative, positive


def ascent_gain_lower_bound(
    grad_norms: Sequence[Real], step_size: Real, clip_norm: Real, smoothness: Real
) -> float:
    """By how much clipped ascent raises the mean forget loss, at least. [P]

    eta (1 - beta eta / 2) sum_k |g_k| min(|g_k|, C1), the descent lemma of -L.

    Args:
      grad_norms: |g_k| of the unclipped full-batch gradients, one per step.
      step_size: eta, below 2 / smoothness.
      clip_norm: C1.
      smoothness: beta.

    Raises:
      ValueError: an argument is out of range.
    """
    factor = _factor(step_size, smoothness)
    positive(clip_norm=clip_norm)
    for norm in grad_norms:
        nonnegative(grad_norms=norm)
    return factor * math.fsum(norm * min(norm, clip_norm) for norm in grad_norms)


def ascent_steps_for_displacement(
    displacement: Real,
    initial_loss: Real,
    min_grad_norm: Real,
    step_size: Real,
    clip_norm: Real,
    smoothness: Real,
) -> int:
    """So many ascent steps suffice for the outputs on the forget set to move that far, RMS. [P]

    The loss must rise from L0 to (lambda + sqrt(L0))^2, where L is the mean squared output error in
    the norm of the displacement; see `ascent_gain_lower_bound`.

    Args:
      displacement: lambda, RMS distance to the original's outputs.
      initial_loss: L0, at least 0.
      min_grad_norm: a lower bound of every gradient norm on the way, above 0: an assumption.
      step_size: eta, below 2 / smoothness.
      clip_norm: C1.
      smoothness: beta.

    Raises:
      ValueError: an argument is out of range.
    """
    factor = _factor(step_size, smoothness)
    positive(displacement=displacement, min_grad_norm=min_grad_norm, clip_norm=clip_norm)
    nonnegative(initial_loss=initial_loss)
    rise = displacement * (displacement + 2 * math.sqrt(initial_loss))
    steps = rise / (factor * min_grad_norm * min(min_grad_norm, clip_norm))
    return math.ceil(steps * (1 - 1e-12))


def _factor(step_size: Real, smoothness: Real) -> float:
    positive(step_size=step_size, smoothness=smoothness)
    if step_size * smoothness >= 2:
        raise ValueError(
            f"step_size: expected below 2 / smoothness = {2 / smoothness}, got {step_size!r}."
        )
    return step_size * (1 - smoothness * step_size / 2)
