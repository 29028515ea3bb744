import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearn_jax.methods import combine

METRICS = {"retain": jnp.float32(1.0), "forget": jnp.float32(0.5)}


def tree(x, y):
    return {"a": jnp.float32([x]), "b": {"c": jnp.float32([[y]])}}


def flat(gradient):
    return [float(gradient["a"][0]), float(gradient["b"]["c"][0, 0])]


def combined(name, retain, forget, **options):
    return flat(combine.build(name, **options)(tree(*retain), tree(*forget), METRICS))


def test_sum():
    assert combined("sum", (1, 2), (3, -5)) == [4, -3]
    assert combine.build("sum") is combine.total


@pytest.mark.parametrize(
    ("retain", "forget", "always", "in_conflict"),
    [
        ((2, 0), (-1, 3), [2, 3], [2, 3]),
        ((2, 0), (1, 3), [2, 3], [3, 3]),
        ((0, 0), (1, 3), [1, 3], [1, 3]),
        ((1, 1), (-2, -2), [1, 1], [1, 1]),
    ],
)
def test_orthogonal_by_hand(retain, forget, always, in_conflict):
    assert combined("orthogonal", retain, forget) == pytest.approx(always)
    found = combined("orthogonal", retain, forget, conflict_only=True)
    assert found == pytest.approx(in_conflict)


def test_what_orthogonal_adds_is_orthogonal_to_the_retain_gradient():
    keys = jax.random.split(jax.random.key(0), 4)
    r, f = (
        {"a": jax.random.normal(k, (50,)), "b": jax.random.normal(j, (20, 3))}
        for k, j in (keys[:2], keys[2:])
    )
    found = combine.orthogonal(r, f, METRICS)
    r, f, g = (
        np.concatenate([np.ravel(x[k]) for k in "ab"]).astype(np.float64) for x in (r, f, found)
    )
    cosine = (g - r) @ r / np.linalg.norm(g - r) / np.linalg.norm(r)
    assert abs(cosine) < 1e-6
    assert abs(f @ r) / np.linalg.norm(f) / np.linalg.norm(r) > 1e-3  # it was not before
    np.testing.assert_allclose((g - r) @ f, (g - r) @ (g - r), rtol=1e-5)  # a projection of f


@pytest.mark.parametrize(
    ("options", "retain", "forget", "expected"),
    [
        # phi = 2 * (1.5 - 0.5) = 2, lambda = (2 - 0) / 4
        ({"epsilon": 1.5, "beta": 2.0}, (1, 0), (0, 2), [1, 1]),
        # phi = 1, <g_f, g_r> = 2: the retain gradient does enough
        ({"epsilon": 1.5}, (1, 0), (2, 0), [1, 0]),
        # the constraint holds: phi = -1, <g_f, g_r> = -4, lambda = 3 / 4
        ({"epsilon": -0.5}, (-2, 0), (2, 0), [-0.5, 0]),
        # phi = |g_f|^2 = 4, lambda = (4 + 4) / 4, whatever epsilon
        ({"epsilon": 9.0, "control": "norm"}, (-2, 0), (2, 0), [2, 0]),
        ({"epsilon": 9.0}, (1, 2), (0, 0), [1, 2]),
    ],
)
def test_epsilon_constrained_by_hand(options, retain, forget, expected):
    assert combined("epsilon_constrained", retain, forget, **options) == pytest.approx(expected)


def test_epsilon_constrained_names_its_controls():
    with pytest.raises(ValueError, match=r"control: expected one of .*'norm'.*got 'value'"):
        combined("epsilon_constrained", (1, 0), (0, 1), epsilon=0.0, control="value")


def descend(point, steps=2000, rate=0.01, **options):
    """Retain term |x|^2 and forget term x_0, from a point."""
    function = combine.build("epsilon_constrained", **options)

    @jax.jit
    def step(x):
        forget = {"x": jnp.float32([-1, 0])}
        return x - rate * function({"x": 2 * x}, forget, {"forget": x[0]})["x"]

    x = jnp.float32(point)
    path = [x]
    for _ in range(steps):
        path.append(step(path[-1]))
    return np.array(path)


@pytest.mark.parametrize("start", [(0.0, 1.0), (-1.0, 1.0), (3.0, -1.0)])
def test_epsilon_constrained_converges_to_the_constrained_minimum(start):
    path = descend(start, epsilon=0.5)
    np.testing.assert_allclose(path[-1], [0.5, 0.0], atol=1e-4)
    if start[0] > 0.5:
        assert path[:, 0].min() > 0.5 - 1e-5  # once it holds, the constraint is kept
    free = descend(start, epsilon=-2.0)
    np.testing.assert_allclose(free[-1], [0.0, 0.0], atol=1e-4)


def test_norm_goes_on_forgetting():
    path = descend((0.0, 1.0), steps=500, epsilon=0.0, beta=0.5, control="norm")
    np.testing.assert_allclose(path[-1], [500 * 0.01 * 0.5, 0.0], atol=1e-3)
