"""SCRUB: a student that disobeys its teacher on forget rows and obeys it on others."""

from jaxtyping import PRNGKeyArray

from unlearn_jax.methods.i2i import answers, check_target, distance
from unlearn_jax.methods.terms import Terms
from unlearn_jax.models import Batch, Model, Params
from unlearn_jax.registry import UserError


def scrub(
    model: Model,
    params: Params,
    target: Params,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    alpha: float = 0.5,
    most: float = 0.0,
) -> Terms:
    """Keep the original's answers on retain rows, leave them on forget rows.

    retain = alpha |answer - original's|^2 + (1 - alpha) * the model's own loss.
    forget = |answer - original's|^2.

    SCRUB (Kurmanji et al. 2023, arXiv 2302.10866), with a squared distance of answers (`answers`)
    for the divergence of classes. There, steps on forget rows and on retain rows take turns and
    retain rows have the end: a phase with retain_weight=0, one with forget_weight=0, and so on.
    With both weights above 0 both are done in each step. Cost: two forward passes and one backward
    pass.

    Args:
      alpha: share of the distance in the retain term, 0 to 1.
      most: a forget row that has moved this far no longer pushes (squared; 0: no bound, as
        published).

    Raises:
      UserError: alpha is above 1; there is no original.
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"objective_kw.alpha: expected 0 to 1, got {alpha!r}.")
    check_target("scrub", target)
    away = distance(*answers(model, (params, target), target, batch, key))
    retain = alpha * away + (1 - alpha) * model.loss(params, batch, key)
    return Terms(retain=retain, forget=away.clip(max=most) if most else away)
