import jax
import jax.numpy as jnp
import numpy as np

from tests.helpers.toy import Toy, make_batch
from unlearn_jax import methods as objectives
from unlearn_jax.training.step import unlearn_loss

KEY = jax.random.key(0)
PARAMS = Toy().init(KEY)
# forget rows 0 and 1, retain rows 2, 3, 4 and 6; row 5 and 7 are padding
BATCH = {**make_batch(8, forget=2), "valid": jnp.array([1, 1, 1, 1, 1, 0, 1, 0], bool)}


def losses():
    image, mask = np.asarray(BATCH["image"]), np.asarray(BATCH["mask"])
    scale, bias = (np.asarray(PARAMS[k][n]) for k, n in (("encoder", "scale"), ("decoder", "bias")))
    return ((image * (1 - mask) * scale + bias - image) ** 2).mean((1, 2, 3))


def total(name, **options):
    return unlearn_loss(
        PARAMS, {}, BATCH, KEY, model=Toy(), objective=objectives.build(name, **options),
        retain_weight=1.0, forget_weight=0.3,
    )[0]  # fmt: skip


def test_gradient_difference_is_a_difference_of_the_means_of_the_sets():
    rows = losses()
    expected = rows[[2, 3, 4, 6]].mean() - 0.3 * rows[:2].mean()
    np.testing.assert_allclose(total("gradient_difference"), expected, rtol=1e-5)
    cap = rows[:2].mean()
    expected = rows[[2, 3, 4, 6]].mean() - 0.3 * np.minimum(rows[:2], cap).mean()
    np.testing.assert_allclose(
        total("gradient_difference", forget_cap=float(cap)), expected, rtol=1e-5
    )


def test_max_loss_divides_both_sums_by_the_size_of_the_batch():
    rows = losses()
    expected = (rows[[2, 3, 4, 6]].sum() - 0.3 * rows[:2].sum()) / 6
    np.testing.assert_allclose(total("max_loss"), expected, rtol=1e-5)
