"""Stacks of equal blocks: what is stacked, and when blocks are not equal."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unlearn_jax import sharding
from unlearn_jax.models import MAE, stacking
from unlearn_jax.models.params import select

KEY = jax.random.key(0)
MODEL = MAE(image_size=16, patch=4, dim=8, depth=12, heads=2, decoder_dim=8, decoder_depth=1,
            decoder_heads=2)  # fmt: skip
PATH = "encoder/blocks/block0/attn/qkv/kernel"


@pytest.mark.long
def test_a_state_is_stacked_and_back_bit_for_bit():
    params = MODEL.init(KEY)
    state = (params, optax.adam(0.1).init(params), jnp.int32(3))
    packed = stacking.stack(state)
    kernel = packed[0]["encoder"]["blocks"][stacking.STACK]["attn"]["qkv"]["kernel"]
    assert kernel.shape == (12, 8, 24)
    for i in range(12):  # in the order of the numbers, not of the names
        one = params["encoder"]["blocks"][f"block{i}"]["attn"]["qkv"]["kernel"]
        np.testing.assert_array_equal(kernel[i], one)
    assert list(packed[0]["decoder"]["blocks"]) == ["block0"]  # nothing to stack
    assert len(jax.tree.leaves(packed)) < len(jax.tree.leaves(state)) / 4
    back = stacking.unstack(packed)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)


@pytest.mark.parametrize(
    ("patterns", "alike"),
    [
        ([], True),
        ([r"encoder/(?!pos_embed$).*"], True),
        ([r".*/blocks/block\d+/attn/.*", ".*/bias"], True),
        ([r"encoder/.*/block3/.*"], False),
        ([r".*", r".*/block1/.*", r".*/block\d/.*"], False),
        ([r"decoder/blocks/block0/.*"], True),  # there is only one
    ],
)
def test_patterns_that_tell_blocks_apart_are_seen(patterns, alike):
    assert stacking.alike(jax.eval_shape(MODEL.init, KEY), patterns) == alike


def test_a_stack_is_selected_by_the_names_of_its_blocks():
    whole = jax.eval_shape(MODEL.init, KEY)
    patterns = (r"encoder/blocks/block\d+/attn/.*",)
    packed = jax.eval_shape(stacking.stack, whole)
    chosen = jax.eval_shape(stacking.stack, select(whole, patterns))
    assert jax.tree.structure(select(packed, patterns)) == jax.tree.structure(chosen)
    with pytest.raises(ValueError, match=PATH):
        select(packed, ["nothing"])


def test_a_stack_is_split_over_devices_as_each_of_its_blocks():
    mesh = sharding.make_mesh(data=2, fsdp=4)
    whole = jax.eval_shape(MODEL.init, KEY)
    packed = jax.eval_shape(stacking.stack, whole)
    rules = (("/attn/qkv/kernel$", (None, "fsdp")), (".*", "fsdp"))
    one, all_of = (
        sharding.params_sharding(tree, mesh, rules, min_bytes=900) for tree in (whole, packed)
    )
    one = one["encoder"]["blocks"]["block0"]
    all_of = all_of["encoder"]["blocks"][stacking.STACK]
    specs = [(a.spec, b.spec) for a, b in zip(*map(jax.tree.leaves, (one, all_of)), strict=True)]
    assert {tuple(a) for a, _ in specs} == {(), (None, "fsdp"), ("fsdp", None)}
    assert all(tuple(b) in {(None, *a), (None,)} for a, b in specs)
