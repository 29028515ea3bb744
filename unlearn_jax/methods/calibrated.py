"""Forget losses brought to goals: what a model would have there that never saw the examples."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from unlearn_jax.methods.terms import Terms
from unlearn_jax.models import Batch, Model, Params
from unlearn_jax.registry import UserError

# Of d = log loss - log goal, per example.
DISTANCES: dict[str, Callable[[Float[Array, "b"], float], Float[Array, "b"]]] = {
    "absolute": lambda d, width: jnp.abs(d),
    "squared": lambda d, width: jnp.square(d),
    # Quadratic near the goal, so that rows that are there stop shaking the model.
    "huber": lambda d, width: jnp.where(
        jnp.abs(d) < width, jnp.square(d), 2 * width * jnp.abs(d) - width**2
    ),
    "hinge": lambda d, width: jnp.maximum(-d, 0.0),
}


def calibrated(
    model: Model,
    params: Params,
    target: Params,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    distance: str = "huber",
    width: float = 0.5,
    overshoot: float = 0.0,
    direction: float = 0.0,
    draws: int = 1,
) -> Terms:
    """Keep the loss of retain rows low; bring that of forget rows to their goals.

    retain = the model's own loss.
    forget = -distance(log loss(x) - log goal(x)): zero is best, and ascending it leads each forget
    row to the loss `batch["goal"]` that the phase's `goal` says, up from where it was memorised and
    not beyond. Our own method; goals are in `methods/goals.py`. A fixed ascent, by contrast,
    brings the mean to a level and leaves easy rows known and hard ones damaged. Cost: one forward
    and one backward pass, and for the goal "views" 8 forward passes over the forget rows and at
    most 1,000 holdout rows, once (8 times as many if the model draws anything).

    Args:
      distance: "huber", "absolute", "squared", or "hinge" (rows above their goal are left alone).
      width: of the quadratic part of "huber", in log loss.
      direction: weight of the squared distance of the output to `batch["view_output"]`, on the
        masked part. A loss can be reached in many ways, and a model that
        merely fades a payload has not forgotten it; this says which. For models whose loss is an
        `error(output, batch)` of what they decode.
      draws: of masks, timesteps or noise for each image, at least 1: the loss is the geometric mean
        over them, as goals are; one draw is often far from it. Costs as many passes.
      overshoot: added to the log goals, since between its visits a forget row drifts back.

    Raises:
      UserError: unknown distance; the phase has no goal; draws below 1, or with a direction.
    """
    del target
    if distance not in DISTANCES:
        raise UserError(f"calibrated: expected distance in {sorted(DISTANCES)}, got {distance!r}.")
    if "goal" not in batch:
        raise UserError("calibrated: the batch has no goals; set the phase's goal.")
    if direction and not model.error:
        raise UserError(f"calibrated: {type(model).__name__} has no error(); set direction=0.")
    if draws < 1 or (direction and draws > 1):
        raise UserError(
            f"objective_kw.draws: expected at least 1, and 1 with a direction, got {draws}."
        )
    if direction:  # one forward pass for loss and output, not two
        output = model.decode(params, model.encode(params, batch, key), batch, key)
        loss = model.error(output, batch)
    elif draws > 1:
        keys = [jax.random.fold_in(key, k) for k in range(draws)]
        drawn = jnp.stack([model.loss(params, batch, k) for k in keys])
        loss = jnp.exp(jnp.log(jnp.maximum(drawn, 1e-12)).mean(0))
    else:
        loss = model.loss(params, batch, key)
    # A loss of exactly 0 has no logarithm; nothing real is below 1e-12.
    ratio = jnp.log(jnp.maximum(loss, 1e-12)) - jnp.log(batch["goal"]) - overshoot
    away = DISTANCES[distance](ratio, width)
    if direction:
        error = jnp.square(output - batch["view_output"]) * batch["mask"]
        pixels = batch["mask"].sum((1, 2, 3)) * output.shape[-1]
        away += direction * error.sum((1, 2, 3)) / pixels
    return Terms(retain=loss, forget=-away)
