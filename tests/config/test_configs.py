"""Every config's training and unlearning steps, by shape only: nothing is computed."""

import importlib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from unlearn_jax import methods as objectives
from unlearn_jax import models
from unlearn_jax.models.params import select
from unlearn_jax.training import step

CONFIGS = sorted(p.stem for p in (Path(__file__).parents[2] / "configs").glob("[!_]*.py"))
# Parameters of the whole model, and of what is trained when unlearning: protocol values, less what
# would leak into the frozen half (MAGE: 2025 tied embeddings of 768; Palette: the noise embedding).
PUBLISHED = {
    "imagenet_mage": (200_989_804, 86_810_112 - 2025 * 768),
    "imagenet_mae": (329_541_888, 303_099_904),
    "places365_palette": (62_641_347 + 6 * 2000, 25_044_416 - 82_432),
}


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def batch_like(config, b=2):
    size = config.data.image_size
    shapes = {"image": (b, size, size, 3), "mask": (b, size, size, 1), "goal": (b,)}
    shapes["view_output"] = shapes["image"]
    batch = {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()}
    for name, dtype in (("label", jnp.int32), ("index", jnp.int32), ("valid", bool)):
        batch[name] = jax.ShapeDtypeStruct((b,), dtype)
    return batch | {"is_forget": batch["valid"]}


@pytest.mark.long
@pytest.mark.parametrize("name", CONFIGS)
def test_every_phase_of_every_config_has_a_gradient(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    model = models.of(config)
    whole = jax.eval_shape(model.init, jax.random.key(0))
    batch, key = batch_like(config), jax.eval_shape(lambda: jax.random.key(0))
    for stage in ("original", "unlearned"):
        patterns = (".*",) if config.stages[stage].scratch else model.trainable
        params = select(whole, patterns)
        if name in PUBLISHED:
            assert count(params) == PUBLISHED[name][stage == "unlearned"]
        if stage == "original" and name in PUBLISHED:
            continue  # the objective of the small configs, and slow to trace at this size
        for phase in config.stages[stage].phases:
            spec = config.phases[phase]
            grad_fn = partial(
                step.unlearn_grad,
                model=model,
                objective=objectives.build(spec.objective, **spec.objective_kw),
                retain_weight=spec.retain_weight,
                forget_weight=spec.forget_weight,
            )
            grads, metrics = jax.eval_shape(grad_fn, params, whole, batch, key)
            assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)
            assert metrics["loss"].shape == ()


def test_all_published_configs_are_there():
    assert set(PUBLISHED) <= set(CONFIGS)
