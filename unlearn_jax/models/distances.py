"""Distances of images, per example, on the generated part."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def masked_mse(
    a: Float[Array, "b h w c"], b: Float[Array, "b h w c"], mask: Float[Array, "b h w 1"]
) -> Float[Array, "b"]:
    """Average squared differences where mask is 1, over pixels and channels; NaN if nowhere."""
    return (jnp.square(a - b) * mask).sum((1, 2, 3)) / (mask.sum((1, 2, 3)) * a.shape[-1])


def displacement(
    output: Float[Array, "b h w c"],
    original: Float[Array, "b h w c"],
    mask: Float[Array, "b h w 1"],
) -> Float[Array, "b"]:
    """Measure the RMS distance of two models' outputs on the generated part.

    Its lower bound lambda is what decoupling asks for (Varshney & Torra, arXiv 2502.04260). By the
    triangle inequality |e - e_0| <= displacement <= e + e_0, with e, e_0 the RMS errors of the two.
    """
    return jnp.sqrt(masked_mse(output, original, mask))
