"""The objectives that compare answers: `npo`, `distil`, `scrub`, `erase_diff`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.toy import FIELDS, Toy, make_batch
from unlearn_jax import methods, models

KEY = jax.random.key(0)
MODEL = Toy()
PARAMS, TARGET = MODEL.init(KEY), MODEL.init(jax.random.key(1))
BATCH = make_batch(6, forget=3)


def by_hand(params):
    """What the toy answers, in numpy."""
    image, mask = np.asarray(BATCH["image"], np.float64), np.asarray(BATCH["mask"])
    scale, bias = (np.asarray(params[k][n]) for k, n in (("encoder", "scale"), ("decoder", "bias")))
    return image * (1 - mask) * scale + bias


def distance(a, b):
    return np.square(a - b).mean((1, 2, 3))


MINE, ORIGINAL = by_hand(PARAMS), by_hand(TARGET)
LOSS, BEFORE = (distance(x, np.asarray(BATCH["image"])) for x in (MINE, ORIGINAL))


def terms(name, **options):
    return methods.find(name)(MODEL, PARAMS, TARGET, BATCH, KEY, **options)


@pytest.mark.parametrize("beta", [0.5, 1.0, 4.0])
def test_npo_by_hand(beta):
    found = terms("npo", beta=beta)
    np.testing.assert_allclose(found.retain, LOSS, rtol=1e-5)
    # log sigmoid(beta log(a / b)) = -log(1 + (b / a)**beta)
    np.testing.assert_allclose(
        found.forget, -2 / beta * np.log1p((BEFORE / LOSS) ** beta), rtol=1e-4
    )


def test_npo_stops_pushing_rows_that_have_gone_far():
    def push(far):
        params = {"encoder": PARAMS["encoder"], "decoder": {"bias": jnp.full(3, far)}}
        of = jax.grad(
            lambda bias: methods.npo(
                MODEL, params | {"decoder": {"bias": bias}}, TARGET, BATCH, KEY, beta=2.0
            ).forget.sum()
        )
        return float(of(params["decoder"]["bias"]).sum())

    pushes = [push(far) for far in (1.0, 4.0, 16.0)]
    assert pushes[0] > 10 * pushes[1] > 100 * pushes[2] > 0


@pytest.mark.parametrize("hard", [0.0, 0.3, 1.0])
def test_distil_by_hand(hard):
    found = terms("distil", hard=hard)
    expected = (1 - hard) * distance(MINE, ORIGINAL) + hard * LOSS
    np.testing.assert_allclose(found.retain, expected, rtol=1e-5)
    np.testing.assert_array_equal(found.forget, 0)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_scrub_by_hand(alpha):
    found, away = terms("scrub", alpha=alpha), distance(MINE, ORIGINAL)
    np.testing.assert_allclose(found.retain, alpha * away + (1 - alpha) * LOSS, rtol=1e-5)
    np.testing.assert_allclose(found.forget, away, rtol=1e-5)
    most = float(np.median(away))
    np.testing.assert_allclose(terms("scrub", most=most).forget, np.minimum(away, most), rtol=1e-5)


def test_erase_diff_pulls_answers_to_uniform_noise():
    found = [methods.erase_diff(MODEL, PARAMS, {}, BATCH, jax.random.key(k)) for k in range(400)]
    mean = np.mean([np.asarray(of.forget) for of in found], 0)
    # E (m - u)^2 = (m - 1/2)^2 + 1/12
    expected = -(np.square(MINE - 0.5) + 1 / 12).mean((1, 2, 3))
    np.testing.assert_allclose(mean, expected, rtol=0.02)
    np.testing.assert_allclose(found[0].retain, LOSS, rtol=1e-5)


@pytest.mark.long
def test_palettes_answer_is_the_noise_that_it_predicts():
    model = models.build("palette", image_size=16, **FIELDS["palette"])
    params, batch = model.init(KEY), make_batch(2, forget=1, size=16)
    found = methods.erase_diff(model, params, {}, batch, KEY).forget
    noise = jax.random.uniform(jax.random.fold_in(KEY, 0xE7A5), (2, 16, 16, 3))
    predicted = model.predict(params, batch, KEY)
    np.testing.assert_allclose(found, -distance(predicted, np.asarray(noise)), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("npo", {"beta": 0.0}, "objective_kw.beta: expected above 0"),
        ("distil", {"hard": 1.5}, "objective_kw.hard: expected 0 to 1"),
        ("scrub", {"alpha": 1.5}, "objective_kw.alpha: expected 0 to 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        terms(name, **options)


@pytest.mark.parametrize("name", ["npo", "distil", "scrub"])
def test_without_an_original_there_is_nothing_to_compare_with(name):
    with pytest.raises(ValueError, match="scratch=False"):
        methods.find(name)(MODEL, PARAMS, {}, BATCH, KEY)
