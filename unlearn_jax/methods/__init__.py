"""Every method as a pure function that returns per-example terms.

`OBJECTIVES` maps a name in the config to a function

    (model, params, target, batch, key, **options) -> Terms

Options are keyword-only; they come from the phase's `objective_kw` and are checked against the
signature by `config.validate`. A method of your own needs no entry here: name it in the config as
"my_package.my_module:my_function".
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from unlearn_jax import registry
from unlearn_jax.methods import goals, rewind, saliency, shrink, tokens
from unlearn_jax.methods.ascent import (
    gradient_ascent,
    gradient_difference,
    max_loss,
    reconstruction,
    tokenizer,
)
from unlearn_jax.methods.calibrated import calibrated
from unlearn_jax.methods.dampening import dampening
from unlearn_jax.methods.distil import distil
from unlearn_jax.methods.erase_diff import erase_diff
from unlearn_jax.methods.i2i import l2_encoder, noisy_label, random_encoder, retain_label
from unlearn_jax.methods.npo import npo
from unlearn_jax.methods.preparation import Preparation, prepares
from unlearn_jax.methods.scrub import scrub
from unlearn_jax.methods.terms import Terms

__all__ = ["BATCH_COUPLED", "OBJECTIVES", "Terms", "build", "find", "options", "preparations"]
__all__ += ["prepares"]

OBJECTIVES: dict[str, Callable[..., Terms]] = {
    "reconstruction": reconstruction,
    "tokenizer": tokenizer,
    "gradient_ascent": gradient_ascent,
    "gradient_difference": gradient_difference,
    "max_loss": max_loss,
    "calibrated": calibrated,
    "npo": npo,
    "distil": distil,
    "scrub": scrub,
    "dampening": dampening,
    "erase_diff": erase_diff,
    "noisy_label": noisy_label,
    "retain_label": retain_label,
    "random_encoder": random_encoder,
    "l2_encoder": l2_encoder,
}

# A row's terms depend on other rows of its batch, so no bound per example bounds their gradient.
BATCH_COUPLED = frozenset(
    {"max_loss", "noisy_label", "retain_label", "random_encoder", "l2_encoder"}
)
# Draws noise of its own for a whole batch: that of slices would be other noise.
DRAWING = frozenset({"erase_diff"})

# What a key of the phase asks for, whatever the objective.
PREPARATIONS: tuple[Preparation, ...] = (
    rewind.prepare,  # first: shrinking starts from there
    shrink.prepare,
    goals.prepare,
    tokens.prepare,
    saliency.prepare,
)


def preparations(objective: str) -> tuple[Preparation, ...]:
    """Return what a phase with this objective prepares: what its keys ask for, and its own."""
    own = getattr(find(objective), "prepare", None)
    return PREPARATIONS + ((own,) if own else ())


def find(name: str) -> Callable[..., Terms]:
    """Return the objective of that name, or of that "package.module:function"."""
    return registry.find(OBJECTIVES, name, "objective")


def options(name: str) -> dict[str, Any]:
    """Return the options of an objective with their default values."""
    found = registry.options(find(name))
    found.pop("forget_part", None)
    return found


def build(
    name: str, *, forget_part: Callable[[Any], Any] | None = None, **objective_kw: Any
) -> Callable[..., Terms]:
    """Bind the options of an objective: (model, params, target, batch, key) -> Terms.

    Args:
      name: see `find`.
      forget_part: gives the rows at the end of an array [b …] that are, or among which are, all
        forget rows of every batch. Bound if the objective has an argument of that name, which can
        then leave out what it needs of forget rows only.
      objective_kw: `options`.
    """
    function = find(name)
    if forget_part and "forget_part" in inspect.signature(function).parameters:
        objective_kw["forget_part"] = forget_part
    return partial(function, **objective_kw)
