"""Distances of images, per example, on the generated part."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def masked_mse(
    a: Float[Array, "b h w c"], b: Float[Array, "b h w c"], mask: Float[Array, "b h w 1"]
) -> Float[Array, "b"]:
    """Average squared differences where mask is 1, over pixels and channels; NaN if nowhere."""
    return (jnp.square(a - b) * mask).sum((1, 2, 3)) / (mask.sum((1, 2, 3)) * a.shape[-1])


def unexplained(
    output: Float[Array, "b h w c"], image: Float[Array, "b h w c"], mask: Float[Array, "b h w 1"]
) -> Float[Array, "b"]:
    """Compute the share of the image's variance where mask is 1 that the output does not explain.

    Each channel is fitted, a + b * output; 0 for the image in other colours, 1 for a constant.
    Outputs that vary by less than .01 count as constant.
    """
    n = jnp.maximum(mask.sum((1, 2), keepdims=True), 1)

    def centred(x):
        return (x - (x * mask).sum((1, 2), keepdims=True) / n) * mask

    made, true = centred(output), centred(image)
    square = jnp.square((made * true).sum((1, 2))) / (
        jnp.square(made).sum((1, 2)) + 1e-4 * n[:, 0, 0]
    )
    whole = jnp.square(true).sum((1, 2)).sum(1) + 1e-9
    return 1 - square.sum(1) / whole


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
