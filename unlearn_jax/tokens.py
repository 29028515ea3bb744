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

from unlearn_jax import data, flops, sharding
from unlearn_jax.models import Model, Params
from unlearn_jax.setup import Setup


def make(
    setup: Setup, params: Params, rows: Int[np.ndarray, "_"]
) -> tuple[dict[str, np.ndarray], float]:
    """({"tokens": int32 [rows of the source, codes per image]}, FLOPs spent), for batches.

    Args:
      setup: of the request; its model has `tokens`.
      params: of the whole model, whose tokenizer the phase must leave as it is (`check_frozen`).
      rows: that the phase uses; 0 elsewhere.
    """
    cfg, mesh, source, _, model = setup
    tokens: Any = jit_tokens(model, mesh)
    found, spent = [], 0.0
    for batch in data.make_eval(
        source,
        rows,
        batch_size=cfg.batch_size,
        task=cfg.task.to_dict(),
        seed=cfg.seed,
        num_threads=cfg.data.num_threads,
        places=sharding.local_rows(cfg.batch_size, mesh),
    ):
        batch = sharding.global_batch(batch, mesh)
        if not found:
            traced = tokens.trace(params, batch)
            tokens, per_batch = traced.lower().compile(), flops.of(traced)
        spent += per_batch
        found.append(jax.device_get(tokens(params, batch)))
    codes = np.concatenate(found)[: len(rows)]  # the last batch is filled up
    column = np.zeros((len(source), codes.shape[1]), np.int32)
    column[rows] = codes
    return {"tokens": column}, spent


def jit_tokens(model: Model, mesh: Mesh) -> Callable[..., Any]:
    """Compile `model.tokens`, its codes on every device."""
    return jax.jit(model.tokens, out_shardings=sharding.replicated(mesh))


def check_frozen(trained: Params, phase: ConfigDict) -> None:
    """Nothing if the phase leaves the tokenizer as it is, which has no gradient.

    Raises:
      ValueError: weight decay or noise would move it, and the codes with it.
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
        raise ValueError(
            f"cache_tokens=True: the phase moves the tokenizer ({len(moved)} leaves such as "
            f"{moved[0]!r}) by weight decay or noise, and codes made before it would be wrong. Add "
            "'vqgan/.*' to the phase's optimizer.no_decay, or set cache_tokens=False."
        )
