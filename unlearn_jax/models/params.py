"""Trees of parameters: those that are trained, and all of them."""

import re
from collections.abc import Sequence

from flax import traverse_util

from unlearn_jax.models import Params
from unlearn_jax.models.stacking import STACK
from unlearn_jax.registry import UserError


def select(params: Params, patterns: Sequence[str]) -> Params:
    """Select the leaves whose path, such as "encoder/down0/kernel", fully matches a pattern.

    Raises:
      UserError: no leaf matches.
    """
    flat = traverse_util.flatten_dict(params)
    names = {path: "/".join(path).replace(STACK, "block0") for path in flat}
    chosen = {k: v for k, v in flat.items() if any(re.fullmatch(p, names[k]) for p in patterns)}
    if not chosen:
        there = "\n  ".join(sorted(names.values()))
        raise UserError(f"No parameter matches {list(patterns)}; there are:\n  {there}")
    return traverse_util.unflatten_dict(chosen)


def overlay(target: Params, params: Params) -> Params:
    """Overlay `params` on the frozen target: their leaves where they have one, else its own."""
    leaves = traverse_util.flatten_dict(target) | traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict(leaves)
