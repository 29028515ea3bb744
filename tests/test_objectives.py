import inspect

import jax
import numpy as np
import pytest

from tests.toy import Toy, make_batch
from unlearn_jax import objectives

KEY = jax.random.key(0)


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


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_gradient_agrees_with_finite_differences(name):
    model, batch = Toy(), make_batch(8, forget=4)
    params = model.init(KEY)
    objective = objectives.build(name)

    def total(scale):
        student = params | {"encoder": {"scale": scale}}
        terms = objective(model, student, params, batch, KEY)
        return (terms.retain - 0.5 * terms.forget).sum()

    scale, eps = params["encoder"]["scale"], 1e-2
    gradient = jax.grad(total)(scale)
    for i, unit in enumerate(np.eye(3, dtype=np.float32)):
        # central differences are exact for the toy's quadratic loss
        difference = (total(scale + eps * unit) - total(scale - eps * unit)) / (2 * eps)
        np.testing.assert_allclose(gradient[i], difference, rtol=1e-3)


def test_options_and_plug_ins():
    assert objectives.options("gradient_ascent") == {"forget_cap": 0.0}
    assert objectives.options("reconstruction") == {}
    plugged = objectives.find("unlearn_jax.objectives:gradient_ascent")
    assert plugged is objectives.gradient_ascent
    with pytest.raises(ValueError, match="Unknown objective 'ascent'.*gradient_ascent"):
        objectives.find("ascent")
    with pytest.raises(ValueError, match="Cannot import the objective 'nowhere:f'"):
        objectives.find("nowhere:f")


@pytest.mark.parametrize("function", objectives.OBJECTIVES.values())
def test_every_method_states_its_cost(function):
    assert "Cost:" in inspect.getdoc(function)
