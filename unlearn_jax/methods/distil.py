"""Distillation: what a model answers goes into another one, what it holds beside that does not."""

from jaxtyping import PRNGKeyArray

from unlearn_jax.methods.i2i import answers, check_target, distance
from unlearn_jax.methods.terms import Terms
from unlearn_jax.models import Batch, Model, Params
from unlearn_jax.registry import UserError


def distil(
    model: Model,
    params: Params,
    target: Params,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    hard: float = 0.0,
) -> Terms:
    """Match the answers of a teacher on retain rows; nothing happens on forget rows.

    retain = (1 - hard) |answer - teacher's answer|^2 + hard * the model's own loss; forget = 0.

    "Distillation robustifies unlearning" (UNDO, Lee et al. 2025, arXiv 2506.06278): a student that
    starts part-way to a network that knows nothing (the phase's `shrink`, theirs is noise) learns
    the outputs of a model whose behaviour is unlearned. The teacher is the phase's `teacher`: the
    "original" or what the phases before have made of it. Answers are what the model's loss looks at
    (`answers`). Cost: two forward passes and one backward pass.

    Args:
      hard: weight of the loss on the images themselves, 0 to 1.

    Raises:
      UserError: hard is above 1; there is no teacher.
    """
    if not 0 <= hard <= 1:
        raise UserError(f"objective_kw.hard: expected 0 to 1, got {hard!r}.")
    check_target("distil", target)
    mine, teacher = answers(model, (params, target), target, batch, key)
    away = distance(mine, teacher)
    if hard:
        away = (1 - hard) * away + hard * model.loss(params, batch, key)
    return Terms(retain=away, forget=0 * away)
