"""The mechanism: projection, clipping of the whole gradient, Gaussian noise on the parameters.

**Guarantee**: what the bounds of `certify.bounds` assume, and nothing more.
* Neighbours: none of its own; two runs that start within the accounted distance.
* Norms stay `MARGIN` below what is accounted, and noise a tenth of it above, so that float32
  rounding and lost tails do not matter (norms are asserted in float64 by the tests); a gradient
  that is not finite counts as zero.
* Every leaf and every step has a key of its own, a function of the secret, the step and the
  leaf's place in the tree: the noise is the same on any mesh, and a resumed run draws what the
  uninterrupted one would have drawn.
* A float32 normal of JAX never leaves [-5.42, 5.42]; the noise here is half the sum of four, from
  four 64-bit keys, so its tails reach 10.8 standard deviations and its secret has 256 bits.
* Not covered: sampling in floating point is not exactly Gaussian (Mironov 2012); whoever knows the
  secret can subtract the noise. The secret comes from the operating system and has nothing to do
  with a run's seed. It belongs in no config, metric or checkpoint; `secret_file` keeps it only
  while a run may have to resume.
"""

import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from unlearn_jax.models import Params
from unlearn_jax.registry import UserError

MARGIN = 1e-4  # relative
SECRET_FILE = "noise.key"
_SECRET_BYTES = 32


def secret_key(secret: bytes) -> Key[Array, "4"]:
    """Make four keys [4], which together are the secret.

    Raises:
      UserError: not 32 bytes.
    """
    if len(secret) != _SECRET_BYTES:
        raise UserError(f"secret: expected {_SECRET_BYTES} bytes, got {len(secret)}.")
    # Hashed, so that four alike parts of a poor secret do not make one noise, twice as large.
    parts = b"".join(hashlib.sha256(secret + bytes([i])).digest()[:8] for i in range(4))
    words = np.frombuffer(parts, ">u4").astype(np.uint32).reshape(4, 2)
    return jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")


def secret_file(workdir: Path) -> bytes:
    """Read the secret of an unfinished run from workdir/noise.key, or write a new one there.

    Readable by its owner only. A resumed run needs it to add the same noise, without which a user
    could draw again until the result pleases. Remove it with `forget_secret` once the run is done.

    Raises:
      UserError: the file is damaged.
      OSError: it could not be read or written.
    """
    path = workdir / SECRET_FILE
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(os.urandom(_SECRET_BYTES).hex())
        partial.replace(path)
    text = path.read_text()
    try:
        secret = bytes.fromhex(text)
        secret_key(secret)
    except ValueError as error:
        raise UserError(
            f"{path}: expected {2 * _SECRET_BYTES} hexadecimal digits, got {len(text)} characters. "
            "The noise of this run cannot be repeated: remove its workdir and start again."
        ) from error
    return secret


def forget_secret(workdir: Path) -> None:
    """Remove workdir/noise.key, so that nobody can subtract the noise later."""
    (workdir / SECRET_FILE).unlink(missing_ok=True)


def at_step(key: Key[Array, "4"], step: Any) -> Key[Array, "4"]:
    """Derive the four keys of one step."""
    return jax.vmap(lambda k: jax.random.fold_in(k, step))(key)


def global_norm(tree: Params) -> Float[Array, ""]:
    """Compute the L2 norm of all leaves together, without overflow; NaN or inf if one is."""
    leaves = [leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in _leaves(tree)]
    largest = jnp.max(jnp.stack([jnp.abs(leaf).max() for leaf in leaves]))
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
    squares = [jnp.square(leaf / scale) for leaf in leaves]
    # Axis by axis: one long float32 sum would lose the digits that the margin counts on.
    while any(x.ndim for x in squares):
        squares = [x.sum(-1) if x.ndim else x for x in squares]
    return scale * jnp.sqrt(jnp.sum(jnp.stack(squares))) + (largest - largest)


def clip_update(update: Params, max_norm: float) -> Params:
    """Scale the update to a norm of at most max_norm; to zero if any element is NaN or inf.

    Args:
      update: the whole minibatch gradient; it need not be clipped per example.
      max_norm: above 0; inf only replaces what is not finite.
    """
    norm = global_norm(update)
    limit = max_norm * (1 - MARGIN)
    scale = jnp.where(norm > limit, limit / norm, 1.0)
    finite = jnp.isfinite(norm)
    return jax.tree.map(lambda x: jnp.where(finite, x * scale.astype(x.dtype), 0), update)


def project_to_ball(params: Params, reference: Params, radius: float) -> Params:
    """Find the point of the ball around the reference that is nearest to params.

    Args:
      params: anything; if it is not finite, the reference is returned.
      reference: the centre, which must never have seen the forget set.
      radius: above 0.
    """
    offset = clip_update(jax.tree.map(jnp.subtract, params, reference), radius)
    return jax.tree.map(jnp.add, reference, offset)


def gaussian_noise(like: Params, noise_std: float, key: Key[Array, "4"]) -> Params:
    """Draw N(0, noise_std^2) for every element of every leaf, independently.

    Args:
      like: parameters, of which shapes, dtypes and order of the leaves count.
      noise_std: standard deviation, not variance; at least 0.
      key: [4], of this step and no other, from `at_step`.

    Raises:
      UserError: a leaf has less precision than float32, in which the noise would be rounded away.
    """
    leaves, tree = jax.tree.flatten(like)
    coarse = sorted({str(x.dtype) for x in leaves if x.dtype not in (jnp.float32, jnp.float64)})
    if coarse:
        raise UserError(f"noise: expected float32 parameters, got {coarse}. Noise master copies.")

    def draw(ordinal, leaf):
        def add(total, k):  # in a loop: a TPU compiles every generator that is written out
            return total + jax.random.normal(k, leaf.shape, leaf.dtype), None

        total, _ = jax.lax.scan(add, jnp.zeros(leaf.shape, leaf.dtype), at_step(key, ordinal))
        return (0.5 * noise_std * (1 + MARGIN / 10)) * total

    return jax.tree.unflatten(tree, [draw(i, leaf) for i, leaf in enumerate(leaves)])


def gaussian_perturb(params: Params, noise_std: float, key: Key[Array, "4"]) -> Params:
    """Add `gaussian_noise` to the parameters."""
    return jax.tree.map(jnp.add, params, gaussian_noise(params, noise_std, key))


def noisy_sgd(
    *,
    learning_rate: float,
    noise_std: float,
    clip_norm_l2: float = math.inf,
    weight_decay: float = 0.0,
    model_clip_norm: float = math.inf,
) -> optax.GradientTransformationExtraArgs:
    """Make the step x <- Pi_C2(x - gamma (clip_C1(g) + lambda (x - c))) + sigma Z; no state.

    `update` takes three more arguments: `secret`, the keys [4] of the run, `step`, and `reference`,
    the centre c with the leaves of the parameters.

    Args:
      learning_rate: gamma, the same in every step.
      noise_std: sigma on the parameters; 0: none.
      clip_norm_l2: C1, of the whole gradient; inf: not clipped.
      weight_decay: lambda, towards c.
      model_clip_norm: C2 of the projection before the noise; inf: none.
    """

    def update(updates, state, params=None, *, secret, step, reference, **_):
        gradient = clip_update(updates, clip_norm_l2)
        moved = jax.tree.map(
            lambda x, g, c: x - learning_rate * (g + weight_decay * (x - c)),
            params, gradient, reference,
        )  # fmt: skip
        if model_clip_norm != math.inf:
            moved = project_to_ball(moved, reference, model_clip_norm)
        if noise_std:
            moved = gaussian_perturb(moved, noise_std, at_step(secret, step))
        return jax.tree.map(jnp.subtract, moved, params), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _leaves(tree: Params) -> Iterator[Array]:
    return (leaf for leaf in jax.tree.leaves(tree) if leaf.size)
