import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from tests.helpers.toy import Toy
from unlearn_jax import data
from unlearn_jax.config import phase
from unlearn_jax.methods import fisher
from unlearn_jax.methods.dampening import damped, prepare
from unlearn_jax.methods.preparation import Context
from unlearn_jax.request import Request

KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def request_():
    return Request(quickstart.get_config(), model=Toy())


def test_squared_gradients_are_those_of_single_rows(request_):
    """Against the derivative by hand: loss = mean (x (1 - m) s + b - x)^2."""
    model, rows = request_.model, request_.split.forget[:10]
    params = model.init(KEY)
    found, flops = fisher.make(request_, rows, {"encoder": params["encoder"]}, params, KEY)
    assert list(found) == ["encoder"] and flops >= 0
    loader = data.make_eval(request_.source, rows, batch_size=10,
                            task=request_.cfg.task.to_dict(), seed=0)  # fmt: skip
    (batch,) = loader
    image, shown = batch["image"].astype(np.float64), 1 - batch["mask"]
    x, scale = image * shown, np.asarray(params["encoder"]["scale"])
    of_rows = (2 * (x * scale + 0.25 - image) * x).sum((1, 2)) / image[0].size
    np.testing.assert_allclose(found["encoder"]["scale"], np.square(of_rows).mean(0), rtol=1e-4)


def test_dampened_by_hand():
    params = {"a": jnp.array([1.0, -2.0, 3.0, 4.0])}
    forget, whole = {"a": jnp.array([1.0, 20.0, 40.0, 0.0])}, {"a": jnp.array([1.0, 2.0, 1.0, 0.0])}
    found = damped(params, forget, whole, 5.0, 2.0)["a"]
    # 1 <= 5: kept; 20 > 10: times 2*2/20; 40 > 5: times 2/40; 0 > 0 is not so: kept
    np.testing.assert_allclose(found, [1.0, -2.0 * 0.2, 3.0 * 0.05, 4.0], rtol=1e-6)
    assert (np.abs(damped(params, forget, whole, 0.1, 50.0)["a"])
            <= np.abs(params["a"])).all()  # fmt: skip


def context(request_, resumed=False, **options):
    params = request_.model.init(KEY)
    return Context(
        request=request_, phase=phase(objective="dampening", objective_kw=options),
        params={"encoder": params["encoder"]}, target=params, reference=None, rows=np.arange(4),
        key=KEY, resumed=resumed, fresh=lambda key: {}, earlier=lambda share: {},
    )  # fmt: skip


def test_the_phase_starts_from_what_all_rows_and_forget_rows_say(request_, monkeypatch):
    asked = []

    def both(context, params):
        asked.append(params)
        return (
            {"encoder": {"scale": jnp.array([1.0, 8.0, 1.0])}},
            {"encoder": {"scale": jnp.array([1.0, 1.0, 1.0])}},
            7.0,
        )

    monkeypatch.setattr(fisher, "both", both)
    given = context(request_, select=2.0, strength=1.0)
    found = prepare(given)
    share = 0.1  # of the quickstart's images
    scale = np.asarray(asked[0]["encoder"]["scale"])
    expected = scale * [1, (8 * share + 1 - share) / 8, 1]
    np.testing.assert_allclose(found.params["encoder"]["scale"], expected, rtol=1e-5)
    assert found.flops == 7.0
    assert prepare(context(request_, resumed=True)) is None
    with pytest.raises(ValueError, match="objective_kw.select: expected above 0"):
        prepare(context(request_, select=0.0))


def test_both_sets_are_looked_at_at_the_phases_own_parameters(request_, monkeypatch):
    seen = []
    monkeypatch.setattr(fisher, "make", lambda *args: seen.append(args) or ({}, 1.0))
    assert fisher.both(context(request_), {"p": 1})[2] == 2.0
    (of_forget, of_retain), split = [args[1] for args in seen], request_.split
    np.testing.assert_array_equal(of_forget, np.sort(split.forget))
    assert len(of_retain) == fisher.ROWS and np.isin(of_retain, split.retain).all()
    assert all(args[2] == {"p": 1} for args in seen)
