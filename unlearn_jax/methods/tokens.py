"""Codes of images, made once before a phase instead of in each of its steps."""

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh
from jaxtyping import Int
from ml_collections import ConfigDict

from unlearn_jax import sharding
from unlearn_jax.methods.preparation import Context, Prepared
from unlearn_jax.models import Model, Params
from unlearn_jax.models.flops import Counted
from unlearn_jax.models.params import overlay
from unlearn_jax.registry import UserError


def prepare(context: Context) -> Prepared | None:
    """Prepare the codes of the phase's rows, if it asks with `cache_tokens`.

    Raises:
      UserError: the phase would change the tokenizer.
    """
    if not context.phase.cache_tokens:
        return None
    check_frozen(context.params, context.phase)
    params = overlay(context.target, context.params)
    columns, flops = make(context.request, params, context.rows)
    return Prepared(columns=columns, flops=flops)


def make(
    request: Any, params: Params, rows: Int[np.ndarray, "_"]
) -> tuple[dict[str, np.ndarray], float]:
    """Return ({"tokens": int32 [rows of the source, codes per image]}, FLOPs spent), for batches.

    Args:
      request: a `unlearn_jax.Request`; its model has `tokens`.
      params: of the whole model, whose tokenizer the phase must leave as it is (`check_frozen`).
      rows: that the phase uses; 0 elsewhere.
    """
    tokens = Counted(jit_tokens(request.model, request.mesh))
    codes = request.map(tokens, rows, params)
    column = np.zeros((len(request.source), codes.shape[1]), np.int32)
    column[rows] = codes
    return {"tokens": column}, tokens.flops


def jit_tokens(model: Model, mesh: Mesh) -> Callable[..., Any]:
    """Compile `model.tokens`, its codes on every device."""
    return jax.jit(model.tokens, out_shardings=sharding.replicated(mesh))


def check_frozen(trained: Params, phase: ConfigDict) -> None:
    """Check that the phase leaves the tokenizer as it is, which has no gradient.

    Raises:
      UserError: weight decay or noise would move it, and the codes with it.
    """
    spec, paths = phase.optimizer, traverse_util.flatten_dict(trained, sep="/")
    moved = [
        path
        for path in paths
        if path.startswith("vqgan/")
        and (
            phase.noise.std
            or (spec.weight_decay and not any(re.fullmatch(r, path) for r in spec.no_decay))
        )
    ]
    if moved:
        raise UserError(
            f"cache_tokens=True: the phase moves the tokenizer ({len(moved)} leaves such as "
            f"{moved[0]!r}) by weight decay or noise, and codes made before it would be wrong. Add "
            "'vqgan/.*' to the phase's optimizer.no_decay, or set cache_tokens=False."
        )
