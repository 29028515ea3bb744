"""The loss of models that draw masks, timesteps or noise: on a fixed panel of draws."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from unlearn_jax.models import Batch, Model, Params


def losses(
    model: Model, params: Params, batch: Batch, key: PRNGKeyArray, draws: Sequence[int]
) -> Float[Array, "b k"]:
    """Compute the training loss of each image, on draws that depend on the image only.

    Of a model that draws masks, timesteps or noise: one of each draw, by the key (draw, index).
    Every model gets the same ones, whatever images are beside it. Otherwise k = 1.
    """
    if not (model.draw and jax.eval_shape(model.draw, batch, key)):
        return model.loss(params, batch, key)[:, None]
    columns = {name: values for name, values in batch.items() if name != "index"}

    def of_image(row, index, k):
        one = {name: values[None] for name, values in row.items()} | {"index": index[None]}
        own = jax.random.fold_in(jax.random.fold_in(key, k), index)
        return model.loss(params, one, own)[0]

    def of_draw(k):
        return jax.vmap(lambda row, index: of_image(row, index, k))(columns, batch["index"])

    return jax.lax.map(of_draw, jnp.array(draws)).T
