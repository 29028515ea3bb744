import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from tests.helpers import tiny
from tests.helpers.toy import Toy, make_batch
from unlearn_jax.methods import saliency
from unlearn_jax.models.params import select
from unlearn_jax.request import Request

KEY = jax.random.key(0)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.77])
def test_largest_has_exactly_the_share_and_none_left_out_is_larger(share):
    rng = np.random.default_rng(0)
    tree = {"a": rng.normal(size=(7, 5)), "b": {"c": 3 * rng.normal(size=65)}}
    tree = jax.tree.map(jnp.float32, tree)
    mask = saliency.largest(tree, share)
    assert jax.tree.map(jnp.shape, mask) == jax.tree.map(jnp.shape, tree)
    values, chosen = (np.asarray(ravel_pytree(x)[0]) for x in (tree, mask))
    assert chosen.dtype == bool and chosen.sum() == round(share * 100)
    assert abs(values[chosen]).min() > abs(values[~chosen]).max()


def test_largest_takes_the_first_of_equals():
    mask = saliency.largest({"a": jnp.array([0.0, 1.0, -1.0]), "b": jnp.array([2.0, 1.0])}, 0.6)
    np.testing.assert_array_equal(mask["a"], [False, True, True])
    np.testing.assert_array_equal(mask["b"], [True, False])


def test_gradient_is_that_of_the_losses_of_valid_rows_on_trainable_leaves():
    model, target = Toy(), Toy().init(KEY)
    params = select(target, model.trainable)
    batches = [make_batch(8, seed=0), make_batch(8, invalid=3, seed=1)]
    gradient = jax.tree.map(jnp.zeros_like, params)
    for batch in batches:
        gradient = saliency.add_gradient(gradient, params, target, batch, KEY, model=model)
    # d/ds_c of sum over rows of mean (x (1 - m) s + b - x)^2, by hand
    expected = np.zeros(3)
    for batch, n in zip(batches, (8, 5), strict=True):
        x, m = np.asarray(batch["image"])[:n], np.asarray(batch["mask"])[:n]
        seen = x * (1 - m)
        error = seen * np.asarray(target["encoder"]["scale"]) + 0.25 - x
        expected += (2 * error * seen).sum((0, 1, 2)) / (4 * 4 * 3)
    assert set(gradient) == {"encoder"}
    np.testing.assert_allclose(gradient["encoder"]["scale"], expected, rtol=1e-4)


@pytest.mark.long
def test_make_reads_every_forget_row_once_and_nothing_else():
    cfg = tiny.get_config()
    request = Request(cfg)
    source, split, model = request.source, request.split, request.model
    target = jax.jit(model.init)(KEY)
    mask, flops = saliency.make(0.3, request, target, target, KEY)
    again, _ = saliency.make(0.3, request, target, target, KEY)
    jax.tree.map(np.testing.assert_array_equal, mask, again)

    images = source.fetch(split.forget).astype(np.float32) / 127.5 - 1
    hole = np.zeros((len(images), 32, 32, 1), np.float32)
    hole[:, 8:24, 8:24] = 1  # the tiny task: the middle half of the image
    whole = {"image": jnp.asarray(images), "mask": jnp.asarray(hole)}
    gradient = jax.jit(jax.grad(lambda p: model.loss(p, whole, KEY).mean()))(target)
    values, chosen = (np.asarray(ravel_pytree(x)[0]) for x in (gradient, mask))
    size = np.sort(abs(values))[::-1]
    threshold = size[chosen.sum() - 1]
    assert chosen.sum() == round(0.3 * len(values)) and flops > 0
    clear = abs(abs(values) - threshold) > 1e-4 * threshold  # sums in another order
    np.testing.assert_array_equal(chosen[clear], (abs(values) >= threshold)[clear])
    assert clear.mean() > 0.99
