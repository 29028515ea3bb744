import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unlearn_jax.methods.optimizer import make_optimizer, with_mask


def run(tx, gradients, start=0.0):
    params = {"w": jnp.full((2,), start)}
    state, path = tx.init(params), []
    for gradient in gradients:
        updates, state = tx.update({"w": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        path.append(np.asarray(params["w"]))
    return path


def test_clipped_sgd_moves_by_at_most_rate_times_norm():
    tx = make_optimizer(name="sgd", learning_rate=0.1, steps=2, clip_norm_l2=1.0)
    first, second = run(tx, [[30.0, 40.0], [0.3, 0.4]])
    np.testing.assert_allclose(first, [-0.06, -0.08], rtol=1e-6)
    np.testing.assert_allclose(second - first, [-0.03, -0.04], rtol=1e-6)


def test_adam_decays_weights_apart_from_the_gradient():
    tx = make_optimizer(name="adam", learning_rate=0.1, steps=1, weight_decay=0.5)
    np.testing.assert_allclose(run(tx, [[0.0, 0.0]], start=2.0)[0], [1.9, 1.9], rtol=1e-6)


def test_sgd_decays_weights_as_l2():
    tx = make_optimizer(name="sgd", learning_rate=0.1, steps=1, weight_decay=0.5)
    np.testing.assert_allclose(run(tx, [[0.0, 0.0]], start=2.0)[0], [1.9, 1.9], rtol=1e-6)


def test_warmup_then_cosine_to_zero():
    tx = make_optimizer(name="sgd", learning_rate=1.0, steps=6, schedule="cosine", warmup_steps=2)
    path = np.array(run(tx, [[1.0, 0.0]] * 7))[:, 0]
    sizes = -np.diff(path, prepend=0)
    cosine = [0.5 * (1 + np.cos(np.pi * k / 4)) for k in range(5)]
    np.testing.assert_allclose(sizes, [0.0, 0.5, *cosine], atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_learning_rate_is_the_peak(name):
    tx = make_optimizer(name=name, learning_rate=0.25, steps=3)
    np.testing.assert_allclose(run(tx, [[1.0, 1.0]])[0], [-0.25, -0.25], rtol=1e-4)


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_masked_weights_stay_under_weight_decay_and_the_others_do_not_notice(name, clip):
    settings = dict(name=name, learning_rate=0.1, steps=5, weight_decay=0.5, clip_norm_l2=clip)
    masked, plain = make_optimizer(**settings, masked=True), make_optimizer(**settings)
    params = {"w": jnp.array([2.0, -1.0, 3.0])}
    state, free = masked.init(params), (params, plain.init(params))
    assert np.array(jax.tree.leaves(state)[-1]).all()  # at first, everything may move
    state = with_mask(state, {"w": jnp.array([True, False, True])})
    start = params
    for seed in range(5):
        gradient = {"w": jax.random.normal(jax.random.key(seed), (3,))}
        updates, state = masked.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        updates, plain_state = plain.update(gradient, free[1], free[0])
        free = optax.apply_updates(free[0], updates), plain_state
    assert params["w"][1] == start["w"][1] != free[0]["w"][1]
    np.testing.assert_array_equal(params["w"][::2], free[0]["w"][::2])


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_named_leaves_do_not_decay(name):
    tx = make_optimizer(
        name=name, learning_rate=0.1, steps=1, weight_decay=0.5, no_decay=(".*/bias", "fixed")
    )
    params = {"a": {"bias": jnp.ones(2), "kernel": jnp.ones(2)}, "fixed": jnp.ones(2)}
    params["fixed_no_more"] = jnp.ones(2)  # a pattern is of the whole path
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    for pulled in (updates["a"]["kernel"], updates["fixed_no_more"]):
        np.testing.assert_allclose(pulled, -0.05, rtol=1e-6)
    for untouched in (updates["a"]["bias"], updates["fixed"]):
        np.testing.assert_array_equal(untouched, 0)


def test_adam_is_given_its_betas():
    gradients = [[1.0, -2.0], [0.5, 3.0]]
    tx = make_optimizer(name="adam", learning_rate=0.1, steps=2, b1=0.5, b2=0.8)
    m = v = np.zeros(2)
    place, want = np.zeros(2), []
    for t, g in enumerate(np.array(gradients), start=1):
        m, v = 0.5 * m + 0.5 * g, 0.8 * v + 0.2 * g**2
        place = place - 0.1 * (m / (1 - 0.5**t)) / (np.sqrt(v / (1 - 0.8**t)) + 1e-8)
        want.append(place)
    np.testing.assert_allclose(run(tx, gradients), want, rtol=1e-5)
