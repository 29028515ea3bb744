import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.toy import Toy, make_batch
from unlearn_jax import methods as objectives
from unlearn_jax.methods.calibrated import DISTANCES, calibrated

KEY = jax.random.key(0)
MODEL = Toy()
PARAMS = MODEL.init(KEY)


def batch_with(ratio):
    """A batch of forget rows whose losses are `ratio` times their goals."""
    batch = make_batch(len(ratio), forget=len(ratio))
    loss = MODEL.loss(PARAMS, batch, KEY)
    return batch | {"goal": loss / jnp.asarray(ratio, jnp.float32)}, np.asarray(loss)


def test_distances_by_hand():
    e = np.e
    batch, loss = batch_with([1.0, e**0.25, e**-0.25, e**2, e**-2])
    by_hand = {
        "absolute": [0, 0.25, 0.25, 2, 2],
        "squared": [0, 0.0625, 0.0625, 4, 4],
        "huber": [0, 0.0625, 0.0625, 1.75, 1.75],  # 2 * 0.5 * 2 - 0.25
        "hinge": [0, 0, 0.25, 0, 2],
    }
    assert by_hand.keys() == DISTANCES.keys()
    for distance, expected in by_hand.items():
        terms = calibrated(MODEL, PARAMS, {}, batch, KEY, distance=distance)
        np.testing.assert_allclose(terms.forget, -np.array(expected), atol=1e-5)
        np.testing.assert_allclose(terms.retain, loss)


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradient_agrees_with_finite_differences(distance):
    batch, _ = batch_with([1.2, 0.5, 3.0, 0.8, 1.5, 0.3])

    def total(scale):
        params = PARAMS | {"encoder": {"scale": scale}}
        return calibrated(MODEL, params, {}, batch, KEY, distance=distance).forget.sum()

    scale, eps = PARAMS["encoder"]["scale"], 1e-2
    gradient = jax.grad(total)(scale)
    for i, unit in enumerate(np.eye(3, dtype=np.float32)):
        difference = (total(scale + eps * unit) - total(scale - eps * unit)) / (2 * eps)
        np.testing.assert_allclose(gradient[i], difference, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize(("ratio", "sign"), [(0.2, 1.0), (5.0, -1.0)])
def test_ascending_the_term_moves_the_loss_towards_the_goal_from_either_side(ratio, sign):
    batch, loss = batch_with([ratio] * 6)
    params = PARAMS

    def forget(encoder):
        student = params | {"encoder": encoder}
        return calibrated(MODEL, student, {}, batch, KEY).forget.mean()

    gradient = jax.grad(forget)(params["encoder"])
    moved = jax.tree.map(lambda p, g: p + 1e-3 * g, params["encoder"], gradient)
    after = MODEL.loss(params | {"encoder": moved}, batch, KEY).mean()
    assert sign * (float(after) - loss.mean()) > 0


def test_rows_at_their_goal_do_not_push():
    batch, _ = batch_with([1.0] * 4)

    def forget(scale):
        params = PARAMS | {"encoder": {"scale": scale}}
        return calibrated(MODEL, params, {}, batch, KEY).forget.sum()

    np.testing.assert_allclose(jax.grad(forget)(PARAMS["encoder"]["scale"]), 0, atol=1e-5)


def test_overshoot_moves_the_goal():
    batch, _ = batch_with([np.exp(0.1)] * 3)
    terms = calibrated(MODEL, PARAMS, {}, batch, KEY, distance="absolute", overshoot=0.1)
    np.testing.assert_allclose(terms.forget, 0, atol=1e-5)


def test_direction_by_hand():
    batch, _ = batch_with([1.0] * 4)
    image, mask = np.asarray(batch["image"]), np.asarray(batch["mask"])
    aim = np.random.default_rng(0).uniform(-1, 1, image.shape).astype(np.float16)
    output = image * (1 - mask) * np.asarray(PARAMS["encoder"]["scale"]) + 0.25
    hole = mask[..., 0] > 0
    expected = [
        -0.7 * np.square(o - a)[h].mean() for o, a, h in zip(output, aim, hole, strict=True)
    ]
    batch |= {"view_output": jnp.asarray(aim)}
    terms = calibrated(MODEL, PARAMS, {}, batch, KEY, direction=0.7)
    np.testing.assert_allclose(terms.forget, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(terms.retain, MODEL.loss(PARAMS, batch, KEY), rtol=1e-6)


class Drawing(Toy):
    """Its loss is multiplied by what the key draws."""

    def loss(self, params, batch, key):
        return super().loss(params, batch, key) * jnp.exp(jax.random.normal(key, ()))


def test_several_draws_are_averaged_in_the_logarithm():
    batch, loss = batch_with([2.0] * 4)
    terms = calibrated(Drawing(), PARAMS, {}, batch, KEY, distance="absolute", draws=5)
    drawn = [float(jax.random.normal(jax.random.fold_in(KEY, k), ())) for k in range(5)]
    np.testing.assert_allclose(terms.forget, -abs(np.log(2) + np.mean(drawn)), rtol=1e-4)
    np.testing.assert_allclose(terms.retain, loss * np.exp(np.mean(drawn)), rtol=1e-4)
    for wrong in ({"draws": 0}, {"draws": 2, "direction": 0.1}):
        with pytest.raises(ValueError, match="objective_kw.draws: expected at least 1"):
            calibrated(MODEL, PARAMS, {}, batch, KEY, **wrong)


def test_a_model_without_error_has_no_direction():
    class Bare(Toy):
        error = None

    batch, _ = batch_with([1.0] * 2)
    with pytest.raises(ValueError, match="Bare has no error"):
        calibrated(Bare(), PARAMS, {}, batch, KEY, direction=1.0)


def test_a_loss_of_zero_and_missing_goals():
    batch, _ = batch_with([1.0] * 2)
    batch |= {"image": jnp.full_like(batch["image"], 0.25) * batch["mask"]}
    assert np.isfinite(calibrated(MODEL, PARAMS, {}, batch, KEY).forget).all()
    with pytest.raises(ValueError, match="expected distance in"):
        calibrated(MODEL, PARAMS, {}, batch, KEY, distance="manhattan")
    del batch["goal"]
    with pytest.raises(ValueError, match="the batch has no goals"):
        calibrated(MODEL, PARAMS, {}, batch, KEY)
    assert objectives.find("calibrated") is calibrated
