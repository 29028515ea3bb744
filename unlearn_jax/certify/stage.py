"""Parts of a certified stage: centre, secret, noised start, the certificate.

**Guarantee**: the certificate is made from the config that the run has claimed and the checkpoint
that it has written, not from what was asked for. Neighbours, assumptions and gaps: `certificate`.
"""

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.sharding import Mesh
from jaxtyping import Array, Key, PRNGKeyArray
from ml_collections import ConfigDict

from unlearn_jax import checkpoint, distributed, files, models, sharding
from unlearn_jax.certify import certificate, public
from unlearn_jax.config import certified
from unlearn_jax.files import file_digest, read_jsonl
from unlearn_jax.methods.preparation import Context, Prepared
from unlearn_jax.models import Params
from unlearn_jax.models.params import select
from unlearn_jax.registry import UserError
from unlearn_jax.request import Request
from unlearn_jax.sharding import leaf_path
from unlearn_jax.training import noisy
from unlearn_jax.training.phases import Phase
from unlearn_jax.training.start import Start

_BEFORE_ALL_STEPS = 2**31 - 1  # in the place of a step's number, for noise that is added once


@dataclasses.dataclass(frozen=True)
class Noised:
    """The constants of a noised phase.

    Attributes:
      centre: of the balls, the trainable leaves.
      frozen: the other leaves, which original and centre share.
      secret: keys [4].
    """

    centre: Params
    frozen: Params
    secret: Key[Array, "4"]

    def prepare(self, context: Context) -> Prepared | None:
        """Prepare the start of the noised phase itself; later phases go on from there."""
        if context.resumed or not certified.is_noised(context.phase):
            return None
        return Prepared(params=noised_start(context.params, self, context.phase))


def load_noise(request: Request, start: Start, workdir: Path) -> Noised | None:
    """Load the constants of a run's noised phase; its secret is made, or read to resume.

    Args:
      request: of the run; config.certificate.centre_from is a workdir of public weights, or "" for
        the model's initial parameters.
      start: where the run starts.
      workdir: of the run.

    Returns:
      None for a run without noise.

    Raises:
      UserError: the public model has seen the forget set or may have, or a leaf that nothing
        noises is not public.
    """
    if certified.position(request.cfg) is None:
        return None
    whole = centre(request, start.keys.init)
    trained = select(whole, start.trainable)
    moved = {leaf_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(trained)}
    frozen, private = {}, []
    of_centre = dict(_by_path(whole))
    for path, leaf in _by_path(start.original):
        if path not in moved:
            frozen[path] = of_centre[path]
            if not np.array_equal(*distributed.fetch((leaf, of_centre[path]))):
                private.append(path)
    if private:
        raise UserError(
            f"certificate: {len(private)} leaves that model.trainable leaves alone differ from the "
            f"public centre, such as {private[0]}: they were trained on the forget set and would "
            "be released without noise. Set model.trainable=('.*',), or train an original whose "
            "other leaves are those of certificate.centre_from."
        )
    return Noised(trained, _nested(frozen), noisy.secret_key(_secret(workdir)))


def constants(noise: Noised, phase: Phase, mesh: Mesh) -> tuple[dict[str, Any], ...]:
    """Return what a noisy step gets beside its batch, secret and centre; () without noise."""
    if not phase.spec.noise.std:
        return ()
    where = {"secret": sharding.replicated(mesh), "reference": phase.shardings.params}
    return (jax.device_put({"secret": noise.secret, "reference": noise.centre}, where),)


def centre(request: Request, init_key: PRNGKeyArray) -> Params:
    """Return all leaves of the public model that the balls are centred at.

    Raises:
      UserError: it has seen rows of the forget set, or it cannot be told.
    """
    folder, like = request.cfg.certificate.centre_from, request.like()
    if not folder:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
        return jax.jit(request.model.init, out_shardings=shardings)(init_key)
    public.check(Path(folder), request.split)
    return checkpoint.load_params(Path(folder), like)[0]


def noised_start(params: Params, noised: Noised, phase: ConfigDict) -> Params:
    """Prepare the parameters that a noised phase begins with.

    They are projected, then noised if that is asked for.

    Raises:
      UserError: in float32 the projected parameters are not within the radius.
    """
    noise, secret = phase.noise, noisy.at_step(noised.secret, _BEFORE_ALL_STEPS)
    if noise.radius:
        project = jax.jit(noisy.project_to_ball, static_argnums=2)
        params = project(params, noised.centre, float(noise.radius))
        distance = _distance(params, noised.centre)
        if distance > noise.radius:
            raise UserError(
                f"noise.radius: expected the projected parameters within {noise.radius}, float32 "
                f"leaves them at {distance:.8g}. The radius is too small for parameters this large."
            )
    if noise.initial_std:
        params = jax.jit(noisy.gaussian_perturb, static_argnums=1)(
            params, float(noise.initial_std), secret
        )
    return params


def issue(
    request: Request,
    workdir: Path,
    manager: ocp.CheckpointManager,
    original: Params,
    init_key: PRNGKeyArray,
) -> None:
    """Write workdir/certificate.json of a finished run and remove its secret.

    All checkpoints but the last are removed too: to release an earlier iterate would cost epsilon.
    """
    path = workdir / certificate.FILE
    if not distributed.agreed(path.exists()):
        manager.wait_until_finished()
        params, meta = checkpoint.load_params(workdir, request.like())
        for step in set(manager.all_steps()) - {meta["step"]}:
            manager.delete(step)
        found = make(request.cfg, workdir, meta, params, original, centre(request, init_key))
        if distributed.first():
            certificate.write(found, path)
    if distributed.first():
        noisy.forget_secret(workdir)


def make(
    cfg: ConfigDict,
    workdir: Path,
    meta: dict[str, Any],
    released: Params,
    original: Params,
    centre: Params,
) -> certificate.Certificate:
    """Make the certificate of a finished run, from its config and from what it wrote.

    Args:
      cfg: the config, which rules.problems has nothing to say about.
      workdir: of the run.
      meta: of its last checkpoint.
      released: all leaves of its last checkpoint.
      original: all leaves that it started from.
      centre: all leaves of the public model.
    """
    where = certified.position(cfg)
    name, ended = cfg.stages[cfg.stage].phases[where], meta["phases"][where]
    mechanism, arguments = certified.mechanism(cfg.phases[name])
    settings = {key: cfg.certificate[key] for key in ("certifier", "accountant", "delta")}
    found = certificate.account(mechanism, arguments, **settings)
    trainable = models.of(cfg).trainable
    parts = {"config": "config.json", "split": "split.json", "metrics": "metrics.jsonl"}
    hashes = {key: file_digest(workdir / name) for key, name in parts.items()}
    trees = {"original": original, "centre": centre, "released": released}
    hashes |= {key: params_hash(tree) for key, tree in trees.items()}
    return certificate.Certificate(
        mechanism=mechanism,
        certifier=cfg.certificate.certifier,
        delta=float(cfg.certificate.delta),
        conditional=False,
        assumptions=certificate.assumptions(cfg.certificate.certifier, found["accountant"]),
        arguments=arguments,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(select(released, trainable))),
        run={
            "stage": cfg.stage,
            "phase": name,
            "first_step": ended["first_step"],
            "last_step": ended["last_step"],
            "final_step": meta["step"],
        },
        hashes=hashes | {"code": certificate.code_hash()},
        versions=meta["versions"],
        **found,
    )


def clipped_share(workdir: Path) -> float | None:
    """Compute the share of noised steps whose gradient was clipped; None if none was to be.

    It follows from the retain rows and the parameters before the noise, so it is no part of the
    certificate, which is published.

    Args:
      workdir: of a certified run.
    """
    noised = certificate.read(workdir / certificate.FILE).run
    lines = read_jsonl(workdir / "metrics.jsonl")
    with files.of_others(workdir / "metrics.jsonl", "the steps of a certified run"):
        lines = [line for line in lines if line["phase"] == noised["phase"] and "clipped" in line]
        if not lines:
            return None
        steps = np.diff([noised["first_step"], *(line["step"] for line in lines)])
        return float(np.average([line["clipped"] for line in lines], weights=steps))


def clipping_text(share: float | None) -> list[str]:
    """Say in one line what to know about `clipped_share`, or in none."""
    if share is None:
        return []
    text = f"The gradient was clipped in {100 * share:.3g} % of the noised steps"
    if share <= 0.01:
        text += ": a smaller clip norm would have taken less noise"
    elif share >= 0.99:
        text += ": nearly all have the same length, which is another method than gradient descent"
    return [text + "."]


def params_hash(params: Params) -> str:
    """Hash all leaves by SHA-256: paths, dtypes, shapes and bits."""
    digest = hashlib.sha256()
    for path, leaf in sorted(_by_path(params), key=lambda item: item[0]):
        array = np.ascontiguousarray(distributed.fetch(leaf))
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{path}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _secret(workdir: Path) -> bytes:
    secret = noisy.secret_file(workdir).hex() if distributed.first() else ""
    return bytes.fromhex(distributed.agreed(secret))


def _distance(params: Params, reference: Params) -> float:
    """Compute the L2 distance in float64, leaf by leaf on the host."""
    total = 0.0
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(reference), strict=True):
        a, b = (x.astype(np.float64) for x in distributed.fetch((a, b)))
        total += float(np.square(a - b).sum())
    return math.sqrt(total)


def _by_path(tree: Params) -> list[tuple[str, Any]]:
    return [(leaf_path(p), leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _nested(flat: dict[str, Any]) -> Params:
    return traverse_util.unflatten_dict(flat, sep="/")
