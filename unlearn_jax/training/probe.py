"""What is measured on fixed forget and holdout rows while training, and the stop rules on it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from unlearn_jax import distributed, sharding
from unlearn_jax.models import Model, Params
from unlearn_jax.models.distances import displacement
from unlearn_jax.models.params import overlay
from unlearn_jax.request import Request
from unlearn_jax.training.start import Start
from unlearn_jax.training.step import masked_mean

SAMPLES = 8


def make_probe(
    request: Request, target: Params, key: PRNGKeyArray
) -> Callable[[Params], dict[str, jax.Array]]:
    """Make a function from trainable leaves to scalars on fixed forget and holdout rows.

    Of each set there are up to cfg.probe_rows.

    `probe_forget`, `probe_holdout` (of calibration rows, if there are any): the model's mean loss.
    With a target also `displacement`: mean over the forget rows of the RMS distance to the target's
    output on the masked part; and `forget_over_holdout`: mean forget loss over the *target's* mean
    holdout loss (1 = the forget images are as unknown as unseen ones were to the original).
    """
    cfg, mesh, split = request.cfg, request.mesh, request.split
    batches = {}
    for stream, (name, rows) in enumerate(
        {"forget": split.forget, "holdout": split.calibration}.items()
    ):
        if not len(rows):
            continue
        batches[name] = _batch(request, rows, cfg.probe_rows, stream)

    (generate, mean_loss, probe), reference = jit_probe(request.model, mesh, key), {}
    if target:
        reference["output"] = generate(target, batches["forget"], key)
        if "holdout" in batches:
            reference["holdout"] = mean_loss(target, batches["holdout"])
    return lambda params: probe(params, target, batches, reference)


def make_samples(request: Request, start: Start) -> Callable[[Params], np.ndarray]:
    """Return a function from trainable leaves to pictures of up to SAMPLES forget images.

    [n h 3w 3] in [-1, 1]: what the model sees, what it completes, and the truth, side by side.
    """
    batch = _batch(request, request.split.forget, SAMPLES, stream=0)

    @partial(sharding.jit_rows, mesh=request.mesh)
    def pictures(params, target, batch):
        image, mask = batch["image"], batch["mask"]
        output = request.model.generate(overlay(target, params), batch, start.keys.probe)
        return jnp.concatenate([image * (1 - mask), output, image], axis=2)

    valid = distributed.fetch(batch["valid"])
    return lambda params: distributed.fetch(pictures(params, start.original, batch))[valid]


def _batch(request: Request, rows: np.ndarray, most: int, stream: int) -> dict[str, jax.Array]:
    """Return a fixed random choice of rows as one batch on the devices."""
    rng, size = np.random.default_rng([request.cfg.seed, stream]), request.mesh.size
    rows = np.sort(rng.choice(rows, min(most, len(rows)), replace=False))
    (batch,) = request.batches(rows, batch_size=-(-len(rows) // size) * size)
    return sharding.global_batch(batch, request.mesh)


def jit_probe(model: Model, mesh: Mesh, key: PRNGKeyArray) -> tuple[Callable[..., Any], ...]:
    """Compile `model.generate`, (params, batch) -> mean loss, and the probe itself.

    The last: (params, target, batches, reference) -> scalars, where the reference is what the
    others make of the target, or {}. All draw from that key.
    """
    loss, generate = (sharding.jit_rows(f, mesh) for f in (model.loss, model.generate))

    def mean_loss(params, batch):
        return masked_mean(loss(params, batch, key), batch["valid"])

    @jax.jit
    def probe(params, target, batches, reference):
        student, forget = overlay(target, params), batches["forget"]
        values = {f"probe_{name}": mean_loss(student, batch) for name, batch in batches.items()}
        if reference:
            output = generate(student, forget, key)
            moved = displacement(output, reference["output"], forget["mask"])
            values["displacement"] = masked_mean(moved, forget["valid"])
            if "holdout" in reference:
                values["forget_over_holdout"] = values["probe_forget"] / reference["holdout"]
        return values

    return generate, jax.jit(mean_loss), probe


def fired(stop: ConfigDict, probed: dict[str, jax.Array]) -> str:
    """Say why the phase ends now, such as "displacement 0.213 >= 0.2"; "" if it goes on."""
    if not stop.metric or not probed:
        return ""
    value = float(probed[stop.metric])
    return f"{stop.metric} {value:.4g} >= {stop.at_least:.4g}" if value >= stop.at_least else ""
