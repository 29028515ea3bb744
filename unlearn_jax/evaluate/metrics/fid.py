"""Fréchet distance of two sets of features, from moments that are gathered batch by batch."""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int

from unlearn_jax import files, sharding
from unlearn_jax.registry import UserError

FLOAT32_BACKENDS = ("tpu",)
"""Backends without float64: there the sums of one batch are float32, those of batches are not."""

FLOAT64_SOLVERS = ("gpu",)
"""Backends whose own solvers are used; those of the CPU are slower than LAPACK."""

Rows = Float[Array | np.ndarray, "b d"]


class Moments(NamedTuple):
    """Sufficient statistics of Gaussian features: their number, mean, and centred second moment.

    comoment = sum over rows of (x - mean)(x - mean)^T, float64 like the mean. On a device jax would
    round float64 arrays in any arithmetic but this file's; np.asarray gives them as they are.
    """

    n: Int[Array | np.ndarray, ""]
    mean: Float[Array | np.ndarray, "d"]
    comoment: Float[Array | np.ndarray, "d d"]


def empty(d: int) -> Moments:
    """Return the moments of no features of length d."""
    return Moments(np.zeros((), np.int64), np.zeros(d), np.zeros((d, d)))


def update(moments: Moments, features: Rows, valid: Bool[Array | np.ndarray, "b"]) -> Moments:
    """Add the valid rows of a batch to the moments gathered so far.

    A batch is centred on its own mean and merged by Chan's formula, so that a mean that is large
    beside the spread costs no digits. Sums are float64, on the device that holds the features;
    rows may be split over a mesh. On a backend without float64 (`FLOAT32_BACKENDS`) the centred
    sums of one batch are float32 and batches are merged in float64 on the host: about 1e-6 relative
    to the covariance.

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979.
    """
    mesh = getattr(getattr(features, "sharding", None), "mesh", None)
    if jax.default_backend() in FLOAT32_BACKENDS:
        batch = jax.device_get(jitted(of_batch, mesh, "float32")(features, valid))
        n, mean, rest, comoment = map(np.float64, batch)
        return _merge(_on_host(moments), Moments(np.int64(n), mean + rest, comoment))
    with jax.enable_x64(True):
        if mesh is not None:
            moments = jax.device_put(moments, sharding.replicated(mesh))
        return jitted(_update, mesh, "float64")(moments, features, valid)


def merge(a: Moments, b: Moments) -> Moments:
    """Merge moments, for example of two processes' shares of the images; on the host."""
    return _merge(_on_host(a), _on_host(b))


def covariance(moments: Moments) -> Float[np.ndarray, "d d"]:
    """Compute the unbiased covariance: comoment / (n - 1).

    Raises:
      UserError: fewer than two features.
    """
    moments = _on_host(moments)
    if moments.n < 2:
        raise UserError(f"A covariance needs 2 or more images, got {moments.n}.")
    return moments.comoment / (moments.n - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Compute |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), 0 or more; 0 for equal moments.

    The trace of the root is the nuclear norm of A^T B with S_a = A A^T and S_b = B B^T: nothing is
    complex, and singular covariances (fewer images than features) need no constant added to them.
    In float64; on the device where that has it (`FLOAT64_SOLVERS`), else by LAPACK on the host.

    Raises:
      UserError: fewer than two features in a set, other lengths, or values that are not finite.

    Source: Dowson & Landau, 1982; Heusel et al., arXiv 1706.08500, equation 6.
    """
    a, b = _on_host(a), _on_host(b)
    if a.mean.shape != b.mean.shape:
        raise UserError(
            f"Fréchet distance: expected features of one length, got {a.mean.size} and "
            f"{b.mean.size}. Were they made by the same tower?"
        )
    for name, moments in (("first", a), ("second", b)):
        if moments.n < 2:
            raise UserError(
                f"Fréchet distance: expected 2 or more images in each set, got {moments.n} in the "
                f"{name}."
            )
        if not (np.isfinite(moments.mean).all() and np.isfinite(moments.comoment).all()):
            raise UserError(
                f"Fréchet distance: the {name} set's features are not finite. Are the images and "
                "the tower's weights?"
            )
    s_a, s_b = covariance(a), covariance(b)
    if jax.default_backend() in FLOAT64_SOLVERS:
        with jax.enable_x64(True):
            root = float(jax.jit(functools.partial(_root_trace, xp=jnp))(s_a, s_b))
    else:
        root = float(_root_trace(s_a, s_b, xp=np))
    between = np.square(a.mean - b.mean).sum()
    return max(float(between + np.trace(s_a) + np.trace(s_b) - 2 * root), 0.0)


def save(path: Path, moments: Moments) -> None:
    """Write the moments to an .npz file, whole or not at all."""
    files.write_arrays(path, _on_host(moments)._asdict(), {"kind": "moments"})


def load(path: Path) -> Moments:
    """Load the moments from a file that `save` has written.

    Raises:
      FileNotFoundError: there is none.
      UserError: it is something else, or damaged.
    """
    arrays, about = files.read_arrays(path)
    if about.get("kind") != "moments":
        raise UserError(f"{path}: expected moments, found {about.get('kind')!r}.")
    return Moments(**arrays)


def of_batch(features, valid):
    """Compute (n, two numbers that add up to the mean, comoment), float64 where that is enabled.

    In float32 one number would be too rough: batches are compared by their means.
    """
    keep, n = valid[:, None], valid.sum()
    x = jnp.where(keep, features, 0).astype(jnp.result_type(float))
    mean = x.sum(0) / jnp.maximum(n, 1)
    centred = jnp.where(keep, x - mean, 0)
    rest = centred.sum(0) / jnp.maximum(n, 1)
    centred = jnp.where(keep, centred - rest, 0)
    return n, mean, rest, jnp.matmul(centred.T, centred, precision="highest")


def _update(moments, features, valid):
    n, mean, rest, comoment = of_batch(features, valid)
    return _merge(moments, Moments(n, mean + rest, comoment))


def _merge(a, b):
    """Merge moments of numpy arrays or of jax arrays."""
    n = a.n + b.n
    share = b.n / (n + (n == 0))
    shift = b.mean - a.mean
    outer = shift[:, None] * shift * (a.n * share)
    return Moments(n, a.mean + shift * share, a.comoment + b.comoment + outer)


@functools.cache
def jitted(function, mesh, precision):
    """Compile the function of moments or rows; its outputs are on every device of the mesh."""
    del precision  # one compiled program for each
    everywhere = NamedSharding(mesh, sharding.P()) if mesh is not None else None
    return jax.jit(function, out_shardings=everywhere)


def _on_host(moments: Moments) -> Moments:
    n, mean, comoment = jax.device_get(moments)
    return Moments(np.asarray(n, np.int64), np.float64(mean), np.float64(comoment))


def _root_trace(s_a, s_b, xp):
    """Compute the nuclear norm of A^T B, with numpy or with jax.numpy."""
    a, b = _factor(s_a, xp), _factor(s_b, xp)
    return xp.linalg.svd(a.T @ b, compute_uv=False).sum()


def _factor(covariance, xp):
    """Factor a covariance: return A with A A^T = covariance.

    Directions that are zero but for rounding become exactly zero.
    """
    values, vectors = xp.linalg.eigh(covariance)
    smallest = len(values) * np.finfo(np.float64).eps * xp.maximum(values[-1], 0)
    return vectors * xp.sqrt(xp.where(values > smallest, values, 0))
