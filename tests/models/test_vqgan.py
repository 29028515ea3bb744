"""The VQ-GAN: names and sizes of the published tokenizer, and numbers of an independent torch one.

`golden/vqgan.npz` is made and checked by test_vqgan_torch.py.
"""

import dataclasses
import re
import zlib
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from unlearn_jax.convert.vqgan import FAMILY
from unlearn_jax.models.vqgan import VQGAN

GOLDEN = Path(__file__).parent.parent / "golden"
SMALL = {
    "image_size": 16,
    "ch": 16,
    "ch_mult": (1, 2),
    "z_dim": 8,
    "codebook": 32,
    "groups": 4,
}
MODEL = VQGAN(**SMALL)
KEY = jax.random.key(0)  # looked at by nobody
# Compiling is what these tests would wait for.


def fill(name, shape):
    """Numbers for a torch tensor; norms and biases are not 1 and 0. The same ones everywhere."""
    x = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("embeddings.weight"):
        x = 0.3 * x
    elif name.endswith("bias") or "pos_embed" in name:
        x = 0.3 * x
    elif len(shape) == 1:  # of a norm
        x = 1 + 0.3 * x
    elif not name.endswith("embedding.weight"):
        x = x / np.prod(shape[1:]) ** 0.5
    if re.fullmatch(r".*encoder.conv_in.weight|mlm_layer.fc.*", name):
        x = 0.01 * x  # so small that the epsilon of the norm that follows shows
    return x.astype(np.float32)


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def named_shapes(family, model):
    """{leaf path: (torch name, torch shape)}; every name once."""
    found = {}
    for path, leaf in flat(jax.eval_shape(model.init, KEY)).items():
        empty = np.broadcast_to(np.float32(0), leaf.shape)
        shape = family.layout(path, leaf.ndim).to_torch(empty).shape
        found[path] = family.torch_name(path), shape
    assert len({name for name, _ in found.values()}) == len(found)
    return found


def filled(family, model, tensors=None):
    """Parameters from a torch state dict, or from `fill`; every tensor used, every leaf filled."""
    params, left = {}, set(tensors or ())
    leaves = flat(jax.eval_shape(model.init, KEY))
    for path, (name, shape) in named_shapes(family, model).items():
        tensor = fill(name, shape) if tensors is None else tensors[name]
        left.discard(name)
        leaf = family.layout(path, leaves[path].ndim).to_leaf(tensor)
        assert leaf.shape == leaves[path].shape, path
        params[path] = jnp.array(leaf)
    assert not {name for name in left if not any(re.fullmatch(d, name) for d in family.dropped)}
    return traverse_util.unflatten_dict(params, sep="/")


def directional(family, grads):
    """{torch name: gradient times a random direction}: all of it in one number for each tensor."""
    found = {}
    for path, grad in flat(grads).items():
        grad = family.layout(path, grad.ndim).to_torch(np.asarray(grad))
        name = family.torch_name(path)
        found[name] = np.vdot(grad, fill("direction." + name, grad.shape))
    return found


def images(b=2, size=16, seed=0):
    """Smooth and coloured, in [-1, 1]."""
    rng = np.random.RandomState(seed)
    coarse = rng.uniform(-1, 1, (b, 4, 4, 3)).repeat(size // 4, 1).repeat(size // 4, 2)
    return (0.8 * coarse + 0.2 * rng.uniform(-1, 1, coarse.shape)).astype(np.float32)


def make_batch(b=2, size=16):
    mask = np.zeros((b, size, size, 1), np.float32)
    for i in range(b):
        mask[i, 4 : 10 + i, 3:12] = 1
    return {"image": jnp.array(images(b, size)), "mask": jnp.array(mask)}


@cache
def weights():
    with jax.ensure_compile_time_eval():  # also when a function that is being traced asks first
        return filled(FAMILY, MODEL)


@cache
def golden():
    with np.load(GOLDEN / "vqgan.npz") as file:
        return dict(file)


def close(got, want, tolerance=1e-4):
    scale = np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * scale)


def published(ch=128, mult=(1, 1, 2, 2, 4), z=256, codebook=1024):
    """{name: shape} of the published tokenizer, from its description."""
    found = {"encoder.conv_in.weight": (ch, 3, 3, 3), "quantize.embedding.weight": (codebook, z)}

    def block(name, i, o):
        for norm, c in (("norm1", i), ("norm2", o)):
            found.update({f"{name}.{norm}.{leaf}": (c,) for leaf in ("weight", "bias")})
        found[f"{name}.conv1.weight"], found[f"{name}.conv2.weight"] = (o, i, 3, 3), (o, o, 3, 3)
        if i != o:
            found[f"{name}.nin_shortcut.weight"] = (o, o, 1, 1)

    def with_bias(name, *shape):
        found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]

    c = [ch * m for m in mult]
    i = ch
    for level, o in enumerate(c):
        for b in range(2):
            block(f"encoder.down.{level}.block.{b}", i, o)
            i = o
    for side in ("encoder", "decoder"):
        for b in (1, 2):
            block(f"{side}.mid.block_{b}", c[-1], c[-1])
    for level in reversed(range(len(c))):
        for b in range(2):
            block(f"decoder.up.{level}.block.{b}", i, c[level])
            i = c[level]
        if level:
            with_bias(f"decoder.up.{level}.upsample.conv", i, i, 3, 3)
    with_bias("encoder.norm_out", c[-1])
    with_bias("encoder.conv_out", z, c[-1], 1, 1)
    with_bias("decoder.conv_in", c[-1], z, 3, 3)
    with_bias("decoder.norm_out", ch)
    with_bias("decoder.conv_out", 3, ch, 3, 3)
    return found


def test_names_and_sizes_are_the_published_ones():
    mapping = named_shapes(FAMILY, VQGAN())
    want = published()
    assert dict(mapping.values()) == want and len(want) == 168
    total = {"encoder": (79, 23_775_104), "decoder": (88, 30_478_339), "quantize": (1, 262_144)}
    for part, (tensors, number) in total.items():
        sizes = [np.prod(shape) for name, shape in want.items() if name.startswith(part)]
        assert (len(sizes), sum(sizes)) == (tensors, number)
    parameters = jax.tree.leaves(jax.eval_shape(VQGAN().init, KEY))
    assert sum(leaf.size for leaf in parameters) == 54_515_587


@pytest.mark.parametrize("model", [VQGAN(), VQGAN(**SMALL, res_blocks=1)])
def test_sizes_are_inferred_and_fields_win(model):
    shapes = dict(named_shapes(FAMILY, model).values())
    fields = {"image_size": model.image_size, "groups": model.groups}
    assert FAMILY.model(shapes, fields) == model
    assert FAMILY.model(shapes, fields | {"commitment": 1.0}).commitment == 1.0


def test_a_checkpoint_of_something_else_is_refused():
    with pytest.raises(ValueError, match=r"expected a tensor 'encoder.down.0.block.0.conv1.weight"):
        FAMILY.model({"conv.weight": (3, 3)}, {})


@jax.jit
def numbers(params):
    """(gradients of the sum of losses, everything else that is compared with torch)."""
    model = VQGAN(**SMALL, remat=True)
    batch = make_batch()

    def total(params):
        latent = model.features(params, (batch["image"] + 1) / 2)
        ids = model.tokenize(params, (batch["image"] + 1) / 2)
        loss = model.loss(params, batch, KEY)
        found = {"latent": latent, "tokens": ids, "loss": loss}
        found["decoded"] = model.decode_tokens(params, ids)
        return loss.sum(), found | {"output": model.decode(params, latent, batch, KEY)}

    return jax.grad(total, has_aux=True)(params)


@pytest.mark.long
def test_numbers_are_those_of_torch():
    want = golden()
    grads, got = numbers(weights())
    np.testing.assert_array_equal(got["tokens"], want["tokens"])
    assert len(np.unique(want["tokens"])) > 5
    for name in ("latent", "decoded", "loss"):
        close(got[name], want[name])
    close(got["output"], 2 * want["decoded"] - 1)
    got = directional(FAMILY, grads)
    close([got[name] for name in want["names"]], want["gradient"])


@pytest.mark.long
def test_hole_is_grey_for_the_model_and_seen_by_its_loss():
    params, batch = weights(), make_batch()
    hidden = batch | {"image": jnp.where(batch["mask"] == 1, 0.5, batch["image"])}
    latent = MODEL.encode(params, batch, KEY)
    np.testing.assert_array_equal(MODEL.encode(params, hidden, KEY), latent)
    grey = jnp.array([0.485, 0.456, 0.406])
    seen = jnp.where(batch["mask"] == 1, grey, (batch["image"] + 1) / 2)
    close(latent, MODEL.features(params, seen), 1e-5)
    assert np.abs(MODEL.loss(params, batch, KEY) - MODEL.loss(params, hidden, KEY)).min() > 1e-3


@pytest.mark.long
def test_generate_is_the_clipped_decoding_of_nearest_codes():
    params, batch = weights(), make_batch()
    params = params | {"decoder": params["decoder"] | {}}
    params["decoder"]["conv_out"] = jax.tree.map(lambda x: 3 * x, params["decoder"]["conv_out"])
    seen = jnp.where(batch["mask"] == 1, 2 * jnp.array([0.485, 0.456, 0.406]) - 1, batch["image"])
    ids = MODEL.tokenize(params, (seen + 1) / 2)
    decoded = 2 * MODEL.decode_tokens(params, ids) - 1
    assert decoded.max() > 1 and decoded.min() < -1
    close(MODEL.generate(params, batch, KEY), decoded.clip(-1, 1))


def test_nearest_is_by_distance_and_the_first_of_equals():
    codes = jnp.array([[3.0, 0.0], [1.0, 1.0], [0.0, -2.0], [1.0, 1.0]])
    latent = jnp.array([[[[0.9, 1.2], [2.2, 0.1]], [[0.1, -1.0], [9.0, 9.0]]]])
    ids = MODEL.nearest({"quantize": {"embedding": codes}}, latent)
    np.testing.assert_array_equal(ids[0], [[1, 0], [2, 0]])  # (9, 9): 117 from 0, 128 from 1


def test_quantising_is_the_identity_to_the_gradient():
    params, batch = weights(), make_batch()
    latent = MODEL.encode(params, batch, KEY)
    direction = jnp.array(images(seed=5))
    code = MODEL.lookup(params, MODEL.nearest(params, latent))

    def along(latent):
        return jnp.vdot(direction, MODEL.decode(params, latent, batch, KEY))

    gradient = jax.jit(jax.grad(along))
    at_latent, at_code = gradient(latent), gradient(code)
    assert np.abs(at_code).max() > 1e-3
    close(at_latent, at_code)


def test_bfloat16_computes_close_to_float32():
    params, image = weights(), (make_batch()["image"] + 1) / 2
    half, full = (
        jax.jit(VQGAN(**SMALL, dtype=dtype).features)(params, image)
        for dtype in ("bfloat16", "float32")
    )
    assert half.dtype == jnp.float32 and not np.array_equal(half, full)
    close(half, full, 5e-2)


def test_fresh_parameters_are_float32_and_depend_on_the_key():
    shapes = jax.tree.leaves(jax.eval_shape(MODEL.init, KEY))
    assert {leaf.dtype for leaf in shapes} == {jnp.dtype("float32")}

    @jax.jit  # the rest is not computed
    def some(key):
        params = MODEL.init(key)
        return params["quantize"]["embedding"], params["encoder"]["conv_in"]["kernel"]

    for one, two in zip(some(jax.random.key(1)), some(jax.random.key(2)), strict=True):
        assert len(np.unique(one)) > 200 and not np.array_equal(one, two)


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"image_size": 17}, "image_size must be divisible by 2"),
        ({"ch_mult": ()}, "ch_mult is empty"),
        ({"ch_mult": (1, 0)}, "ch_mult must be positive"),
        ({"codebook": 0}, "codebook must be positive, got 0"),
        ({"groups": 5}, "groups must divide the channels"),
        ({"dtype": "float16"}, "dtype must be one of"),
        ({"commitment": -1.0}, "commitment must be finite"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        VQGAN(**{**SMALL, **fields})


def test_lists_become_tuples_so_that_the_model_is_hashable():
    model = VQGAN(**{**SMALL, "ch_mult": [1, 2], "trainable": [".*"]})
    assert hash(model) == hash(VQGAN(**SMALL, trainable=(".*",)))


def test_wrong_image_size():
    with pytest.raises(ValueError, match=r"expects images \[b, 16, 16, 3\], got \[2, 32, 32, 3\]"):
        MODEL.loss(weights(), make_batch(size=32), KEY)


@pytest.mark.long
def test_revival_pulls_every_code_to_the_nearest_latent_of_each_image():
    batch, params = make_batch(), weights()
    model = dataclasses.replace(MODEL, revival=0.5)

    @jax.jit
    def run(params):
        def extra(params):
            plain, revived = (m.loss(params, batch, KEY) for m in (MODEL, model))
            return (revived - plain).sum(), (plain, revived)

        grads, losses = jax.grad(extra, has_aux=True)(params)
        return grads, losses, MODEL.features(params, (batch["image"] + 1) / 2)

    grads, (plain, revived), latent = jax.tree.map(np.asarray, run(params))
    codes = np.asarray(params["quantize"]["embedding"])
    away = ((latent.reshape(2, -1, 1, codes.shape[1]) - codes) ** 2).mean(-1)
    np.testing.assert_allclose(revived - plain, 0.5 * away.min(1).mean(1), rtol=1e-3)
    assert (np.abs(grads["quantize"]["embedding"]).max(1) > 0).all()  # of the unused ones as well
    np.testing.assert_allclose(grads["encoder"]["conv_in"]["kernel"], 0, atol=1e-6)
