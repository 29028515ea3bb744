"""What is measured on fixed forget and holdout rows while training, and the stop rules on it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from unlearn_jax import data, sharding
from unlearn_jax.evaluate.reconstruction import displacement
from unlearn_jax.models import Model, Params
from unlearn_jax.setup import Setup
from unlearn_jax.step import masked_mean, overlay


def make_probe(
    setup: Setup, target: Params, key: PRNGKeyArray
) -> Callable[[Params], dict[str, jax.Array]]:
    """A function from trainable leaves to scalars on up to cfg.probe_rows forget and holdout rows.

    `probe_forget`, `probe_holdout` (of calibration rows, if there are any): the model's mean loss.
    With a target also `displacement`: mean over the forget rows of the RMS distance to the target's
    output on the masked part; and `forget_over_holdout`: mean forget loss over the *target's* mean
    holdout loss (1 = the forget images are as unknown as unseen ones were to the original).
    """
    cfg, mesh, source, split, model = setup
    batches = {}
    for stream, (name, rows) in enumerate(
        {"forget": split.forget, "holdout": split.calibration}.items()
    ):
        if not len(rows):
            continue
        rng = np.random.default_rng([cfg.seed, stream])
        rows = np.sort(rng.choice(rows, min(cfg.probe_rows, len(rows)), replace=False))
        loader = data.make_eval(
            source,
            rows,
            batch_size=-(-len(rows) // mesh.size) * mesh.size,
            task=cfg.task.to_dict(),
            seed=cfg.seed,
        )
        batches[name] = sharding.split_batch(next(iter(loader)), mesh)

    (generate, mean_loss, probe), reference = jit_probe(model, mesh, key), {}
    if target:
        reference["output"] = generate(target, batches["forget"], key)
        if "holdout" in batches:
            reference["holdout"] = mean_loss(target, batches["holdout"])
    return lambda params: probe(params, target, batches, reference)


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
    """Why the phase ends now, such as "displacement 0.213 >= 0.2"; "" if it goes on."""
    if not stop.metric or not probed:
        return ""
    value = float(probed[stop.metric])
    return f"{stop.metric} {value:.4g} >= {stop.at_least:.4g}" if value >= stop.at_least else ""
