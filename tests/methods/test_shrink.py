from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.toy import Toy
from unlearn_jax.config import phase
from unlearn_jax.methods import shrink
from unlearn_jax.methods.preparation import Context
from unlearn_jax.registry import UserError

KEY = jax.random.key(3)
TRAINED = {"encoder": {"scale": jnp.array([1.0, 2.0, 4.0])}}


def context(reference=None, resumed=False, **settings):
    drawn = []

    def fresh(key):
        drawn.append(key)
        return {"encoder": Toy().init(key)["encoder"]}

    found = Context(
        request=SimpleNamespace(model=Toy()), phase=phase(shrink=settings), params=TRAINED,
        target={}, reference=reference, rows=np.arange(4), key=KEY, resumed=resumed, fresh=fresh,
        earlier=lambda share: None,
    )  # fmt: skip
    return found, drawn


def test_the_start_lies_on_the_line_to_a_fresh_initialisation():
    found, drawn = context(alpha=0.25)
    start = shrink.prepare(found).params["encoder"]["scale"]
    other = Toy().init(drawn[0])["encoder"]["scale"]
    by_hand = 0.75 * np.array([1.0, 2.0, 4.0]) + 0.25 * np.asarray(other)
    np.testing.assert_allclose(start, by_hand, rtol=1e-6)
    # The run's own key draws what the original began with; towards that, memory would stay.
    assert (jax.random.key_data(drawn[0]) != jax.random.key_data(KEY)).any()


def test_towards_a_reference_only_trainable_leaves_move():
    reference = {"encoder": {"scale": jnp.zeros(3)}, "decoder": {"bias": jnp.ones(3)}}
    found, drawn = context(reference, alpha=0.5, towards="reference")
    start = shrink.prepare(found).params
    assert list(start) == ["encoder"] and not drawn
    np.testing.assert_allclose(start["encoder"]["scale"], [0.5, 1.0, 2.0])


def test_a_reference_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="--config.reference_from=WORKDIR"):
        shrink.prepare(context(alpha=0.5, towards="reference")[0])


@pytest.mark.parametrize("settings", [{}, {"alpha": 0.0}])
def test_nothing_is_prepared_where_nothing_is_asked_for(settings):
    assert shrink.prepare(context(**settings)[0]) is None


def test_a_phase_that_goes_on_is_not_shrunk_again():
    assert shrink.prepare(context(alpha=0.5, resumed=True)[0]) is None


def of(**leaves):
    return {layer: {k: jnp.asarray(v, jnp.float32) for k, v in leaf.items()}
            for layer, leaf in leaves.items()}  # fmt: skip


def test_layers_shrink_by_what_they_hold_of_forget_images():
    forget = of(a={"kernel": [4.0, 12.0], "bias": [8.0]}, b={"kernel": [1.0] * 6})
    retain = of(a={"kernel": [1.0, 3.0], "bias": [2.0]}, b={"kernel": [1.0] * 6})
    found = shrink.alphas(forget, retain, 0.3)
    # ratios: sqrt(24 / 6) = 2 for the 3 numbers of a, 1 for the 6 of b; their mean is 4/3
    assert found["a"]["kernel"] == found["a"]["bias"] == pytest.approx(0.3 * 2 / (4 / 3))
    assert found["b"]["kernel"] == pytest.approx(0.3 / (4 / 3))
    assert shrink.alphas(forget, retain, 0.9)["a"]["bias"] == 1.0  # never beyond the other end


def test_by_layer_the_start_lies_between_both_ends(monkeypatch):
    squares = of(encoder={"scale": [1.0, 2.0, 3.0]})
    monkeypatch.setattr(shrink.fisher, "both", lambda context, params: (squares, squares, 5.0))
    found, drawn = context(alpha=0.25, by="layer")
    prepared = shrink.prepare(found)
    other = Toy().init(drawn[0])["encoder"]["scale"]
    by_hand = 0.75 * np.array([1.0, 2.0, 4.0]) + 0.25 * np.asarray(other)
    np.testing.assert_allclose(prepared.params["encoder"]["scale"], by_hand, rtol=1e-6)
    assert prepared.flops == 5.0
