import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from tests.helpers.toy import Toy, make_batch
from unlearn_jax import data
from unlearn_jax.methods import goals
from unlearn_jax.request import Request


def test_views_are_the_symmetries_of_the_square_without_the_identity():
    image = jnp.arange(2.0 * 4 * 4 * 3).reshape(2, 4, 4, 3)
    found = [np.asarray(view) for view in goals.views(image)]
    image = np.asarray(image)
    turned = [np.rot90(x, k, (1, 2)) for x in (image, image[:, ::-1]) for k in range(4)]
    expected = {x.tobytes() for x in turned}
    assert len(found) == 7
    assert {view.tobytes() for view in found} == expected - {image.tobytes()}


def test_views_of_a_rectangle_keep_its_shape():
    found = goals.views(jnp.arange(2.0 * 4 * 6 * 3).reshape(2, 4, 6, 3))
    assert [view.shape for view in found] == [(2, 4, 6, 3)] * 3


def test_fit_recovers_an_exact_power_law():
    rng = np.random.default_rng(0)
    x, of = rng.uniform(0.1, 2, (200, 2)), rng.uniform(0.1, 2, (50, 2))

    def law(x):
        return 0.3 * x[:, 0] ** 0.7 * x[:, 1] ** 0.2

    np.testing.assert_allclose(goals.fit(x, law(x), of), law(of), rtol=1e-6)


def test_goals_have_the_spread_and_the_mean_of_losses_that_the_predictors_explain_in_part():
    rng = np.random.default_rng(1)
    difficulty = rng.normal(0, 0.6, 20_000)
    log_loss = -2 + difficulty + rng.normal(0, 0.4, 20_000)
    predictor = np.exp(difficulty)[:, None]
    half = 10_000
    found = goals.fit(predictor[:half], np.exp(log_loss[:half]), predictor[half:])
    unseen = log_loss[half:]
    assert np.log(found).std() == pytest.approx(unseen.std(), rel=0.03)
    assert found.mean() == pytest.approx(np.exp(unseen).mean(), rel=0.05)
    # plain least squares would fall short of both
    assert np.corrcoef(np.log(found), unseen)[0, 1] == pytest.approx(0.6 / 0.52**0.5, abs=0.02)


def test_few_examples_are_fitted_to_the_geometric_mean_of_the_predictors():
    rng = np.random.default_rng(4)
    x, of = rng.uniform(0.1, 2, (30, 7)), rng.uniform(0.1, 2, (5, 7))
    loss = 0.5 * np.prod(x, 1) ** (0.6 / 7)
    np.testing.assert_allclose(goals.fit(x, loss, of), 0.5 * np.prod(of, 1) ** (0.6 / 7), rtol=1e-6)


def test_predictors_that_say_nothing_give_everyone_the_same_goal():
    rng = np.random.default_rng(2)
    found = goals.fit(np.ones((100, 1)), rng.uniform(0.1, 1, 100), np.ones((5, 1)))
    assert np.ptp(found) == 0


@pytest.mark.parametrize(
    ("n", "value", "message"), [(19, 0.5, "19 calibration rows are too few"), (40, 0.0, "positive")]
)
def test_fit_refuses(n, value, message):
    with pytest.raises(ValueError, match=message):
        goals.fit(np.full((n, 1), value), np.full(n, 0.5), np.full((3, 1), 0.5))


def test_quantiles_follow_the_ranks_and_the_holdout():
    holdout = np.linspace(1, 2, 101)
    found = goals.quantiles(np.array([0.3, 0.1, 0.2, 0.4]), holdout)
    np.testing.assert_allclose(found, [1.625, 1.125, 1.375, 1.875])


def simulated(known=(), share=1.0, seed=3, n=(400, 300)):
    """(own, of_views, what an unseen model would lose): `known` views are memorised by a share.

    Of each image: difficulty, and a view's own part of it; memory takes 1.5 off the log loss.
    """
    rng = np.random.default_rng(seed)
    own, of_views, truth = [], [], None
    for rows, memory in zip(n, (0.0, 1.5), strict=True):
        difficulty = rng.normal(-2, 0.5, rows)
        log = difficulty + rng.normal(0, 0.2, rows)
        views = difficulty[:, None] + rng.normal(0, 0.2, (rows, 7))
        views[:, list(known)] -= share * memory
        own.append(np.exp(log - memory))
        of_views.append(np.exp(views))
        truth = np.exp(log)
    return tuple(own), tuple(of_views), truth


def goals_of(own, of_views, chosen):
    return goals.fit(of_views[0][:, chosen], own[0], of_views[1][:, chosen])


def test_a_view_that_is_memorised_is_left_out_and_goals_are_right_without_it():
    own, of_views, truth = simulated(known=[0])
    chosen = goals.choose_views(own, of_views)
    assert chosen == [1, 2, 3, 4, 5, 6]
    # One of seven is memorised completely: a seventh of the memory, on average over the views.
    with_it, without = (
        np.log(goals_of(own, of_views, views)).mean() - np.log(truth).mean()
        for views in (list(range(7)), chosen)
    )
    assert with_it < -0.1 and abs(without) < 0.05


def test_a_flip_trained_model_is_served_whatever_the_test_of_a_view_says():
    own, of_views, _ = simulated(known=[0], share=0.02, n=(60, 40))
    assert goals.choose_views(own, of_views, flips=True) == [1, 2, 3, 4, 5, 6]


def test_views_are_seldom_left_out_that_nobody_memorised():
    kept = [len(goals.choose_views(*simulated(seed=s)[:2])) for s in range(40)]
    assert np.mean([k < 7 for k in kept]) <= 0.15  # the level is .05 for all seven


def test_without_memory_there_is_nothing_to_test():
    rng = np.random.default_rng(0)
    own = rng.uniform(0.9, 1.1, 200), rng.uniform(0.9, 1.1, 100)
    of_views = rng.uniform(0.9, 1.1, (200, 7)), rng.uniform(0.1, 0.2, (100, 7))
    assert goals.choose_views(own, of_views) == list(range(7))


def test_if_all_views_are_memorised_another_goal_is_named():
    own, of_views, _ = simulated(known=range(7), share=0.5)
    with pytest.raises(ValueError, match="all 7 kinds .* memorised the views too.*'features'"):
        goals.choose_views(own, of_views)


def test_conditional_goals_have_the_level_and_the_spread_of_unseen_losses():
    rng = np.random.default_rng(2)
    features, noise = rng.normal(size=(3000, 3)), rng.normal(0, 0.4, 3000)
    log = -2 + features @ [0.3, -0.2, 0.1] + noise
    known = log - 1.2 - 0.3 * noise  # memory: lower, and unlike for unlike images
    half = 1500
    found = goals.conditional(
        features[:half], np.exp(log[:half]), features[half:], np.exp(known[half:])
    )
    np.testing.assert_allclose(np.log(found).mean(), log[half:].mean(), atol=0.05)
    np.testing.assert_allclose(np.log(found).std(), log[half:].std(), rtol=0.05)
    assert np.corrcoef(np.log(found), log[half:])[0, 1] > 0.95
    with pytest.raises(ValueError, match="39 calibration rows are too few"):
        goals.conditional(features[:39], np.exp(log[:39]), features[:5], np.exp(log[:5]))


class Product(Toy):
    """Has something to count: a product that changes nothing."""

    def decode(self, params, latent, batch, key):
        return super().decode(params, latent @ jnp.eye(3), batch, key)


@pytest.mark.long
@pytest.mark.parametrize(
    "kind", ["views", "features", "quantiles", "mean", "reference", "views+reference"]
)
def test_make_gives_every_forget_row_a_goal_and_others_none(kind):
    cfg = quickstart.get_config()
    request = Request(cfg, model=Product())
    source, split, model = request.source, request.split, request.model
    target, reference = (model.init(jax.random.key(k)) for k in (0, 1))
    args = (request, target, reference, jax.random.key(0))
    columns, flops = goals.make(kind, *args)
    column = columns["goal"]
    assert set(columns) == {"goal"} and column.shape == (len(source),)
    per_image = 2 * 32 * 32 * 3 * 3  # of one pass; whole batches are counted
    assert flops > 0 and flops % (cfg.batch_size * per_image) == 0
    np.testing.assert_array_equal(column[split.remaining], 1)
    of_forget = column[split.forget]
    assert (of_forget > 0).all() and (np.ptp(of_forget) == 0) == (kind == "mean")
    batch = next(iter(data.make_eval(source, split.forget, batch_size=250,
                                     task=cfg.task.to_dict(), seed=0)))  # fmt: skip
    losses = np.asarray(model.loss(target, batch, jax.random.key(0)))
    # The toy has memorised nothing: what it should have is near what it has.
    if kind != "mean":
        assert np.corrcoef(np.log(of_forget), np.log(losses))[0, 1] > 0.5
    np.testing.assert_array_equal(goals.make(kind, *args)[0]["goal"], column)


class Drawn(Toy):
    """Its loss is multiplied by what it draws for each image."""

    def draw(self, batch, key):
        return {"z": jax.random.normal(key, (len(batch["image"]),))}

    def loss(self, params, batch, key):
        return super().loss(params, batch, key) * jnp.exp(self.draw(batch, key)["z"])


def test_losses_of_a_model_that_draws_are_those_of_a_panel_of_draws(monkeypatch):
    monkeypatch.setattr(goals, "DRAWS", 3)
    request, key = Request(quickstart.get_config(), model=Drawn()), jax.random.key(5)
    target, batch = request.model.init(jax.random.key(0)), make_batch(8)
    found = goals.jit_losses("mean", request.model, request.mesh, key)(target, None, batch)
    z = [[jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, k), i), (1,))[0]
          for k in range(3)] for i in range(8)]  # fmt: skip
    expected = Toy().loss(target, batch, key) * np.exp(np.mean(z, 1))
    np.testing.assert_allclose(found["own"][:, 0], expected, rtol=1e-4)


def test_unviewed_undoes_views_of_squares_and_rectangles():
    for shape in ((2, 4, 4, 3), (2, 4, 6, 3)):
        image = jnp.arange(float(np.prod(shape))).reshape(shape)
        for back in goals.unviewed(goals.views(image)):
            np.testing.assert_array_equal(back, image)


def test_the_middle_leaves_out_a_view_that_brings_a_payload():
    rng = np.random.default_rng(0)
    outputs = rng.normal(0, 0.1, (5, 7, 4, 4, 3))
    losses = rng.uniform(0.4, 0.6, (5, 7))
    outputs[:, 6], losses[:, 6] = 100.0, 0.01  # the payload, and the truth has it
    found = np.asarray(goals.middle(jnp.asarray(outputs), jnp.asarray(losses)))
    assert np.abs(found).max() < 1
    order = np.argsort(losses, 1)[:, 2:5]
    expected = np.stack([o[k].mean(0) for o, k in zip(outputs, order, strict=True)])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_view_outputs_are_what_the_original_makes_of_the_image_turned_back():
    cfg = quickstart.get_config()
    request = Request(cfg, model=Product())
    source, split, model = request.source, request.split, request.model
    target = model.init(jax.random.key(0))
    args = (request, target, None, jax.random.key(0))
    columns, _ = goals.make("views", *args, outputs=True)
    found = columns["view_output"]
    assert found.dtype == np.float16 and found.shape == (len(source), 32, 32, 3)
    assert not found[split.remaining].any()
    batch = next(iter(data.make_eval(source, split.forget, batch_size=250,
                                     task=cfg.task.to_dict(), seed=0)))  # fmt: skip
    # The toy treats every pixel alike and the hole is symmetric: its output turns with the image.
    output = model.decode(target, model.encode(target, batch, None), batch, None)
    np.testing.assert_allclose(found[split.forget], output, atol=2e-3)
    plain, _ = goals.make("views", *args)
    np.testing.assert_allclose(plain["goal"], columns["goal"], rtol=1e-5)


def test_a_reference_must_be_given():
    cfg = quickstart.get_config()
    args = (Request(cfg, model=Toy()), {}, None, jax.random.key(0))
    with pytest.raises(ValueError, match="needs a model trained for a short while"):
        goals.make("reference", *args)


def test_goals_are_fitted_to_the_calibration_part_only(monkeypatch):
    """The audit part must stay unseen: looked at, it would tell what the goals make of it."""
    request = Request(quickstart.get_config(), model=Toy())
    seen, make_eval = [], data.make_eval

    def watched(source, rows, **options):
        seen.append(np.asarray(rows))
        return make_eval(source, rows, **options)

    monkeypatch.setattr(data, "make_eval", watched)
    target = request.model.init(jax.random.key(0))
    goals.make("views", request, target, None, jax.random.key(0))
    rows, split = np.concatenate(seen), request.split
    np.testing.assert_array_equal(np.unique(rows), np.union1d(split.forget, split.calibration))
    assert not np.isin(rows, split.audit).any() and len(split.audit)
