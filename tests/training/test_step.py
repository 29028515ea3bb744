import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers.toy import Toy, make_batch
from unlearn_jax import methods as objectives
from unlearn_jax import sharding
from unlearn_jax.methods import combine
from unlearn_jax.models.params import overlay, select
from unlearn_jax.training.step import (
    UnlearnState,
    jit_step,
    masked_mean,
    unlearn_grad,
    unlearn_loss,
    unlearn_step,
)

KEY = jax.random.key(0)


def compiled_step(mesh, params, target, tx, model=None, name="gradient_ascent", **weights):
    state = UnlearnState(jnp.int32(0), params, tx.init(params), jax.random.key(1))
    shardings = sharding.params_sharding(state, mesh)
    step = jit_step(
        model or Toy(),
        objectives.build(name),
        tx,
        **({"retain_weight": 1.0, "forget_weight": 1.0} | weights),
        state_sharding=shardings,
        target_sharding=sharding.params_sharding(target, mesh),
        batch_sharding=sharding.batch_sharding(mesh),
        replicated=sharding.replicated(mesh),
    )
    copies = jax.tree.map(jnp.copy, state)
    return step, jax.device_put(copies, shardings)


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_forget_only_batch_has_minus_weight_times_the_plain_gradient(weight):
    model, batch = Toy(), make_batch(8, forget=8)
    params = model.init(KEY)
    settings = dict(model=model, retain_weight=1.0, forget_weight=weight)
    ascent = jax.grad(unlearn_loss, has_aux=True)(
        params, {}, batch, KEY, objective=objectives.build("gradient_ascent"), **settings
    )[0]
    plain = jax.grad(lambda p: model.loss(p, batch, KEY).mean())(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -weight * b, rtol=1e-5), ascent, plain)


def test_mixed_loss_is_retain_mean_minus_forget_mean():
    model, batch = Toy(), make_batch(8, forget=3)
    params = model.init(KEY)
    loss, metrics = unlearn_loss(
        params, {}, batch, KEY, model=model, objective=objectives.build("gradient_ascent"),
        retain_weight=2.0, forget_weight=0.5,
    )  # fmt: skip
    rows = np.asarray(model.loss(params, batch, KEY))
    np.testing.assert_allclose(loss, 2 * rows[3:].mean() - 0.5 * rows[:3].mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["forget"], rows[:3].mean(), rtol=1e-6)


def test_combine_gets_the_two_gradients_of_the_one_sign_flip():
    model, batch = Toy(), make_batch(8, forget=3)
    params = model.init(KEY)
    settings = dict(model=model, objective=objectives.build("gradient_ascent"))
    seen = {}

    def spy(retain_grad, forget_grad, metrics):
        seen.update(retain=retain_grad, forget=forget_grad, metrics=metrics)
        return forget_grad

    found, metrics = unlearn_grad(
        params, {}, batch, KEY, combine=spy, retain_weight=2.0, forget_weight=0.5, **settings
    )
    total, same = unlearn_grad(
        params, {}, batch, KEY, retain_weight=2.0, forget_weight=0.5, **settings
    )

    def mean_of(rows):
        return jax.grad(lambda p: model.loss(p, batch, KEY)[rows].mean())(params)

    def close(a, b):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), a, b)

    close(seen["retain"], jax.tree.map(lambda g: 2 * g, mean_of(slice(3, 8))))
    close(seen["forget"], jax.tree.map(lambda g: -g / 2, mean_of(slice(0, 3))))
    close(found, seen["forget"])
    close(total, jax.tree.map(jnp.add, seen["retain"], seen["forget"]))
    assert metrics == seen["metrics"] == same
    assert set(metrics) == {"loss", "retain", "forget"}


def test_compiled_step_descends_the_combined_gradient():
    model, mesh, batch = Toy(), sharding.make_mesh(), make_batch(8, forget=3)
    params = model.init(KEY)
    combined = combine.build("orthogonal")
    step, state = compiled_step(mesh, params, {}, optax.sgd(0.1), combine=combined)
    expected, _ = unlearn_grad(
        params, {}, batch, KEY, combine=combined, model=model,
        objective=objectives.build("gradient_ascent"), retain_weight=1.0, forget_weight=1.0,
    )  # fmt: skip
    state, _ = step(state, {}, sharding.global_batch(jax.tree.map(np.asarray, batch), mesh))
    jax.tree.map(
        lambda new, old, g: np.testing.assert_allclose(new, old - 0.1 * g, rtol=1e-5),
        state.params,
        params,
        expected,
    )


def test_padded_rows_change_nothing_even_if_they_are_not_finite():
    model = Toy()
    params = model.init(KEY)
    full, padded = make_batch(6, forget=2), make_batch(8, forget=2, invalid=2)
    padded["image"] = jnp.concatenate([full["image"], jnp.full((2, 4, 4, 3), jnp.inf)])

    def gradient(batch):
        return jax.grad(unlearn_loss, has_aux=True)(
            params, {}, batch, KEY, model=model, objective=objectives.build("gradient_ascent"),
            retain_weight=1.0, forget_weight=1.0,
        )  # fmt: skip

    finite = padded | {"image": padded["image"].at[6:].set(7.0)}
    jax.tree.map(np.testing.assert_array_equal, gradient(full)[1], gradient(padded)[1])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), gradient(full), gradient(finite)
    )


def test_masked_mean_of_nothing_is_zero():
    assert masked_mean(jnp.array([jnp.nan, 2.0]), jnp.zeros(2, bool)) == 0


def test_frozen_leaves_and_the_target_do_not_move_under_weight_decay():
    model, mesh = Toy(), sharding.make_mesh()
    target = jax.device_put(model.init(KEY), sharding.replicated(mesh))
    before = jax.tree.map(np.array, target)
    params = jax.tree.map(jnp.copy, select(target, model.trainable))
    step, state = compiled_step(mesh, params, target, optax.adamw(0.1, weight_decay=0.5))
    for seed in range(5):
        batch = sharding.global_batch(jax.tree.map(np.asarray, make_batch(8, 4, seed=seed)), mesh)
        state, _ = step(state, target, batch)
    student = overlay(target, state.params)
    assert set(student) == {"encoder", "decoder"}
    np.testing.assert_array_equal(student["decoder"]["bias"], before["decoder"]["bias"])
    assert (np.asarray(student["encoder"]["scale"]) != before["encoder"]["scale"]).all()
    jax.tree.map(np.testing.assert_array_equal, target, before)  # and was not donated
    assert int(state.step) == 5


def test_traced_once():
    traces = []

    class Counting(Toy):
        def loss(self, params, batch, key):
            traces.append(1)
            return super().loss(params, batch, key)

    model, mesh = Counting(), sharding.make_mesh()
    params = model.init(KEY)
    step, state = compiled_step(mesh, params, {}, optax.adam(1e-2), model=model)
    for seed in range(4):
        batch = sharding.global_batch(jax.tree.map(np.asarray, make_batch(8, 4, seed=seed)), mesh)
        state, _ = step(state, {}, batch)
    assert len(traces) == 1


def test_each_step_draws_its_own_key():
    class Noisy(Toy):
        def loss(self, params, batch, key):
            return super().loss(params, batch, key) + jax.random.normal(key, (8,))

    model, mesh = Noisy(), sharding.make_mesh()
    step, state = compiled_step(mesh, model.init(KEY), {}, optax.sgd(0.0), model=model)
    batch = sharding.global_batch(jax.tree.map(np.asarray, make_batch(8)), mesh)
    losses = []
    for _ in range(3):
        state, metrics = step(state, {}, batch)
        losses.append(float(metrics["loss"]))
    assert len(set(losses)) == 3
    expected = jax.random.fold_in(jax.random.key(1), 2)
    noise = jax.random.normal(expected, (8,)).mean()
    plain = Toy().loss(model.init(KEY), batch, KEY).mean()
    np.testing.assert_allclose(losses[2], plain + noise, rtol=1e-5)


@pytest.mark.parametrize(("norm", "clipped"), [(0.9, 0.0), (1.1, 1.0)])
def test_a_gradient_longer_than_the_clip_norm_is_counted(norm, clipped):
    params = {"w": jnp.zeros(2)}
    tx = optax.sgd(1.0)
    state = UnlearnState(jnp.int32(0), params, tx.init(params), jax.random.key(0))

    def grad_fn(*args):
        return {"w": jnp.array([0.6, 0.8]) * norm}, {}

    _, metrics = unlearn_step(state, {}, make_batch(), grad_fn=grad_fn, tx=tx, clip_norm_l2=1.0)
    assert float(metrics["clipped"]) == clipped
    _, metrics = unlearn_step(state, {}, make_batch(), grad_fn=grad_fn, tx=tx)
    assert "clipped" not in metrics


def test_select_names_what_there_is():
    params = Toy().init(KEY)
    assert select(params, ("decoder/bias",)) == {"decoder": params["decoder"]}
    with pytest.raises(ValueError, match=r"(?s)encodr.*encoder/scale"):
        select(params, ("encodr/.*",))
