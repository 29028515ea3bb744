"""Optimizers from config sections, as optax chains."""

import optax

SCHEDULES = {
    "constant": lambda peak, steps: optax.constant_schedule(peak),
    "cosine": lambda peak, steps: optax.cosine_decay_schedule(peak, max(steps, 1)),
}
OPTIMIZERS = {
    "sgd": lambda schedule, weight_decay: optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(schedule)
    ),
    "adam": lambda schedule, weight_decay: optax.adamw(schedule, weight_decay=weight_decay),
}


def make_optimizer(
    *,
    name: str = "adam",
    learning_rate: float,
    steps: int,
    schedule: str = "constant",
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    clip_norm_l2: float = 0.0,
) -> optax.GradientTransformation:
    """The optax chain of one phase: clip the gradient, then the optimizer.

    Args:
      name: "sgd", or "adam" (with decoupled weight decay, that is AdamW).
      learning_rate: its peak; multiplied by the schedule.
      steps: length of the phase, where "cosine" reaches zero.
      schedule: "constant" or "cosine".
      warmup_steps: linear rise from 0 over that many steps, before the schedule begins.
      weight_decay: pull towards zero, times the learning rate.
      clip_norm_l2: the gradient is scaled down to this global L2 norm if it is longer (0: never).
    """
    rate = SCHEDULES[schedule](learning_rate, steps - warmup_steps)
    if warmup_steps:
        warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
        rate = optax.join_schedules([warmup, rate], [warmup_steps])
    optimizer = OPTIMIZERS[name](rate, weight_decay)
    return (
        optax.chain(optax.clip_by_global_norm(clip_norm_l2), optimizer)
        if clip_norm_l2
        else optimizer
    )
