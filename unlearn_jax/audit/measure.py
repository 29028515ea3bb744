"""Measurements of one model for the audits: errors, outputs on triggered images, relearning."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from unlearn_jax import data, sharding
from unlearn_jax import methods as objectives
from unlearn_jax.audit import limits
from unlearn_jax.data import poison, transforms
from unlearn_jax.data.splits import Split
from unlearn_jax.methods import goals, optimizer
from unlearn_jax.models import Model, Params
from unlearn_jax.models.distances import displacement, masked_mse
from unlearn_jax.registry import UserError
from unlearn_jax.request import Request
from unlearn_jax.training.step import UnlearnState, jit_step

Measured = dict[str, np.ndarray]
SETS = ("forget", "retain", "holdout")
AS_PLANTED = "as planted"
_ROWS, _RELEARN, _TUNE = 0, 1, 2  # random streams


def make_measure(request: Request) -> Callable[[Params, Params], Measured]:
    """Make a function (params, target, of_views=False) -> arrays of a model, compiled once for all.

    * `error/SET` [n]: mean squared error on the generated part. Forget rows that carry a backdoor
      are left out, since no model can guess a payload; of every set at most cfg.audit.rows.
      `index/SET` [n]: which rows.
    * `views/SET` [7 n], if asked for: the same error on mirrored and turned views of the images.
      Likewise of `earlier0`, `earlier1`, …: the forget sets of requests that were served before.
    * `displacement` [n]: RMS distance to the target's output, on the forget rows.
    * `region/VARIANT` [n s s 3] float16, if there is poison: outputs on the payload's region of
      clean holdout images with the trigger: as planted, at half the contrast, shifted by 2 pixels,
      and as planted after fine-tuning the model on the retain rows. `untriggered`: the same
      without trigger. `payload` [s s 3].
    * `relearn/SEED` [t]: error on forget rows while the model is fine-tuned on *other* forget rows,
      cfg.audit.relearn.images or half of them; `relearn/steps` [t].

    Args:
      request: of the request; `cfg.audit` says how many rows, steps and seeds.
    """
    cfg, mesh, split, model = request.cfg, request.mesh, request.split, request.model
    settings, task, key = cfg.audit, cfg.task.to_dict(), jax.random.key(cfg.request.seed)
    if reason := limits.lacking(split):
        raise UserError(f"audit: {reason}.")
    sharding.check_batch_size(cfg.batch_size, mesh)
    sharding.check_batch_size(settings.batch_size, mesh, "audit.batch_size")
    rows = choose_rows(cfg, split)
    backdoor = poison.design(task, cfg.data.image_size) if split.poisoned.size else None
    shown = _variants(backdoor, task) if backdoor else {}

    measure, measure_views = jit_measures(model, mesh, key)
    generate = sharding.jit_rows(model.generate, mesh)

    def look(function, chosen, *params, **options):
        return request.map(function, chosen, *params, seed=cfg.request.seed, **options)

    def errors(params, target, chosen):
        return look(measure, chosen, params, target)

    def regions(params, show):
        def triggered(batch):
            images = transforms.to_uint8(batch["image"])
            return batch | {"image": transforms.to_float(show(images))}

        def completed(params, batch):
            return generate(params, batch, key)

        output = look(completed, rows["holdout"], params, edit=triggered)
        return output.astype(np.float16)[(slice(None), *backdoor.region())]

    fresh_state, step = jit_finetuning(cfg, model, mesh, request.like())

    def finetune(params, stream, chosen, steps, seed, probe=None, every=0):
        """Fine-tune on the chosen rows; return the params and what the probe saw on the way."""
        seen = [probe(params)] if probe else []
        params = jax.tree.map(lambda x: x.copy(), params)  # the step donates them
        state = fresh_state(params, seed)
        loader = data.make_train(
            request.source, retain_rows=chosen, forget_rows=None, batch_size=settings.batch_size,
            forget_fraction=0.5, task=task, first_step=0, num_steps=steps,
            seed=int(np.random.SeedSequence([seed, stream]).generate_state(1)[0]),
            places=sharding.local_rows(settings.batch_size, mesh),
        )  # fmt: skip
        for k, batch in enumerate(loader, start=1):
            state, _ = step(state, {}, sharding.global_batch(batch, mesh))
            if probe and k % every == 0:
                seen.append(probe(state.params))
        return state.params, np.array(seen, np.float32)

    def run(params, target, of_views=False):
        found: Measured = {}
        for name, chosen in rows.items():
            found[f"index/{name}"] = chosen
            found[f"error/{name}"], moved = errors(params, target, chosen)
            if name == "forget":
                found["displacement"] = moved
            if of_views and name in SETS:
                found[f"views/{name}"] = look(measure_views, chosen, params).T
        if backdoor:
            found["payload"] = transforms.to_float(backdoor.pattern())
            outputs = {variant: regions(params, show) for variant, show in shown.items()}
            if settings.finetune_steps:
                tuned, _ = finetune(params, _TUNE, split.retain, settings.finetune_steps, 0)
                outputs["after fine-tuning"] = regions(tuned, shown[AS_PLANTED])
            found |= {f"region/{variant}": output for variant, output in outputs.items()}
            found["untriggered"] = regions(params, lambda images: images)
        relearn, clean = settings.relearn, np.setdiff1d(split.forget, split.poisoned)
        if relearn.seeds:
            found["relearn/steps"] = np.arange(0, relearn.steps + 1, relearn.every)
        for seed in range(relearn.seeds):
            rng = np.random.default_rng([cfg.request.seed, _RELEARN, seed])
            order = rng.permutation(clean)
            images = min(relearn.images, len(clean) // 2)
            again, held = order[:images], np.sort(order[images:][: relearn.rows])
            _, curve = finetune(
                params, _RELEARN, again, relearn.steps, seed,
                lambda p, held=held: errors(p, target, held)[0].mean(), relearn.every,
            )  # fmt: skip
            found[f"relearn/{seed}"] = curve
        return found

    return run


def choose_rows(cfg: ConfigDict, split: Split) -> dict[str, np.ndarray]:
    """Choose the audited rows of every set: at most cfg.audit.rows, at random, none poisoned."""
    sets = {
        "forget": np.setdiff1d(split.forget, split.poisoned),
        "retain": split.remaining,
        "holdout": split.audit,
    }
    sets |= {f"earlier{k}": rows for k, rows in enumerate(split.served)}
    rng = np.random.default_rng([cfg.request.seed, _ROWS])
    n = cfg.audit.rows
    return {k: np.sort(rng.permutation(rows)[:n]) for k, rows in sets.items()}


def entries(cfg: ConfigDict) -> int:
    """Count the numbers in the generated part of an image: pixels times channels."""
    keys = np.zeros((1, 2), np.uint64)
    return int(3 * transforms.make_mask(cfg.task.to_dict(), cfg.data.image_size, keys).sum())


def _variants(backdoor: poison.Backdoor, task: Mapping) -> dict[str, Callable]:
    variants = {
        AS_PLANTED: backdoor.show,
        "contrast 0.5": lambda x: backdoor.show(x, contrast=0.5),
    }
    if backdoor.can_shift(task, 2):
        variants["shifted 2 px"] = lambda x: backdoor.show(x, shift=2)
    return variants


def jit_measures(model: Model, mesh: Mesh, key: PRNGKeyArray) -> tuple[Callable, Callable]:
    """Compile (params, target, batch) -> (error, displacement) and (params, batch) -> errors.

    The second are of the seven views of the images, [b 7].
    """

    @partial(sharding.jit_rows, mesh=mesh)
    def measure(params, target, batch):
        output, image, mask = model.generate(params, batch, key), batch["image"], batch["mask"]
        before = model.generate(target, batch, key)
        return masked_mse(output, image, mask), displacement(output, before, mask)

    @partial(sharding.jit_rows, mesh=mesh)
    def measure_views(params, batch):
        batches = [{**batch, "image": view} for view in goals.views(batch["image"])]
        outputs = [model.generate(params, b, key) for b in batches]
        pairs = zip(outputs, batches, strict=True)
        return jnp.stack([masked_mse(out, b["image"], b["mask"]) for out, b in pairs], 1)

    return measure, measure_views


def jit_finetuning(
    cfg: ConfigDict, model: Model, mesh: Mesh, like: Params
) -> tuple[Callable[..., UnlearnState], Callable[..., Any]]:
    """Compile (params, seed) -> state, and the step of fine-tuning; `like`: all leaves."""
    tx = optimizer.make_optimizer(learning_rate=cfg.audit.learning_rate, steps=1)

    def fresh_state(params, seed):
        return UnlearnState(jnp.int32(0), params, tx.init(params), jax.random.key(seed))

    shardings = jax.eval_shape(fresh_state, like, 0)
    shardings = sharding.params_sharding(shardings, mesh, **cfg.sharding)
    step = jit_step(
        model,
        objectives.build("reconstruction"),
        tx,
        retain_weight=1.0,
        forget_weight=0.0,
        state_sharding=shardings,
        target_sharding={},
        batch_sharding=sharding.batch_sharding(mesh),
        replicated=sharding.replicated(mesh),
    )
    return jax.jit(fresh_state, out_shardings=shardings), step
