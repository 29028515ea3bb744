"""What a phase computes once, before its first step: goals, cached tokens, a mask, another start.

A preparation is a function of a `Context` that returns what it has `Prepared`, or None where the
phase does not ask for it. `methods.PREPARATIONS` are those that a key of the phase asks for. A
method declares one of its own with `prepares`; every phase with that objective then has it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, PRNGKeyArray
from ml_collections import ConfigDict

from unlearn_jax.models import Params


class Context(NamedTuple):
    """What a preparation may look at.

    Attributes:
      request: a `unlearn_jax.Request`: images, sets, model, devices.
      phase: its part of the config.
      params: the trainable leaves, as the phase finds them.
      target: all leaves of the frozen original; {} if there is none.
      reference: those of the reference model, or None.
      rows: of the source, that the phase's batches have.
      key: of its randomness.
      resumed: the phase was interrupted and goes on: its state has the mask and the start already.
      fresh: key -> trainable leaves as they are before any training.
      earlier: share of the original's own training -> trainable leaves as they were then.
    """

    request: Any
    phase: ConfigDict
    params: Params
    target: Params
    reference: Params | None
    rows: Int[np.ndarray, "_"]
    key: PRNGKeyArray
    resumed: bool
    fresh: Callable[[PRNGKeyArray], Params]
    earlier: Callable[[float], Params]


@dataclass(frozen=True)
class Prepared:
    """What a preparation has made.

    Attributes:
      columns: name -> [rows of the source, …], which batches then have by row.
      mask: of the trainable leaves that the phase may change, see `methods.saliency`.
      params: trainable leaves to start from instead.
      flops: spent on it.
    """

    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    mask: Any = None
    params: Params | None = None
    flops: float = 0.0


Preparation = Callable[[Context], Prepared | None]


def prepares(preparation: Preparation) -> Callable[[Callable], Callable]:
    """Declare, as a decorator of an objective, what its phases prepare."""

    def declare(objective: Callable) -> Callable:
        objective.prepare = preparation
        return objective

    return declare
