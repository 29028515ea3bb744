"""Every distinct program of a request, by shape only: what `launch.aot --all` compiles.

Two programs are the same if they differ in numbers alone, such as a learning rate. What multiplies
no matrices and is no mechanism is not listed: copies, checksums, means, random bits. Nor is the
root of FID's covariances, which on TPUs is the host's (`evaluate.fid`).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import cifar10_compare, quickstart_certified
from launch.aot import programs
from launch.aot.programs import (
    Program,
    anywhere,
    batch_like,
    everywhere,
    layout_like,
    params_like,
    sampler,
    shardings_of,
)
from unlearn_jax import methods as objectives
from unlearn_jax import models, sharding
from unlearn_jax.audit import measure
from unlearn_jax.audit.membership_masks import loss_of_one_draw
from unlearn_jax.audit.membership_noise import losses_of_copies
from unlearn_jax.audit.membership_views import losses_of_views
from unlearn_jax.certify import attack as mechanism
from unlearn_jax.evaluate.metrics import fid, reconstruction
from unlearn_jax.evaluate.towers import extractor as towers
from unlearn_jax.evaluate.towers import features, preprocessing
from unlearn_jax.methods import goals, saliency, tokens
from unlearn_jax.models.params import select
from unlearn_jax.training import noisy, probe

Made = Callable[[], Program]
CERTIFIED = {  # of the audits of mechanisms, each with the arguments that it has in a certificate
    "output_perturbation": {"init_radius": 1.0, "noise_std": 1.0},
    "noisy_finetune": {
        "init_radius": 1.0, "noise_std": 1.0, "steps": 20, "step_size": 0.05, "clip_norm": 1.0,
    },
    "model_clipping": {
        "init_noise_std": None, "noise_std": 1.0, "steps": 20, "step_size": 0.05, "clip_norm": 1.0,
        "model_clip_norm": 1.0,
    },
}  # fmt: skip


def with_methods(cfg: ConfigDict) -> ConfigDict:
    """Add a phase for every method, combination and noise that the config's model supports.

    Where it has one of that kind itself, none is added.
    """
    cfg = cfg.copy_and_resolve_references()
    model = models.of(cfg)
    phases = {name: of for name, of in cifar10_compare.phases().items() if name != "reference"}
    for name in ("noisy", "clipped"):
        phases[name] = quickstart_certified.get_config(name).phases[name]
    if model.tokens:
        cached = cfg.phases.get("unlearn", cfg.phases.get("l2_encoder"))
        phases["cached_tokens"] = cached.copy_and_resolve_references()
        phases["cached_tokens"].cache_tokens = True
    for phase in phases.values():
        phase.batch_size = 0  # the config's
        if phase.objective == "calibrated" and not model.error:
            phase.objective_kw.direction = 0.0
    own = {_kind(cfg, phase)[:-1] for phase in cfg.phases.values()}
    new = {
        name: phase
        for name, phase in phases.items()
        if name not in cfg.phases and _kind(cfg, phase)[:-1] not in own
    }
    with cfg.unlocked():
        cfg.phases.update(new)
    stages = [name for stage in cfg.stages.values() for name in stage.phases]
    for name in [name for name in cfg.phases if name not in stages]:
        stage = cfg.stages.unlearned.copy_and_resolve_references()
        with cfg.unlocked():  # each of its own: a noised one changes the layout of the others
            cfg.stages[name] = stage
        cfg.stages[name].phases = (name,)
    return cfg


def distinct_phases(cfg: ConfigDict) -> list[str]:
    """Name the phases whose steps differ in more than numbers, the first of each kind."""
    found: dict[Any, str] = {}
    for stage in cfg.stages.values():
        for name in stage.phases:
            phase = cfg.phases[name]
            if phase.steps:
                found.setdefault((stage.scratch, *_kind(cfg, phase)), name)
    return list(found.values())


def _kind(cfg: ConfigDict, phase: ConfigDict) -> tuple:
    def shape(options):
        options = {k: v if isinstance(v, str) else bool(v) for k, v in options.items()}
        return tuple(sorted((k, v) for k, v in options.items() if v))

    of, needs = phase.optimizer, objectives.options(phase.objective)
    return (
        *(phase.objective, shape(needs | phase.objective_kw.to_dict()), phase.combine),
        *(shape(phase.combine_kw), phase.cache_tokens, bool(phase.goal)),
        *(bool(phase.retain_weight), bool(phase.forget_weight), phase.forget_fraction),
        *(of.name, bool(of.weight_decay), bool(of.clip_norm_l2), bool(phase.saliency)),
        *(shape(phase.noise), phase.batch_size or cfg.batch_size),
    )


def programs_of(cfg: ConfigDict, mesh: Mesh) -> dict[str, Made]:
    """List what makes every distinct program of a request, by name, the config's phases first.

    Args:
      cfg: a valid config.
      mesh: of any devices.
    """
    cfg = with_methods(cfg)
    found: dict[str, Made] = {
        f"step: {name}": partial(programs.step, cfg, mesh, phase=name)
        for name in distinct_phases(cfg)
    }
    return found | _around_phases(cfg, mesh) | _measures(cfg, mesh) | _towers(cfg, mesh)


def _around_phases(cfg: ConfigDict, mesh: Mesh) -> dict[str, Made]:
    """List fresh parameters and states, goals, tokens, saliency, noise, and the probe."""
    model, rows, key = models.of(cfg), cfg.batch_size, jax.random.key(0)
    whole, batch = params_like(cfg, model, mesh), batch_like(cfg, mesh, rows)
    params = layout_like(cfg, cfg.stages.unlearned, model, mesh)
    noised, trained = select(whole, model.trainable), select(params, model.trainable)
    probed = -(-cfg.probe_rows // mesh.size) * mesh.size
    probed_batch = batch_like(cfg, mesh, probed)

    def probing(scratch):
        both = {"forget": probed_batch, "holdout": probed_batch}
        of = {"output": probed_batch["image"], "holdout": everywhere(jnp.float32(0), mesh)}
        args = (params, {}, both, {}) if scratch else (trained, params, both, of)
        return Program(probe.jit_probe(model, mesh, key)[2], args, probed)

    def mean_loss():
        return Program(probe.jit_probe(model, mesh, key)[1], (params, probed_batch), probed)

    def gradient():
        fn = saliency.jit_gradient(model, shardings_of(trained))
        return Program(fn, (trained, trained, params, batch, anywhere(key)), rows)

    secret = anywhere(jax.random.split(key, 4))
    found: dict[str, Made] = {
        "init": lambda: Program(
            jax.jit(model.init, out_shardings=shardings_of(whole)), (anywhere(key),), 0
        ),
        "goals: views": partial(losses, cfg, mesh, "views"),
        "goals: views and reference": partial(losses, cfg, mesh, "views+reference"),
        "goals: quantiles": partial(losses, cfg, mesh, "quantiles"),
        "saliency: gradient": gradient,
        "saliency: mask": lambda: Program(saliency.largest, (trained, 0.5), 0),
        "probe": partial(probing, scratch=False),
        "probe from scratch": partial(probing, scratch=True),
        "probe: mean loss": mean_loss,
        "probe: original's output": lambda: sampler(cfg, mesh, rows=probed),
        "noise: projection": lambda: Program(
            jax.jit(noisy.project_to_ball, static_argnums=2), (noised, noised, 1.0), 0
        ),
        "noise: once": lambda: Program(
            jax.jit(noisy.gaussian_perturb, static_argnums=1), (noised, 1.0, secret), 0
        ),
    }
    if model.error:
        found["goals: views and outputs"] = partial(losses, cfg, mesh, "views", tuple(range(7)))
    if model.tokens:
        found["tokens"] = lambda: Program(tokens.jit_tokens(model, mesh), (params, batch), rows)
    return found


def losses(cfg: ConfigDict, mesh: Mesh, kind: str, outputs: tuple[int, ...] = ()) -> Program:
    """List the losses that goals of a kind are fitted to (goals.py)."""
    model = models.of(cfg)
    params = layout_like(cfg, cfg.stages.unlearned, model, mesh)
    batch = batch_like(cfg, mesh, cfg.batch_size)
    fn = goals.jit_losses(kind, model, mesh, jax.random.key(0), outputs)
    args = params, params if "reference" in kind else None, batch
    return Program(fn, args, cfg.batch_size)


def _measures(cfg: ConfigDict, mesh: Mesh) -> dict[str, Made]:
    """List completed images, errors and losses on them, relearning, attacks of mechanisms."""
    model, rows, key = models.of(cfg), cfg.batch_size, jax.random.key(0)
    params, batch = params_like(cfg, model, mesh), batch_like(cfg, mesh, rows)

    def errors():
        return Program(measure.jit_shared(lab), (params, params, batch), rows)

    def losses_of(params, batch, draws=()):  # the name is the program's
        return measure.losses(model, params, batch, key, draws or range(cfg.audit.draws))

    jit = partial(sharding.jit_rows, mesh=mesh)
    lab = SimpleNamespace(model=model, key=key, losses_of=losses_of, jit=jit)

    def of(function):
        return lambda: Program(jit(function), (params, batch), rows)

    def pixels():
        image = batch["image"]
        return Program(reconstruction.pixel_metrics, (image, image, batch), rows)

    def relearning():
        fresh, step = measure.jit_finetuning(cfg, model, mesh, params, cfg.audit.learning_rate)
        state = jax.eval_shape(fresh, params, 0)
        state = sharding.abstract(state, sharding.params_sharding(state, mesh, **cfg.sharding))
        args = state, {}, batch_like(cfg, mesh, cfg.audit.batch_size)
        return Program(step, args, cfg.audit.batch_size)

    found: dict[str, Made] = {
        "completion": lambda: sampler(cfg, mesh, rows=rows),
        "pixel metrics": pixels,
        "audit: errors": errors,
        "audit: losses": of(losses_of),
        "audit: losses with other masks": of(loss_of_one_draw(lab)),
        "audit: losses of views": of(losses_of_views(lab)),
        "audit: losses of noisy copies": of(losses_of_copies(lab)),
        "audit: relearning": relearning,
    }
    if cfg.protocol.batch_size != rows:
        found["completion for the protocol"] = lambda: sampler(cfg, mesh)

    def attack(name, arguments):
        start = jax.eval_shape(lambda: mechanism._start(1.0))
        secrets = jax.eval_shape(lambda: mechanism._secrets(mechanism.RUNS))
        args = everywhere((start, secrets), mesh)
        return Program(mechanism.jit_statistics(name, arguments), args, mechanism.RUNS)

    for name, arguments in CERTIFIED.items():
        found[f"audit of {name}"] = partial(attack, name, arguments)
    return found


def tower_of(metric: str) -> tuple[Any, Any]:
    """Build the tower, of the published size, of a metric of the protocol; and its recipe."""
    if metric == "cifar10_classifier":
        extractor = towers.small()
        return extractor.tower, extractor.recipe
    needs = towers.NEEDS[metric]
    recipe = preprocessing.RECIPES[needs["recipe"]]
    tower = towers.FAMILIES[needs["family"]](**needs["fields"])
    return dataclasses.replace(tower, mean=recipe["mean"], std=recipe["std"]), recipe


def _towers(cfg: ConfigDict, mesh: Mesh) -> dict[str, Made]:
    """List features of completed images, and their moments where there is no float64."""
    rows = programs.evaluation_rows(cfg, mesh)

    def forward(metric):
        tower, recipe = tower_of(metric)
        params = jax.eval_shape(tower.init, jax.random.key(0))
        params = sharding.abstract(params, sharding.params_sharding(params, mesh))
        pixels = np.zeros((8, 8, 3), np.uint8)
        pixels = preprocessing.prepare(pixels, recipe)
        pixels = programs.rows_like(mesh, rows, pixels.shape, pixels.dtype)
        return Program(
            features.forward, (tower, features.hashable(recipe), mesh, params, pixels), rows
        )

    def moments(metric):
        program = forward(metric)
        shape = jax.eval_shape(partial(program.fn, *program.args[:3]), *program.args[3:])
        shape = towers.pooled(shape).shape
        args = (programs.rows_like(mesh, rows, shape[1:], np.float32),)
        args += (programs.rows_like(mesh, rows, (), bool),)
        return Program(fid.jitted(fid.of_batch, mesh, "float32"), args, rows)

    metrics = [metric for metric in cfg.protocol.metrics if metric != "kid"]
    found = {f"tower: {metric}": partial(forward, metric) for metric in metrics}
    found |= {
        f"moments: {metric}": partial(moments, metric)
        for metric in metrics
        if metric in ("fid", "cifar10_classifier")
    }
    return found
