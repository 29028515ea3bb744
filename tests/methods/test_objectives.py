import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from tests.helpers.toy import FIELDS, Toy, make_batch
from unlearn_jax import methods as objectives
from unlearn_jax import models
from unlearn_jax.training.step import unlearn_loss

KEY = jax.random.key(0)
RETAIN_ONLY = ("reconstruction", "tokenizer", "distil", "dampening")


def test_reconstruction_says_nothing_about_forget_rows():
    model, batch = Toy(), make_batch(8, forget=4)
    params = model.init(KEY)
    terms = objectives.reconstruction(model, params, {}, batch, KEY)
    np.testing.assert_array_equal(terms.retain, model.loss(params, batch, KEY))
    np.testing.assert_array_equal(terms.forget, np.zeros(8))


def test_forget_cap_stops_the_gradient_of_rows_that_reached_it():
    model, batch = Toy(), make_batch(8, forget=8)
    params = model.init(KEY)
    rows = np.asarray(model.loss(params, batch, KEY))
    cap = float(np.median(rows))

    def of_row(params, i):
        terms = objectives.gradient_ascent(model, params, {}, batch, KEY, forget_cap=cap)
        return terms.forget[i]

    for i, loss in enumerate(rows):
        gradient = jax.grad(of_row)(params, i)["encoder"]["scale"]
        value = of_row(params, i)
        if loss > cap:
            np.testing.assert_allclose(value, cap, rtol=1e-6)
            np.testing.assert_array_equal(gradient, np.zeros(3))
        else:
            np.testing.assert_allclose(value, loss, rtol=1e-6)
            assert np.abs(gradient).min() > 0


class Tokenized(Toy):
    """A toy whose tokenizer is all of it, so that every objective has something to train."""

    def tokenizer_loss(self, params, batch, key):
        return self.loss(params, batch, key)


def batch_of(n, **flags):
    """A batch with everything that any objective wants."""
    return {**make_batch(n, **flags), "goal": jnp.full(n, 0.5)}


@pytest.mark.long
@pytest.mark.parametrize("objective", objectives.OBJECTIVES)
@pytest.mark.parametrize("name", FIELDS)
def test_every_model_has_every_objective(name, objective):
    model = models.build(name, image_size=16, **FIELDS[name])
    params, function = jax.eval_shape(model.init, KEY), objectives.build(objective)
    batch = {**make_batch(4, forget=2, size=16), "goal": jnp.ones(4)}

    def terms():
        return jax.eval_shape(partial(function, model), params, params, batch, KEY)

    if objective == "tokenizer" and not model.tokenizer_loss:
        with pytest.raises(ValueError, match="tokenizer"):
            terms()
    else:
        assert [x.shape for x in jax.tree.leaves(terms())] == [(4,), (4,)]


def loss_of(name, params, target, batch, **weights):
    weights = {"retain_weight": 1.0, "forget_weight": 0.5} | weights
    objective = objectives.build(name)
    return unlearn_loss(
        params, target, batch, KEY, model=Tokenized(), objective=objective, **weights
    )  # fmt: skip


def student_and_original():
    return Toy().init(KEY), Toy().init(jax.random.key(1))


@pytest.mark.long
@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_gradient_agrees_with_finite_differences(name):
    params, target = student_and_original()
    batch = batch_of(8, forget=4, invalid=1)
    flat, unravel = ravel_pytree(params)

    def total(flat):
        return loss_of(name, unravel(flat), target, batch)[0]

    gradient, eps = jax.grad(total)(flat), 1e-2
    for i, unit in enumerate(np.eye(len(flat), dtype=np.float32)):
        difference = (total(flat + eps * unit) - total(flat - eps * unit)) / (2 * eps)
        np.testing.assert_allclose(gradient[i], difference, rtol=5e-3, atol=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_a_small_step_lowers_retain_terms_and_raises_forget_terms(name):
    params, target = student_and_original()
    batch = batch_of(8, forget=4)
    for part, weights in (
        ("retain", {"retain_weight": 1.0, "forget_weight": 0.0}),
        ("forget", {"retain_weight": 0.0, "forget_weight": 1.0}),
    ):
        gradient, before = jax.grad(loss_of, 1, has_aux=True)(
            name, params, target, batch, **weights
        )
        moved = jax.tree.map(lambda p, g: p - 1e-2 * g, params, gradient)
        _, after = loss_of(name, moved, target, batch, **weights)
        if part == "forget" and name in RETAIN_ONLY:
            assert after[part] == before[part] == 0
        else:
            assert (after[part] < before[part]) == (part == "retain")


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_rows_that_are_not_valid_change_nothing(name):
    params, target = student_and_original()
    valid = jnp.array([True, False, True, True, True, False, True, True])
    batch = {**batch_of(8, forget=4), "valid": valid}
    other = batch_of(8, forget=4, seed=1)["image"]
    image = jnp.where(valid[:, None, None, None], batch["image"], other)
    changed = {**batch, "image": image, "is_forget": batch["is_forget"] ^ ~valid}
    gradient = jax.grad(loss_of, 1, has_aux=True)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        gradient(name, params, target, batch),
        gradient(name, params, target, changed),
    )


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_batch_coupled_are_exactly_those_whose_rows_depend_on_other_rows(name):
    params, target = student_and_original()
    batch, other = batch_of(8, forget=4), batch_of(8, forget=2, seed=1)
    other["image"] = 0.3 * other["image"]  # other means and standard deviations
    kept = np.arange(8) % 4 == 0  # one forget row, one retain row
    mixed = {
        key: jnp.where(kept.reshape(-1, *[1] * (x.ndim - 1)), x, other[key])
        for key, x in batch.items()
    }
    terms = partial(objectives.build(name), Tokenized(), params, target)
    before, after = terms(batch, KEY), terms(mixed, KEY)
    change = max(
        float(abs(after.forget[0] - before.forget[0])),
        float(abs(after.retain[4] - before.retain[4])),
    )
    assert (change > 1e-4) == (name in objectives.BATCH_COUPLED)
    assert change > 1e-4 or change < 1e-7


def test_options_and_plug_ins():
    assert objectives.options("gradient_ascent") == {"forget_cap": 0.0}
    assert objectives.options("reconstruction") == {}
    assert set(objectives.options("l2_encoder")) == {"noise_type", "upstream_weights"}
    plugged = objectives.find("unlearn_jax.methods:gradient_ascent")
    assert plugged is objectives.gradient_ascent
    with pytest.raises(ValueError, match="unknown 'ascent'.*gradient_ascent"):
        objectives.find("ascent")
    with pytest.raises(ValueError, match="cannot import the objective 'nowhere:f'"):
        objectives.find("nowhere:f")


@pytest.mark.parametrize("function", objectives.OBJECTIVES.values())
def test_every_method_states_its_cost(function):
    assert "Cost:" in inspect.getdoc(function)
