"""Whether the unlearned model learns forget images again faster than a model that never knew them.

Both are fine-tuned on the same few forget images, by the same schedule; `curve` is the mean error
on the *other* forget images at each of `steps`.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from unlearn_jax.registry import UserError

MIN_SEEDS = 6  # below, no rank test can reach 2.5 %, one of two tests' share of 5 %


def steps_to(
    curve: Float[np.ndarray, "t"], steps: Int[np.ndarray, "t"], level: float
) -> tuple[float, bool]:
    """Count the steps until the error is first at or below the level.

    Return them, and whether the budget ended before.

    Linear between two measurements. A level never reached gives (steps[-1], True), a lower bound.

    Raises:
      UserError: steps do not increase, or the curve has NaN.
    """
    _check(curve, steps)
    reached = np.flatnonzero(curve <= level)
    if len(reached) == 0:
        return float(steps[-1]), True
    k = int(reached[0])
    if k == 0:
        return float(steps[0]), False
    part = (curve[k - 1] - level) / (curve[k - 1] - curve[k])
    return float(steps[k - 1] + part * (steps[k] - steps[k - 1])), False


def area_between(
    unlearned: Float[np.ndarray, "t"],
    retrained: Float[np.ndarray, "t"],
    steps: Int[np.ndarray, "t"],
) -> float:
    """Integrate retrained - unlearned error over the steps (error x steps), trapezoid rule.

    Positive = the unlearned model's error is lower on the way: it relearns faster.

    Raises:
      UserError: steps do not increase, or a curve has NaN.
    """
    _check(unlearned, steps)
    _check(retrained, steps)
    return float(np.trapezoid(retrained - unlearned, steps))


def verdict(
    unlearned: Float[np.ndarray, "seeds t"],
    retrained: Float[np.ndarray, "seeds t"],
    steps: Int[np.ndarray, "t"],
    level: float,
    *,
    significance: float = 0.05,
) -> dict[str, Any]:
    """Count both models' steps to relearn over the seeds; judge whether knowledge was hidden.

    {"word", "reasons", "level", "seeds", "budget", "steps_unlearned", "steps_retrained" (one per
    seed), "censored_unlearned", "censored_retrained" (counts), "ratio" (S_u / S_r: "value" =
    median, "min", "max" over the seeds), "area" (the same of `area_between`), "p_value"}. A run
    that does not get to the level counts with the budget and is censored, which leaves the test
    valid but the ratio only indicative; `reasons` says how many. Words:

    * "refused": fewer than 6 seeds, or a retrained model is at the level before any step (nothing
      to relearn).
    * "hidden": the unlearned model relearns in fewer steps, or with a lower error on the way:
      Wilcoxon's signed-rank tests over the seeds, one-sided, exact, Bonferroni over the two.
    * "not faster": that is not shown.

    Args:
      unlearned: held-back forget error; row k is seed k, column t is steps[t].
      retrained: the same of the retrained model; row k used the same seed, images and schedule.
      steps: increasing, from 0 (before relearning).
      level: the held-back forget error that counts as relearned.
      significance: of the verdict.

    Guarantee:
      If the unlearned model relearned like the retrained one, "hidden" has probability at most
      `significance` over the seeds of relearning, for these two checkpoints. "not faster" holds for
      this budget and schedule, proves no absence of knowledge, and is no epsilon. Run the same on
      holdout images: a model that learns these faster too learns faster, and hid nothing.

    Raises:
      UserError: steps do not increase, or a curve has NaN.
    """
    timed = [[steps_to(c, steps, level) for c in curves] for curves in (unlearned, retrained)]
    s_u, s_r = (np.array([s for s, _ in runs]) for runs in timed)
    censored_u, censored_r = (sum(censored for _, censored in runs) for runs in timed)
    seeds = len(unlearned)
    area = [area_between(u, r, steps) for u, r in zip(unlearned, retrained, strict=True)]
    result = {
        "level": level,
        "seeds": seeds,
        "budget": int(steps[-1]),
        "steps_unlearned": s_u.tolist(),
        "steps_retrained": s_r.tolist(),
        "censored_unlearned": censored_u,
        "censored_retrained": censored_r,
        "area": _over_seeds(np.array(area)),
        "ratio": None,
        "p_value": None,
    }
    refusals = []
    if seeds < MIN_SEEDS:
        refusals.append(f"{seeds} seeds, at least {MIN_SEEDS} needed")
    if (retrained[:, 0] <= level).any():
        refusals.append(
            f"the retrained model's error is at {level:.4g} before any step: nothing to relearn"
        )
    if refusals:
        return result | {"word": "refused", "reasons": refusals}

    p_value = min(1.0, 2 * min(_signed_rank(s_r - s_u), _signed_rank(np.array(area))))
    notes = []
    if censored_u or censored_r:
        counts = f"{censored_u} unlearned and {censored_r} retrained runs of {seeds}"
        notes.append(f"censored at {steps[-1]} steps: {counts}")
    return result | {
        "word": "hidden" if p_value <= significance else "not faster",
        "reasons": notes,
        "ratio": _over_seeds(s_u / s_r),
        "p_value": p_value,
    }


def _signed_rank(differences: Float[np.ndarray, "seeds"]) -> float:
    """Compute the one-sided p-value of Wilcoxon's signed-rank test: differences are above 0."""
    if not differences.any():
        return 1.0
    # All sign flips (random ones from 14 seeds on): censored runs tie, which tables do not cover.
    exact = stats.PermutationMethod(rng=np.random.default_rng(0))
    return float(stats.wilcoxon(differences, alternative="greater", method=exact).pvalue)


def _over_seeds(values: Float[np.ndarray, "seeds"]) -> dict[str, float]:
    return {
        "value": float(np.median(values)),
        "min": float(values.min()),
        "max": float(values.max()),
    }


def _check(curve: Float[np.ndarray, "t"], steps: Int[np.ndarray, "t"]) -> None:
    if not (np.diff(steps) > 0).all():
        raise UserError(f"steps: expected increasing numbers of updates, got {steps.tolist()}.")
    if np.isnan(curve).any():
        raise UserError("curve: expected finite errors, got NaN; the relearning run diverged.")
