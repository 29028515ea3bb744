"""The U-Net and its checkpoint names, against arrays that torch made and the published table."""

import functools
import re
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from unlearn_jax.convert.palette import FAMILY
from unlearn_jax.models import diffusion, unet
from unlearn_jax.models.palette import UPSTREAM_TRAINABLE, Palette

GOLDEN = Path(__file__).parents[1] / "golden" / "palette.npz"
SMALL = {
    "image_size": 8,
    "inner": 32,
    "mults": (1, 2),
    "res_blocks": 1,
    "head_channels": 16,
    "groups": 8,
    "timesteps": 6,
    "beta_start": 0.05,
    "beta_end": 0.5,
}


def made_weights(shapes):
    """{torch name: float32 array} that depends on the names only; no norm or kernel is trivial."""
    made = {}
    for name, shape in shapes.items():
        x = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        if len(shape) > 1:
            x /= np.sqrt(np.prod(shape[1:]))
        else:
            x = 0.3 * x + name.endswith("weight")
        made[name] = x.astype(np.float32)
    return made


def made_inputs():
    """A batch of two images with different holes, and everything that would be drawn."""
    random = np.random.RandomState(0)
    shape = (2, 8, 8, 3)
    mask = np.zeros((2, 8, 8, 1), np.float32)
    mask[0, 2:6, 2:7] = mask[1, :5, 3:] = 1
    batch = {"image": random.uniform(-1, 1, shape).astype(np.float32), "mask": mask}
    draws = {
        "hole_noise": random.standard_normal(shape).astype(np.float32),
        "noise": random.standard_normal(shape).astype(np.float32),
        "timestep": np.array([1, 4], np.int32),
        "gamma_uniform": np.array([0.25, 0.75], np.float32),
        "step_noise": random.standard_normal((6, *shape)).astype(np.float32),
    }
    return jax.tree.map(jnp.asarray, (batch, draws))


def torch_shapes(model):
    """{torch name: shape} of a model's leaves, by the family's rules."""
    params = traverse_util.flatten_dict(jax.eval_shape(model.init, jax.random.key(0)), sep="/")
    return {
        FAMILY.torch_name(path): FAMILY.layout(path, leaf.ndim)
        .to_torch(np.broadcast_to(np.float32(0), leaf.shape))
        .shape
        for path, leaf in params.items()
    }


def fill(model, state):
    """The model's parameters out of {torch name: array}, each used once, every leaf filled."""
    leaves = traverse_util.flatten_dict(jax.eval_shape(model.init, jax.random.key(0)), sep="/")
    left, params = dict(state), {}
    for path, leaf in leaves.items():
        tensor = left.pop(FAMILY.torch_name(path))
        params[path] = jnp.asarray(FAMILY.layout(path, leaf.ndim).to_leaf(tensor))
        assert params[path].shape == leaf.shape and params[path].dtype == leaf.dtype, path
    assert not left, list(left)
    return traverse_util.unflatten_dict(params, sep="/")


@functools.cache
def small_params():
    """Parameters of the model of the golden arrays; do not change them in place."""
    model = Palette(**SMALL)
    schedule = diffusion.linear_schedule(model.timesteps, model.beta_start, model.beta_end)
    return fill(model, made_weights(torch_shapes(model)) | schedule)


def close(got, want, tolerance=2e-5):
    """Whether the largest difference is small relative to the largest number."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    error = np.abs(got - want).max() / max(np.abs(want).max(), 1e-3)
    assert error < tolerance, error


def published_names():
    """The state dict of the release, written down from its table: 326 tensors and 6 buffers."""
    names = {}

    def add(name, *shape):
        names[f"{name}.weight"], names[f"{name}.bias"] = shape, shape[:1]

    def res(name, i, o):
        add(f"{name}.in_layers.0", i)
        add(f"{name}.in_layers.2", o, i, 3, 3)
        add(f"{name}.emb_layers.1", 2 * o, 256)
        add(f"{name}.out_layers.0", o)
        add(f"{name}.out_layers.3", o, o, 3, 3)
        if i != o:
            add(f"{name}.skip_connection", o, i, 1, 1)

    d = "denoise_fn"
    add(f"{d}.cond_embed.0", 256, 64)
    add(f"{d}.cond_embed.2", 256, 256)
    add(f"{d}.input_blocks.0.0", 64, 6, 3, 3)
    flow = [64, 64, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512]
    for n in range(1, 12):
        res(f"{d}.input_blocks.{n}.0", flow[n - 1], flow[n])
    res(f"{d}.middle_block.0", 512, 512)
    add(f"{d}.middle_block.1.norm", 512)
    add(f"{d}.middle_block.1.qkv", 1536, 512, 1)
    add(f"{d}.middle_block.1.proj_out", 512, 512, 1)
    res(f"{d}.middle_block.2", 512, 512)
    entering = [1024, 1024, 768, 768, 512, 384, 384, 256, 192, 192, 128, 128]
    leaving = [512] * 3 + [256] * 3 + [128] * 3 + [64] * 3
    for n, (i, o) in enumerate(zip(entering, leaving, strict=True)):
        res(f"{d}.output_blocks.{n}.0", i, o)
        if n in (2, 5, 8):
            res(f"{d}.output_blocks.{n}.1", o, o)
    add(f"{d}.out.0", 64)
    add(f"{d}.out.2", 3, 64, 3, 3)
    for buffer in ("gammas", "sqrt_recip_gammas", "sqrt_recipm1_gammas"):
        names[buffer] = (2000,)
    for buffer in ("log_variance_clipped", "mean_coef1", "mean_coef2"):
        names[f"posterior_{buffer}"] = (2000,)
    return names


def test_default_has_the_published_names_shapes_and_counts():
    model = Palette()
    found, published = torch_shapes(model), published_names()
    assert found == published and len(found) == 326 + 6
    params = jax.eval_shape(model.init, jax.random.key(0))

    def size(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    assert size(params["encoder"]) == 25_044_416
    assert size(params["encoder"]["cond_embed"]) == 82_432
    assert size((params["encoder"], params["decoder"])) == 62_641_347
    assert size(params["schedule"]) == 6 * 2000
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_trainable_is_the_encoder_without_what_it_shares_with_the_decoder():
    paths = traverse_util.flatten_dict(
        jax.eval_shape(Palette().init, jax.random.key(0)), sep="/"
    ).keys()

    def chosen(patterns):
        return {p for p in paths if any(re.fullmatch(pattern, p) for pattern in patterns)}

    upstream, ours = chosen(UPSTREAM_TRAINABLE), chosen(Palette().trainable)
    assert upstream == {p for p in paths if p.startswith("encoder/")}
    assert upstream - ours == {f"encoder/cond_embed/dense{i}/{k}" for i in "02" for k in
                               ("kernel", "bias")}  # fmt: skip


def test_family_infers_the_model_from_shapes():
    assert FAMILY.model(published_names(), {}) == Palette()
    assert FAMILY.read(torch_shapes(Palette(**SMALL)))["mults"] == (1, 2)
    fields = {name: SMALL[name] for name in SMALL if name not in ("inner", "mults", "res_blocks")}
    assert FAMILY.model(torch_shapes(Palette(**SMALL)), fields) == Palette(**SMALL)
    assert FAMILY.drops("teacher_denoise_fn.out.2.bias") and not FAMILY.drops("denoise_fn.out.2")
    single = Palette(inner=32, mults=(3,), res_blocks=3)
    unsaid = {"image_size": 256, "head_channels": 32}
    assert FAMILY.model(torch_shapes(single), unsaid) == single
    with pytest.raises(ValueError, match="does not say image_size and head_channels"):
        FAMILY.model(torch_shapes(single), {})
    with pytest.raises(ValueError, match=r"Palette U-Net.*gammas"):
        FAMILY.model({"conv1.weight": (64, 3, 7, 7)}, {})


def test_gamma_embedding_has_the_golden_values():
    found = np.asarray(unet.gamma_embedding(jnp.array([0.5]), 64))[0, [0, 1, 31, 32, 33, 63]]
    want = [0.87758256, 0.93052699, 1.0, 0.47942554, 0.36622331, 6.668e-05]
    np.testing.assert_allclose(found, want, rtol=2e-7, atol=5e-9)


def test_feature_maps_and_noise_are_those_of_torch():
    model, (batch, draws) = Palette(**SMALL), made_inputs()
    params, golden, key = small_params(), np.load(GOLDEN), jax.random.key(0)

    @jax.jit
    def both(*args):
        return model.encode(*args, draws=draws), model.predict(*args, draws=draws)

    maps, noise = both(params, batch, key)
    assert len(maps) == 5
    for i, found in enumerate(maps):
        close(found, golden[f"map{i}"])
    close(noise, golden["noise"])


@pytest.mark.long
def test_gradients_are_those_of_torch():
    model, (batch, draws) = Palette(**SMALL), made_inputs()
    golden = np.load(GOLDEN)

    @jax.jit
    @jax.grad
    def gradient(params):
        return model.loss(params, batch, jax.random.key(0), draws=draws).sum()

    leaves = traverse_util.flatten_dict(gradient(small_params()), sep="/")
    for path, leaf in leaves.items():
        name = FAMILY.torch_name(path)
        tensor = FAMILY.layout(path, leaf.ndim).to_torch(np.asarray(leaf))
        if path.startswith("schedule/"):
            assert not tensor.any()
            continue
        norm, shadow = golden[f"gradient.{name}"]
        probe = made_weights({name: tensor.shape})[name]
        found = np.linalg.norm(tensor), (tensor * probe).sum()
        np.testing.assert_allclose(found[0], norm, rtol=1e-4, err_msg=path)
        scale = norm * np.linalg.norm(probe)
        np.testing.assert_allclose(found[1], shadow, atol=1e-4 * scale, err_msg=path)


def test_remat_keeps_names_and_computes_every_block_again():
    model, params, (batch, _) = Palette(**SMALL, remat=True), small_params(), made_inputs()
    found = jax.make_jaxpr(model.predict)(params, batch, jax.random.key(0))
    assert str(found).count("remat") == 10 + 1  # and attention
    found = jax.make_jaxpr(Palette(**SMALL).predict)(params, batch, jax.random.key(0))
    assert "remat" not in str(found)


@pytest.mark.long
def test_bfloat16_is_close_and_gives_float32():
    (batch, draws), key, params = made_inputs(), jax.random.key(0), small_params()
    model, full = Palette(**SMALL, dtype="bfloat16"), np.load(GOLDEN)["noise"]
    half = jax.jit(model.predict)(params, batch, key, draws=draws)
    maps = jax.eval_shape(model.encode, params, batch, key)
    assert half.dtype == jnp.float32 and {x.dtype for x in maps} == {jnp.dtype("float32")}
    assert 1e-4 < np.abs(half - full).max() / np.abs(full).max() < 0.05
