"""Whether coarser weights bring the images back."""

import jax
import jax.numpy as jnp

from unlearn_jax.audit.witness import calibrated, mean_difference, witness

BITS = (8, 4)


def rounded(params, bits):
    """Round each kernel to 2 ** bits - 1 levels, symmetric, by output channel."""

    def leaf(x):
        if x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        most = jnp.abs(x).max(axis=tuple(range(x.ndim - 1)), keepdims=True)
        step = jnp.maximum(most / (2 ** (bits - 1) - 1), 1e-12)
        return jnp.round(x / step) * step

    return jax.tree.map(leaf, params)


def measure(lab):
    """Return (params, original) -> the loss with rounded weights, "quantised/BITS/SET" [n k]."""
    compiled = {bits: lab.round(lambda params, bits=bits: rounded(params, bits)) for bits in BITS}

    def run(params, original):
        found = {}
        for bits, function in compiled.items():
            found |= lab.over(f"quantised/{bits}", lab.loss, function(params))
        return found

    return run


@witness(
    family="hidden",
    label="Rounded weights",
    unit="mean calibrated log loss on unseen minus forget images, weights in 8 or 4 bits",
    statistics={"difference": mean_difference},
    measure=measure,
)
def quantised(model, references):
    """Round the weights to 8 and to 4 bits, and compare forget with unseen images again.

    Small changes of weights, which some methods end with, are rounded away.

    Guarantee: 0 for a model that saw neither set, if the request is random.
    Power: of methods that hardly change the weights; seldom more than `forget_error`.
    Cost: two passes over the images.
    Source: Zhang et al. 2024 (arXiv 2410.16454).
    """
    return {f"{b} bits": calibrated(model, references, f"quantised/{b}/{{}}") for b in BITS}
