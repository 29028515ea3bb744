"""The update from slices of a batch is that of the whole batch, and needs less memory.

The gate has every objective with a model that costs nothing, and one objective with MAE and MAGE;
`pytest tests/training/test_accumulate.py -m ""` has all with all, on one and on eight devices.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from launch.aot import hlo, programs
from tests.helpers import tiny
from tests.helpers.toy import FIELDS, Toy, make_batch
from tests.whole.test_meshes import initial, make_mesh
from unlearn_jax import checkpoint, models, sharding, train
from unlearn_jax import methods as objectives
from unlearn_jax.config.validation import validate
from unlearn_jax.methods import combine, optimizer
from unlearn_jax.models.params import select
from unlearn_jax.training import noisy
from unlearn_jax.training.step import UnlearnState, jit_step, unlearn_grad

pytestmark = pytest.mark.long

KEY = jax.random.key(3)
ROWS = 32
ONE, SPLIT = (1, 1), (2, 4)
WHOLE = objectives.BATCH_COUPLED | objectives.DRAWING
BY_ROW = [name for name in objectives.OBJECTIVES if name not in WHOLE]
WEIGHTS = {"retain_weight": 1.5, "forget_weight": 0.5}


class Drawing(Toy):
    """A toy with noise on its images, one number of the batch's own, and a tokenizer."""

    def draw(self, batch, key):
        noise, scale = jax.random.split(key)
        image = batch["image"]
        return {"noise": jax.random.normal(noise, image.shape), "scale": jax.random.uniform(scale)}

    def encode(self, params, batch, key, *, draws=None):
        drawn = self.draw(batch, key) | dict(draws or {})
        noisy = batch["image"] + drawn["scale"] * drawn["noise"]
        return super().encode(params, {**batch, "image": noisy}, key)

    def decode(self, params, latent, batch, key, *, draws=None):
        return super().decode(params, latent, batch, key)

    def loss(self, params, batch, key, *, draws=None):
        latent = self.encode(params, batch, key, draws=draws)
        return self.error(self.decode(params, latent, batch, key), batch)

    def tokenizer_loss(self, params, batch, key):
        return Toy().loss(params, batch, key)


def batch_on(mesh, forget=9, rows=ROWS, size=16):
    """The last rows are to forget, as in training; some of either kind are not valid."""
    batch = make_batch(rows, forget=forget, size=size)
    batch["is_forget"] = batch["is_forget"][::-1]
    batch["valid"] = ~np.isin(np.arange(rows), (0, 1, 5, rows - 2))
    batch |= {"goal": jnp.linspace(0.2, 0.9, rows)}
    return sharding.global_batch(jax.tree.map(np.asarray, batch), mesh)


def gradients(model, params, objective, shape, numbers, forget=9, how="sum", **kw):
    """[(gradient, metrics)] of the whole batch on one device, then of each number of slices."""
    settings = {"model": model, "objective": objectives.build(objective), **WEIGHTS}
    settings["combine"] = combine.build(how, **kw)
    params = jax.tree.map(jnp.asarray, params)
    target = jax.tree.map(lambda x: 0.9 * x if jnp.issubdtype(x.dtype, jnp.floating) else x, params)
    found = [jax.jit(functools.partial(unlearn_grad, **settings))(
        params, target, batch_on(make_mesh(ONE), forget), KEY
    )]  # fmt: skip
    mesh = make_mesh(shape)
    here, before = jax.device_put((params, target), sharding.replicated(mesh))
    key = jax.device_put(KEY, sharding.replicated(mesh))
    for number in numbers:
        settings |= {"accumulate": number, "rows": sharding.batch_sharding(mesh)}
        grad = jax.jit(functools.partial(unlearn_grad, **settings))
        found.append(grad(here, before, batch_on(mesh, forget), key))
    return found


def assert_same(found):
    (whole, metrics), *others = jax.tree.map(np.asarray, found)
    assert max(abs(x).max() for x in jax.tree.leaves(whole)) > 1e-3
    for gradient, also in others:
        assert also.keys() == metrics.keys() == {"loss", "retain", "forget"}
        for name in metrics:
            np.testing.assert_allclose(also[name], metrics[name], rtol=2e-5, atol=1e-6)
        for a, b in zip(*map(jax.tree.leaves, (gradient, whole)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(abs(b).max(), 1e-2))


@pytest.mark.parametrize(("forget", "shape"), [(1, ONE), (9, SPLIT)])
@pytest.mark.parametrize("objective", BY_ROW)
def test_every_objective(objective, forget, shape):
    model = Drawing()
    assert_same(gradients(model, model.init(KEY), objective, shape, (2, 4), forget))


GATE = {("calibrated", SPLIT, name) for name in ("mae", "mage")}  # stacked blocks; tokens, codes


def cases():
    for name in FIELDS:
        for objective in BY_ROW:
            if objective == "tokenizer" and not models.MODELS[name].tokenizer_loss:
                continue
            for shape in (ONE, SPLIT):
                marks = () if (objective, shape, name) in GATE else pytest.mark.full
                yield pytest.param(name, objective, shape, marks=marks)


@pytest.mark.parametrize(("name", "objective", "shape"), list(cases()))
def test_every_model(name, objective, shape):
    numbers = (4,) if (objective, shape, name) in GATE else (2, 4)
    assert_same(gradients(*initial(name), objective, shape, numbers))


@pytest.mark.parametrize(
    ("how", "options"), [("orthogonal", {}), ("epsilon_constrained", {"epsilon": 2.0})]
)
def test_gradients_are_combined_after_all_slices(how, options):
    model = Drawing()
    found = gradients(model, model.init(KEY), "gradient_ascent", SPLIT, (2, 4), how=how, **options)
    assert_same(found)


class Keyed(Toy):
    """Draws from the key itself."""

    def loss(self, params, batch, key):
        return super().loss(params, batch, key) + jax.random.normal(key, (len(batch["image"]),))


def test_a_model_without_draws_draws_anew_in_each_slice():
    model, rows = Keyed(), sharding.batch_sharding(make_mesh(ONE))
    settings = {"objective": objectives.build("reconstruction"), "model": model}
    settings |= {"retain_weight": 1.0, "forget_weight": 0.0, "accumulate": 2, "rows": rows}
    params, batch = model.init(KEY), make_batch(8)
    _, metrics = unlearn_grad(params, {}, batch, KEY, **settings)
    noise = [jax.random.normal(jax.random.fold_in(KEY, i), (4,)) for i in range(2)]
    expected = Toy().loss(params, batch, KEY).mean() + jnp.stack(noise).mean()
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def compiled(model, params, shape, number, tx, rows=ROWS, noised=None, **options):
    """(the compiled step, its arguments)."""
    mesh = make_mesh(shape)
    trained = jax.tree.map(jnp.asarray, select(params, model.trainable))
    state = UnlearnState(jnp.int32(0), trained, tx.init(trained), KEY)
    shardings = sharding.params_sharding(state, mesh, min_bytes=0)
    target_sharding = sharding.params_sharding(params, mesh, min_bytes=0)
    noised_sharding = None
    if noised:
        everywhere = sharding.replicated(mesh)
        noised_sharding = {"secret": everywhere, "reference": shardings.params}
        options["noised_sharding"] = noised_sharding
    step = jit_step(
        model, objectives.build("gradient_ascent"), tx, **WEIGHTS,
        state_sharding=shardings, target_sharding=target_sharding,
        batch_sharding=sharding.batch_sharding(mesh), replicated=sharding.replicated(mesh),
        accumulate=number, **options,
    )  # fmt: skip
    args = [jax.device_put(jax.tree.map(jnp.copy, state), shardings)]
    args += [jax.device_put(params, target_sharding), batch_on(mesh, rows=rows)]
    args += [jax.device_put(noised, noised_sharding)] if noised else []
    return step.lower(*args).compile(), args


@pytest.mark.parametrize("kind", ["clipped", "noised"])
def test_the_whole_gradient_is_clipped_once(kind):
    model = Drawing()
    params, noised, options = model.init(KEY), None, {"clip_norm_l2": 0.1}
    tx = optimizer.make_optimizer(name="sgd", learning_rate=0.1, steps=1, clip_norm_l2=0.1)
    if kind == "noised":
        tx = noisy.noisy_sgd(learning_rate=0.1, noise_std=0.1, clip_norm_l2=0.1)
        noised = {"secret": noisy.secret_key(bytes(32))}
        noised["reference"] = select(params, model.trainable)
    found = []
    for shape, number in ((ONE, 1), (ONE, 4), (SPLIT, 4)):
        step, args = compiled(model, params, shape, number, tx, noised=noised, **options)
        state, metrics = step(*args)
        assert metrics["clipped"] == 1
        found.append(jax.tree.map(np.asarray, (state.params, metrics)))
    if kind == "clipped":
        moved = jax.tree.map(lambda a, b: a - b, found[0][0], select(params, model.trainable))
        assert optax.tree.norm(moved) == pytest.approx(0.01, rel=1e-3)
    for other in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), other, found[0])


@pytest.mark.parametrize("shape", [ONE, (1, 8)])
def test_memory_is_that_of_a_slice(shape):
    model, params = initial("autoencoder")
    tx = optimizer.make_optimizer(learning_rate=1e-3, steps=1)
    whole, *sliced = (compiled(model, params, shape, n, tx, rows=1024)[0] for n in (1, 4, 16))
    temp = [step.memory_analysis().temp_size_in_bytes for step in (whole, *sliced)]
    print(f"{shape}: temporary bytes with accumulate 1, 4, 16: {temp}")
    assert temp[1] < 0.4 * temp[0] and temp[2] < 0.2 * temp[0]


def test_sums_of_split_parameters_are_split():
    model, _ = initial("autoencoder")
    model = dataclasses.replace(model, latent_dim=4096)
    params, tx = model.init(KEY), optimizer.make_optimizer(learning_rate=1e-3, steps=1)
    step, _ = compiled(model, params, (1, 8), 4, tx)
    nbytes = sum(x.nbytes for x in jax.tree.leaves(select(params, model.trainable)))
    assert step.memory_analysis().temp_size_in_bytes < 0.4 * nbytes


def test_slices_move_no_rows_between_devices():
    (model, params), tx = (
        initial("autoencoder"),
        optimizer.make_optimizer(learning_rate=1e-3, steps=1),
    )
    step, _ = compiled(model, params, (8, 1), 4, tx, rows=64)
    assert set(hlo.moved(step.as_text()).collectives) == {"all-reduce"}


def test_a_run_in_slices_is_the_same_run(tmp_path):
    cfg = tiny.get_config()
    cfg.phases.pretrain.update({"steps": 6, "probe_every": 0})
    cfg.checkpoint.every = 3
    params = []
    for number in (1, 4):
        cfg.accumulate = number
        train.run(cfg, tmp_path / str(number))
        like = jax.eval_shape(models.build(**cfg.model.to_dict()).init, KEY)
        params.append(checkpoint.load_params(tmp_path / str(number), like)[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), *params)
    train.run(cfg, tmp_path / "1")  # accepted as the same config
    cfg.phases.pretrain.accumulate = 16
    with pytest.raises(ValueError, match=r"phases.pretrain.batch_size .* times accumulate=16"):
        train.run(cfg, tmp_path / "3")
    cfg.accumulate = 3
    with pytest.raises(
        ValueError, match=r"batch_size divisible by the 8 devices, times accumulate=3"
    ):
        train.run(cfg, tmp_path / "3")


def test_what_looks_at_whole_batches_is_refused():
    cfg = tiny.get_config()
    cfg.accumulate = 2
    validate(cfg)
    for name in WHOLE:
        cfg.phases.decouple.objective, cfg.phases.decouple.objective_kw = name, {}
        with pytest.raises(
            ValueError, match=rf"1 problem.*\n.*decouple.accumulate: expected 1, .*{name}"
        ):
            validate(cfg)
        cfg.phases.decouple.accumulate = 1
        validate(cfg)
        cfg.phases.decouple.accumulate = 0
    cfg.accumulate = 0
    with pytest.raises(ValueError, match="config.accumulate: expected at least 1, got 0"):
        validate(cfg)


def test_the_program_that_is_compiled_ahead_is_in_slices():
    cfg = tiny.get_config()
    mesh = sharding.make_mesh()
    whole = programs.step(cfg, mesh, phase="decouple")
    cfg.phases.decouple.accumulate = 4
    sliced = programs.step(cfg, mesh, phase="decouple")
    assert whole.batch == sliced.batch == 32
    loops = [str(p.fn.trace(*p.args).jaxpr).count(" = scan[") for p in (whole, sliced)]
    assert loops[1] == loops[0] + 1
    assert sliced.flops().total == pytest.approx(whole.flops().total, rel=0.01)
    with pytest.raises(ValueError, match="times accumulate=4, got 40"):
        programs.step(cfg, mesh, phase="decouple", rows=40)
