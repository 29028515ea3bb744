"""Iterative decoding of masked tokens: a few at a time, the most confident first (MaskGIT, MAGE).

What happens in step s of S: tokens are sampled everywhere; of the unknown ones, as many as
N cos(pi (s + 1) / 2S) of the *whole image's* N tokens would be left unknown, the least confident,
are masked again. Steps that would leave more unknown than there were at the start are skipped.
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

KNOWN = math.log(1e20)
"""Log-probability that known tokens are given, so that they are not masked again."""


def first_steps(num_iter: int, num_tokens: int) -> Int[np.ndarray, "n_plus_1"]:
    """Find the first step that is not skipped, by the number of tokens unknown at the start.

    From 0 to num_iter; for no unknown token it is num_iter: nothing is done.
    """
    left = _cosine(num_iter)
    share = np.arange(num_tokens + 1) / num_tokens
    return (left >= share[:, None]).sum(1)


def lengths(num_iter: int, num_tokens: int) -> Int[np.ndarray, "num_iter"]:
    """Count the tokens that are masked again after each step, before it is fitted to the image."""
    return np.floor(num_tokens * _cosine(num_iter)).astype(np.int64)


def _cosine(num_iter: int) -> Float[np.ndarray, "num_iter"]:
    return np.cos(np.pi / 2 * np.arange(1, num_iter + 1) / num_iter)


def step(
    logits: Float[Array, "b n codes"],
    ids: Int[Array, "b n"],
    mask_id: int,
    length: Int[Array, ""],
    noise_scale: Float[Array, ""],
    sample_noise: Float[Array, "b n codes"],
    noise: Float[Array, "b n"],
) -> tuple[Int[Array, "b n"], Int[Array, "b n"]]:
    """Take a step: (tokens sampled, tokens with the least confident masked again), for each image.

    Args:
      logits: of the codes, at temperature 1.
      ids: tokens before the step; those that are not mask_id stay in what is sampled.
      mask_id: id of an unknown token.
      length: how many are masked again: at least 1, and at least 1 fewer than were unknown.
      noise_scale: of the noise in the confidence; falls to 0 in the last step.
      sample_noise: Gumbel(0, 1): the sample is the argmax of logits + sample_noise.
      noise: Gumbel(0, 1), of the confidence.
    """
    unknown = ids == mask_id
    sampled = jnp.where(unknown, jnp.argmax(logits + sample_noise, axis=-1), ids)
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), sampled[..., None], axis=-1)[..., 0]
    confidence = jnp.where(unknown, log_p, KNOWN) + noise_scale * noise
    k = jnp.maximum(jnp.minimum(unknown.sum(1, keepdims=True) - 1, length), 1)
    threshold = jnp.take_along_axis(jnp.sort(confidence), k - 1, axis=1)
    return sampled, jnp.where(confidence <= threshold, mask_id, sampled)


def noise(
    keys: Key[Array, "b"], number: int | Int[Array, ""], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Float[Array, "b ..."]]:
    """Draw the Gumbel(0, 1) noise of one step: of each shape, for each of the images' keys [b]."""

    def one(key):
        each = jax.random.split(jax.random.fold_in(key, number), len(shapes))
        pairs = zip(shapes.items(), each, strict=True)
        return {name: jax.random.gumbel(k, shape) for (name, shape), k in pairs}

    return jax.vmap(one)(keys)


def run(
    one_step: Callable[[Int[Array, "b n"], Int[Array, ""]], tuple[Array, Array]],
    ids: Int[Array, "b n"],
    unknown: Bool[Array, "b n"],
    num_iter: int,
) -> Int[Array, "b n"]:
    """Decode: return the tokens of the last step; an image without unknown tokens keeps its own.

    Each image takes the steps that it would take alone: which are skipped depends on its number
    of unknown tokens. The loop starts with the first step that any image takes.

    Args:
      one_step: from the tokens and the number of the step to what `step` returns.
      ids: tokens at the start.
      unknown: which of them are unknown.
      num_iter: number of steps, with those that are skipped.
    """
    start = jnp.array(first_steps(num_iter, ids.shape[1]))[unknown.sum(1)]

    def body(number, state):
        new = one_step(state[1], number)
        takes = (number >= start)[:, None]
        return tuple(jnp.where(takes, n, old) for n, old in zip(new, state, strict=True))

    return jax.lax.fori_loop(start.min(), num_iter, body, (ids, ids))[0]
