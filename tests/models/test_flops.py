"""The FLOP count against XLA's of unsharded programs without loops, and loops by hand."""

import importlib

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from launch.aot import chips, programs
from unlearn_jax.models import flops


def traced(f, *shapes):
    return jax.jit(f).trace(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))


def xla(trace):
    return trace.lower().cost_analysis()["flops"]


def convolution(x, k, **options):
    return lax.conv_general_dilated(x, k, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


STRIDED = {"window_strides": (2, 2), "padding": ((1, 1), (1, 2))}
DILATED = {"window_strides": (1, 1), "padding": "SAME", "rhs_dilation": (2, 1)}
TRANSPOSED = {"window_strides": (1, 1), "padding": ((2, 2), (2, 2)), "lhs_dilation": (2, 2)}
GROUPED = {"window_strides": (1, 1), "padding": "VALID", "feature_group_count": 2}


@pytest.mark.parametrize("options", [STRIDED, DILATED, TRANSPOSED, GROUPED])
def test_convolutions_and_their_gradients_are_exactly_xlas(options):
    def f(x, k):
        y, pull_back = jax.vjp(lambda x, k: convolution(x, k, **options), x, k)
        return pull_back(y)

    trace = traced(f, (2, 9, 8, 4), (3, 4, 4 // options.get("feature_group_count", 1), 6))
    assert flops.written(trace.jaxpr).total == xla(trace) > 0


def test_matrix_products_are_exactly_xlas():
    trace = traced(lambda a, b: jnp.einsum("bij,bkj->bik", a, b), (3, 5, 7), (3, 11, 7))
    assert flops.written(trace.jaxpr).total == xla(trace) == 2 * 3 * 5 * 7 * 11


def test_loops_count_as_often_as_they_run():
    def once(x, w):
        return jnp.tanh(x @ w)

    def scanned(x, w):
        return lax.scan(lambda x, _: (once(x, w), None), x, length=6)[0]

    def looped(x, w, start):
        return lax.fori_loop(start.astype(int), 6, lambda i, x: once(x, w), x)

    def forever(x, w):
        return lax.while_loop(lambda x: x.sum() > 1, lambda x: once(x, w), x)

    shapes = (4, 8), (8, 8)
    one = flops.written(traced(once, *shapes).jaxpr).total
    for count in (flops.written, flops.executed):
        assert count(traced(scanned, *shapes).jaxpr) == (6 * one, 0, 0)
        assert count(traced(looped, *shapes, ()).jaxpr) == (6 * one, 1, 0)
        assert count(traced(forever, *shapes).jaxpr) == (one, 0, 1)
    assert count(traced(jax.grad(lambda x, w: scanned(x, w).sum(), 1), *shapes).jaxpr).total == (
        18 * one  # forward once, backward twice
    )


def test_what_is_equal_or_unused_is_not_executed():
    def f(a, b):
        unused = b @ b
        same = jax.jit(lambda a: a @ b)(a) + a @ b
        again = jax.checkpoint(lambda a: a @ b)(a)  # must not be shared: that is its purpose
        return same + again, unused.shape[0]

    trace = traced(f, (4, 8), (8, 8))
    one = 2 * 4 * 8 * 8
    assert flops.written(trace.jaxpr).total == 3 * one + 2 * 8 * 8 * 8
    assert flops.executed(trace.jaxpr).total == 2 * one


@pytest.mark.long
@pytest.mark.parametrize("name", ["cifar10_mae", "cifar10_palette"])
def test_an_unlearning_step_is_as_xla_counts_it(name):
    """XLA also counts elementwise operations: a few per cent."""
    cfg = importlib.import_module(f"configs.{name}").get_config()
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("one",)).devices
    mesh = jax.sharding.Mesh(mesh.reshape(1, 1), programs.AXES)
    step = programs.step(cfg, mesh, phase=programs.phase_of(cfg)[0], rows=4)
    ratio = flops.written(step.fn.trace(*step.args).jaxpr).total / xla(step)
    assert 0.9 < ratio <= 1


def test_topology_is_local_by_that_name():
    assert programs.make_mesh(chips.parse_topology("local"), "2:4", {}).shape == {
        "data": 2,
        "fsdp": 4,
    }


def test_code_for_several_platforms_counts_as_on_any_other():
    def f(a):
        return lax.platform_dependent(a, cpu=lambda a: a @ a @ a, default=lambda a: a @ a)

    for count in (flops.written, flops.executed):
        assert count(traced(f, (8, 8)).jaxpr).total == 2 * 8**3
