"""Every model on every mesh: the numbers of one device, and a share of its memory.

Meshes are data x fsdp, over eight fake devices. The gate takes one of them for most models;
`python -m pytest tests/whole/test_meshes.py -m "" -n 2` takes all models, phases and meshes.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.aot import hlo
from tests.helpers import tiny
from tests.helpers.toy import FIELDS, make_batch
from unlearn_jax import checkpoint, distributed, models, sharding, train
from unlearn_jax import methods as objectives
from unlearn_jax.audit.measure import make_measure
from unlearn_jax.evaluate import results
from unlearn_jax.evaluate.towers import extractor as towers
from unlearn_jax.evaluate.towers import features, preprocessing
from unlearn_jax.methods import optimizer, saliency
from unlearn_jax.models import diffusion
from unlearn_jax.models.params import select
from unlearn_jax.request import Request
from unlearn_jax.training import noisy
from unlearn_jax.training.step import UnlearnState, jit_step, unlearn_grad

pytestmark = pytest.mark.long

KEY = jax.random.key(0)
ROWS = 64
FORGET = 20
# Objective, weights of retain and forget rows, whether the phase starts from scratch.
PHASES = {
    "training": ("reconstruction", 1.0, 0.0, True),
    "gradient_ascent": ("gradient_ascent", 1.0, 1.0, False),
    "calibrated": ("calibrated", 1.0, 1.0, False),
    "l2_encoder": ("l2_encoder", 1.0, 1.0, False),
    "retain_label": ("retain_label", 1.0, 1.0, False),
    "noisy_label": ("noisy_label", 1.0, 1.0, False),
    "noised": ("reconstruction", 1.0, 0.0, False),
}
ONE, MESHES = (1, 1), ((8, 1), (2, 4), (1, 8))
GATE = {(name, "l2_encoder", (2, 4)) for name in ("mae", "mage")}
GATE |= {("autoencoder", "calibrated", shape) for shape in ((2, 4), (1, 8))}
GATE |= {("autoencoder", "training", (2, 4))}
GATE |= {(name, "generate", (2, 4)) for name in FIELDS}


def cases(phases):
    for name in FIELDS:
        for phase in phases:
            for shape in MESHES:
                case = (name, phase, shape)
                marks = () if case in GATE else pytest.mark.full
                yield pytest.param(*case, marks=marks, id=f"{name}-{phase}-{shape[0]}x{shape[1]}")


def make_mesh(shape):
    data, fsdp = shape
    return sharding.make_mesh(data=data, fsdp=fsdp, devices=jax.devices()[: data * fsdp])


@functools.cache
def initial(name):
    """(model, parameters); none of them zero, as fresh ones of Palette's output layers are."""
    model = models.build(name, image_size=16, **FIELDS[name])
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        fan_in = leaf.size / leaf.shape[-1] if leaf.ndim > 1 else 4
        noise = rng.standard_normal(leaf.shape).astype(np.float32) / np.sqrt(fan_in)
        return noise + ("scale" in sharding.leaf_path(path))

    params = jax.tree_util.tree_map_with_path(fill, jax.eval_shape(model.init, KEY))
    if name == "palette":
        params["schedule"] = diffusion.linear_schedule(3, 0.1, 0.5)
    return model, jax.tree.map(np.float32, params)


def place(tree, mesh):
    shardings = sharding.params_sharding(tree, mesh, min_bytes=0)
    return jax.device_put(jax.tree.map(np.asarray, tree), shardings), shardings


def batch_on(mesh, seed=0):
    batch = make_batch(ROWS, forget=FORGET, invalid=3, seed=seed, size=16)
    batch["is_forget"] = batch["is_forget"][::-1]  # the last rows, as `make_train` has them
    batch |= {"goal": jnp.full(ROWS, 0.5), "view_output": batch["image"] / 2}
    return sharding.global_batch(jax.tree.map(np.asarray, batch), mesh)


def on_each(tree):
    """Bytes of the tree's leaves on every device; asserts that they are alike."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        leaf = (
            jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        )
        (nbytes,) = {shard.data.nbytes for shard in leaf.addressable_shards}
        total += nbytes
    return total


def share(tree, fsdp):
    """Bytes that each device must hold: of what can be split, one part; all of embedding tables."""

    def nbytes(path, leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return 8
        can = any(d % fsdp == 0 for d in leaf.shape) and "embedding" not in str(path[-1])
        return leaf.size * leaf.dtype.itemsize // (fsdp if can else 1)

    return sum(nbytes(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree))


@functools.cache
def steps(name, phase, shape):
    """(metrics of three steps, the state after them, temporary bytes) on a mesh."""
    model, params = initial(name)
    objective, retain_weight, forget_weight, scratch = PHASES[phase]
    mesh, tx = make_mesh(shape), optimizer.make_optimizer(learning_rate=2e-4, steps=3, masked=True)
    if phase == "noised":
        settings = {"clip_norm_l2": 1.0, "weight_decay": 0.1, "model_clip_norm": 5.0}
        tx = noisy.noisy_sgd(learning_rate=0.01, noise_std=1e-3, **settings)
    target, target_sharding = ({}, {}) if scratch else place(params, mesh)
    trainable = select(params, (".*",) if scratch else model.trainable)
    state = UnlearnState(np.int32(0), trainable, tx.init(trainable), np.zeros(()))
    state, shardings = place(state, mesh)
    key = jax.device_put(jax.random.key(1), sharding.replicated(mesh))
    state = state.replace(key=key)
    constants, noised_sharding = (), None
    if phase == "noised":
        everywhere = sharding.replicated(mesh)
        reference, reference_sharding = place(trainable, mesh)
        constants = {"secret": noisy.secret_key(bytes(32)), "reference": reference}
        constants = (constants | {"secret": jax.device_put(constants["secret"], everywhere)},)
        noised_sharding = {"secret": everywhere, "reference": reference_sharding}
    forget_part = functools.partial(sharding.last_rows, at_least=FORGET, mesh=mesh)
    step = jit_step(
        model,
        objectives.build(objective, forget_part=forget_part),
        tx,
        retain_weight=retain_weight,
        forget_weight=forget_weight,
        state_sharding=shardings,
        target_sharding=target_sharding,
        batch_sharding=sharding.batch_sharding(mesh),
        replicated=sharding.replicated(mesh),
        noised_sharding=noised_sharding,
    )
    batch = batch_on(mesh)
    compiled = step.lower(state, target, batch, *constants).compile()
    memory = compiled.memory_analysis()

    held = on_each(state)
    assert held == share(state, shape[1]) and on_each(target) == share(target, shape[1])
    assert memory.alias_size_in_bytes >= held  # written where it was read: no copy of the state
    assert held <= memory.argument_size_in_bytes <= held + on_each((target, batch, constants))
    found, donated = [], jax.tree.leaves(state)
    for seed in range(3):
        state, metrics = compiled(state, target, batch_on(mesh, seed), *constants)
        found.append({key: float(value) for key, value in metrics.items()})
        assert all(value.is_fully_replicated for value in metrics.values())
    assert all(leaf.is_deleted() for leaf in donated)
    assert on_each(state) == held
    state = jax.tree.map(np.asarray, state.replace(key=jax.random.key_data(state.key)))
    return found, state, memory.temp_size_in_bytes


@pytest.mark.parametrize(("name", "phase", "shape"), list(cases(PHASES)))
def test_a_step_is_that_of_one_device(name, phase, shape):
    expected, state, alone = steps(name, phase, ONE)
    found, sharded, temporary = steps(name, phase, shape)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.keys() == b.keys() and all(map(math.isfinite, a.values()))
        for key, value in b.items():
            assert a[key] == pytest.approx(value, rel=1e-5, abs=1e-5), (i, key)
    before, after = initial(name)[1], state.params
    moved = jax.tree.map(lambda a, b: abs(a - b).max(), select(before, flat(after)), after)
    assert max(jax.tree.leaves(moved)) > 4e-4
    compare = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-4)
    jax.tree.map(compare, sharded.params, after)
    for a, b in zip(*(jax.tree.leaves(x.opt_state) for x in (sharded, state)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * max(abs(b).max(initial=0), 1e-6))
    assert temporary < 0.35 * alone, temporary / alone


def test_parameters_are_sent_not_features():
    """4 times, in both networks, backward and gradients; 16 times if MAGE's words were split."""
    model = models.build("mage", image_size=16, **FIELDS["mage"] | {"dim": 256})
    mesh, shapes = make_mesh((1, 8)), jax.eval_shape(model.init, KEY)
    params = sharding.abstract(shapes, sharding.params_sharding(shapes, mesh, min_bytes=0))
    batch = jax.eval_shape(functools.partial(make_batch, ROWS, FORGET, size=16))
    rows = jax.tree.map(lambda _: sharding.batch_sharding(mesh), batch)

    def grad(params, target, batch, key):
        settings = {"objective": objectives.l2_encoder, "retain_weight": 1.0, "forget_weight": 1.0}
        return unlearn_grad(params, target, batch, key, model=model, **settings)[0]

    trained = select(params, model.trainable)
    where = jax.tree.map(lambda leaf: leaf.sharding, trained)
    lowered = jax.jit(grad, out_shardings=where).lower(
        trained, params, sharding.abstract(batch, rows), KEY
    )
    sent = hlo.moved(lowered.compile().as_text()).wire_bytes
    every = sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(params))
    assert every < sent < 6 * every, sent / every


def flat(tree):
    return tuple(sharding.leaf_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree))


@functools.cache
def generated(name, shape):
    """(images, temporary bytes) on a mesh."""
    (model, params), mesh = initial(name), make_mesh(shape)
    params, _ = place(params, mesh)
    batch = batch_on(mesh)
    run = sharding.jit_rows(model.generate, mesh).lower(params, batch, KEY).compile()
    images = run(params, batch, KEY)
    assert {shard.data.shape[0] for shard in images.addressable_shards} == {ROWS // mesh.size}
    return np.asarray(images), run.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(("name", "phase", "shape"), list(cases(["generate"])))
def test_a_sampler_is_that_of_one_device(name, phase, shape):
    (expected, alone), (found, temporary) = generated(name, ONE), generated(name, shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert np.std(expected, axis=0).max() > 1e-2
    # Without `jit_rows` a VQGAN on 1 x 8 devices would need all of it on each.
    assert temporary < 0.35 * alone, temporary / alone


def on_mesh(**sizes):
    cfg = tiny.get_config()
    cfg.mesh.update(sizes)
    cfg.sharding.min_bytes = 0
    cfg.request.fraction, cfg.evaluation.retain_rows = 0.02, 30
    cfg.checkpoint.every = 100
    cfg.audit.rows = 60
    cfg.phases.decouple.update({"objective": "calibrated", "goal": "quantiles", "saliency": 0.5})
    cfg.phases.decouple.objective_kw = {}
    cfg.stages.unlearned.phases = ("decouple",)
    cfg.audit.resurfacing.update({"steps": (1, 8), "on": ("retain",)})
    cfg.audit.relearn.update({"steps": 2, "every": 1})
    return cfg


def test_a_request_end_to_end_never_holds_a_whole_leaf(tmp_path, monkeypatch):
    """Whenever a batch is put on the mesh, all kernels that live anywhere are in parts."""
    cfg, others = on_mesh(data=2, fsdp=4), jax.live_arrays()
    request = Request(cfg)
    kernels = {leaf.shape for leaf in jax.tree.leaves(request.like()) if leaf.ndim > 1}
    seen = []

    def watched(put, batch, mesh):
        arrays = [x for x in jax.live_arrays() if x.shape in kernels]
        arrays = [x for x in arrays if not any(x is other for other in others)]
        whole = [x.shape for x in arrays if x.addressable_shards[0].data.size * 4 != x.size]
        assert not whole
        seen.append(len(arrays))
        return put(batch, mesh)

    for name in ("global_batch", "split_batch"):
        put = getattr(sharding, name)
        monkeypatch.setattr(sharding, name, functools.partial(watched, put))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, request.like())
    fresh = jax.jit(request.model.init, out_shardings=shardings)(KEY)
    past = {"requests": [], "claim": "the test"}
    checkpoint.save_params(tmp_path / "original", fresh, served=past)
    cfg.stage, cfg.init_from = "unlearned", str(tmp_path / "original")
    train.run(cfg, tmp_path / "unlearned")
    split = results.run(cfg, tmp_path)["evaluation"]
    load = functools.partial(checkpoint.load_params, like=request.like())
    original, unlearned = (load(tmp_path / name)[0] for name in ("original", "unlearned"))
    audited = make_measure(request)(unlearned, original)
    assert len(seen) > 20 and min(seen[1:]) >= len(kernels)
    monkeypatch.undo()

    examples = np.load(tmp_path / "examples.npz")
    place = {row: i for i, row in enumerate(examples["forget/index"])}
    same = [place[row] for row in audited["index/forget"]]
    errors = examples["unlearned/forget/mse_hole"][same]
    np.testing.assert_allclose(audited["error/forget"], errors, rtol=1e-4)
    one, eight = (audited[f"resurfacing/retain/0.0003/{k}/forget"].mean() for k in (1, 8))
    assert eight < one  # it learns, on split parameters

    whole = results.run(on_mesh(data=8), tmp_path)["evaluation"]
    for a, b in zip(*(jax.tree.leaves(x) for x in (split, whole)), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)


@dataclasses.dataclass(frozen=True)
class Tower:
    """One product, large enough to be split by default."""

    def features(self, params, images):
        return {"pool": images.reshape(len(images), -1) @ params["kernel"]}


def test_a_tower_is_split_too():
    images = np.random.default_rng(0).integers(0, 256, (13, 8, 8, 3), np.uint8)
    kernel = np.random.default_rng(1).standard_normal((3072, 128), np.float32) / 100
    recipe = preprocessing.RECIPES["cifar10_classifier"]
    extractors = {"x/generated": towers.Extractor(Tower(), {"kernel": kernel}, recipe, {})}
    items = [{"position": i, "generated": image} for i, image in enumerate(images)]
    found = []
    for shape in (ONE, (2, 4)):
        mesh = make_mesh(shape)
        placed = features._on_mesh({"kernel": kernel}, mesh)["kernel"]
        assert placed.addressable_shards[0].data.size == kernel.size // shape[1]
        batches = list(features.extract(items, extractors, mesh, batch_size=8))
        pools = [out["x/generated"]["pool"] for out, _, _ in batches]
        assert {s.data.shape for x in pools for s in x.addressable_shards} == {
            (8 // mesh.size, 128)
        }
        found.append(
            np.concatenate(
                [distributed.fetch(x)[v] for x, (_, _, v) in zip(pools, batches, strict=True)]
            )
        )
    assert len(found[0]) == 13
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_saliency_gathers_nothing():
    (_, params), mesh = initial("autoencoder"), make_mesh((2, 4))
    placed, _ = place(params, mesh)
    compiled = saliency.largest.lower(placed, 0.3).compile()
    assert "all-gather" not in compiled.as_text()
    jax.tree.map(np.testing.assert_array_equal, compiled(placed), saliency.largest(params, 0.3))
