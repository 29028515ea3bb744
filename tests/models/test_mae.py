"""MAE: parity with arrays made by torch (see test_mae_torch.py), its masks, sizes and refusals."""

import re
import zlib
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from unlearn_jax.convert.mae import FAMILY
from unlearn_jax.data import transforms
from unlearn_jax.methods import i2i
from unlearn_jax.models import vit
from unlearn_jax.models.mae import MAE, PRESETS
from unlearn_jax.models.params import select

GOLDEN = Path(__file__).parents[1] / "golden" / "mae.npz"
SMALL = {"image_size": 16, "patch": 4, "dim": 32, "depth": 2, "heads": 2, "mask_ratio": 0.6}
SMALL |= {"decoder_dim": 24, "decoder_depth": 1, "decoder_heads": 3}
KEY = jax.random.key(0)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def random_tensor(name, shape):
    """A tensor of this name, the same everywhere; norms and biases are random too."""
    x = np.random.RandomState(zlib.crc32(name.encode())).randn(*shape)
    if len(shape) == 1:
        return (0.3 * x + (".weight" in name)).astype(np.float32)
    return (0.5 * x if "token" in name else x / np.sqrt(x[0].size)).astype(np.float32)


def inputs(b=2):
    """Images, noise for random masks, and a mask that touches 6 of 16 patches, some in part."""
    random = np.random.RandomState(0)
    image = random.uniform(-1, 1, (b, 16, 16, 3)).astype(np.float32)
    mask = np.zeros((b, 16, 16, 1), np.float32)
    mask[:, 5:11, 3:9] = 1
    return {"image": image, "mask": mask}, random.uniform(size=(b, 16)).astype(np.float32)


def names_of(shapes):
    return {path: FAMILY.torch_name(path) for path in flatten_dict(shapes, sep="/")}


def torch_shapes(shapes):
    """Of the checkpoint that a tree of shapes would be exported to."""
    flat, names = flatten_dict(shapes, sep="/"), names_of(shapes)
    empty = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in flat.items()}
    return {n: FAMILY.layout(p, flat[p].ndim).to_torch(empty[p]).shape for p, n in names.items()}


def fill(shapes, state):
    """Params from a state dict; every tensor is used once and every leaf filled."""
    flat, names = flatten_dict(shapes, sep="/"), names_of(shapes)
    assert sorted(names.values()) == sorted(state)
    leaves = {p: FAMILY.layout(p, flat[p].ndim).to_leaf(state[n]) for p, n in names.items()}
    assert {p: x.shape for p, x in leaves.items()} == {p: x.shape for p, x in flat.items()}
    return unflatten_dict({p: jnp.asarray(x) for p, x in leaves.items()}, sep="/")


@cache
def random_params():
    """Of the small model; the position tables are the real ones."""
    shapes = jax.eval_shape(MAE(**SMALL).init, KEY)
    state = {name: random_tensor(name, shape) for name, shape in torch_shapes(shapes).items()}
    for name, dim in (("pos_embed", 32), ("decoder_pos_embed", 24)):
        state[name] = np.concatenate([np.zeros((1, dim), "f4"), vit.sincos_2d(dim, 4)])[None]
    return fill(shapes, state)


def assert_close(got, want, tolerance=1e-4):
    """Relative to the largest entry."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


@cache
def forward(model):
    """A compiled function of params, batch and draws, to (latent, image, loss)."""

    def run(params, batch, draws=None):
        latent = model.encode(params, batch, KEY, draws=draws)
        image = model.decode(params, latent, batch, KEY, draws=draws)
        return latent, image, model.loss(params, batch, KEY, draws=draws)

    return jax.jit(run)


@cache
def gradient(model):
    """A compiled function of params, batch and draws, to (gradient of the mean loss, loss)."""

    def total(params, batch, draws=None):
        loss = model.loss(params, batch, KEY, draws=draws)
        return loss.mean(), loss

    return jax.jit(jax.grad(total, has_aux=True))


def project(gradients):
    """(norm of each tensor's gradient, its product with a random tensor), by torch name."""
    pairs = [(g, random_tensor(f"grad of {n}", g.shape)) for n, g in sorted(gradients.items())]
    return np.array([[np.linalg.norm(g) for g, _ in pairs], [np.vdot(g, r) for g, r in pairs]])


def test_forward_passes_equal_the_golden_arrays():
    batch, noise = inputs()
    params, golden, model = random_params(), np.load(GOLDEN), MAE(**SMALL)
    latent, image, loss = forward(model)(params, batch, {"mask_noise": noise})
    assert_close(latent, golden["latent"])
    assert_close(image, golden["decoded"])
    assert_close(loss, golden["loss"], 1e-5)
    assert_close(jax.jit(model.generate)(params, batch, KEY), golden["generated"])


@pytest.mark.long
@pytest.mark.parametrize("norm_pix_loss,name", [(False, ""), (True, "norm_")])
def test_losses_and_gradients_equal_the_golden_arrays(norm_pix_loss, name):
    batch, noise = inputs()
    model, params = MAE(**SMALL, norm_pix_loss=norm_pix_loss), random_params()
    grads, loss = gradient(model)(params, batch, {"mask_noise": noise})
    golden = np.load(GOLDEN)
    assert_close(loss, golden[f"{name}loss"], 1e-5)
    flat = flatten_dict(grads, sep="/")
    tables = {path: flat.pop(path) for path in list(flat) if path.endswith("pos_embed")}
    assert len(tables) == 2 and not any(np.any(table) for table in tables.values())
    layouts = {path: FAMILY.layout(path, g.ndim) for path, g in flat.items()}
    named = {FAMILY.torch_name(p): layouts[p].to_torch(np.asarray(g)) for p, g in flat.items()}
    got, want = project(named), golden[f"{name}grad"]
    assert np.all(np.abs(got - want) <= 1e-4 * want[0])


def test_patches_are_kept_in_the_order_of_their_noise_and_ties_in_that_of_their_place():
    batch, noise = inputs()
    params = random_params()

    def encode(noise):
        return forward(MAE(**SMALL))(params, batch, {"mask_noise": noise.astype("f4")})[0]

    noise[1] = 0.5
    swapped = noise.copy()
    first, second = np.argsort(noise[0])[:2]
    swapped[0, [first, second]] = noise[0, [second, first]]
    latent, other = encode(noise), encode(swapped)
    assert latent.shape == (2, 1 + 6, 32)  # int(16 * 0.4) is 6
    assert_close(other[0], latent[0, jnp.array([0, 2, 1, 3, 4, 5, 6])], 1e-5)
    raster = encode(np.tile(np.arange(16) / 16, (2, 1)))
    np.testing.assert_array_equal(raster[1], latent[1])


@pytest.mark.long
def test_task_masking_is_gathering():
    batch, _ = inputs()
    batch["mask"][1] = 0
    batch["mask"][1, 15, 15] = 1  # one pixel hides its patch
    params, task = random_params(), MAE(**SMALL, masking="task")
    latent, image, loss = forward(task)(params, batch)
    assert latent.shape == (2, 17, 32)
    for row, patches in enumerate([[4, 5, 6, 8, 9, 10], [15]]):
        hidden = np.isin(np.arange(16), patches)
        one = {name: x[row : row + 1] for name, x in batch.items()}
        gather = MAE(**SMALL | {"mask_ratio": len(patches) / 16})
        draws = {"mask_noise": np.float32(hidden + np.arange(16) / 32)[None]}
        latent_want, image_want, loss_want = forward(gather)(params, one, draws)
        assert latent_want.shape == (1, 17 - len(patches), 32)
        assert_close(latent[row][np.r_[True, ~hidden]], latent_want[0], 1e-5)
        assert not np.any(latent[row, 1:][hidden])
        assert_close(image[row], image_want[0], 1e-5)
        assert_close(loss[row], loss_want[0], 1e-5)


@pytest.mark.long
@pytest.mark.parametrize(("k", "first", "last"), [(4, 5, 9), (8, 3, 11)])
def test_the_reported_holes_hide_these_of_the_14_x_14_patches(k, first, last):
    """Our choice, nothing is published: protocol 4.3 derives the same boxes from the pixels."""
    model = MAE(**{**SMALL, "image_size": 224, "patch": 16, "depth": 1, "masking": "task"})
    mask = transforms.make_mask({"name": "inpaint", "hole": k / 16}, 224, np.zeros((1, 2), "u8"))
    batch = {"image": jnp.zeros((1, 224, 224, 3)), "mask": jnp.asarray(mask)}
    latent = jax.jit(model.encode)(jax.jit(model.init)(KEY), batch, KEY)[0, 1:]
    hidden = np.zeros((14, 14), bool)
    hidden[first:last, first:last] = True
    np.testing.assert_array_equal((latent == 0).all(-1).reshape(14, 14), hidden)


def test_hidden_patches_are_not_seen_and_others_are():
    batch, _ = inputs()
    params, run = random_params(), forward(MAE(**SMALL, masking="task"))
    before = run(params, batch)
    image = batch["image"].copy()
    image[:, 4:12, :12] = 0.3  # the six patches that the mask touches
    after = run(params, batch | {"image": image})
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1], before[1])
    image[:, 3, 3] = 0.3
    assert np.abs(run(params, batch | {"image": image})[0] - before[0]).max() > 1e-3


def test_without_a_hole_the_task_has_no_loss_and_with_nothing_else_it_is_finite():
    batch, _ = inputs()
    batch["mask"][0], batch["mask"][1] = 0, 1
    grads, loss = gradient(MAE(**SMALL, masking="task"))(random_params(), batch)
    assert loss[0] == 0 and 0.1 < loss[1] < 100
    grads = jax.tree.leaves(grads)
    assert all(np.isfinite(g).all() for g in grads) and any(np.any(g) for g in grads)


def test_the_key_decides_the_masks_and_draws_overrule_it():
    batch, noise = jax.tree.map(jnp.asarray, inputs())
    model, params, task = MAE(**SMALL), random_params(), MAE(**SMALL, masking="task")
    drawn = model.draw(batch, KEY)
    assert {name: x.shape for name, x in drawn.items()} == {"mask_noise": (2, 16)}
    assert drawn["mask_noise"].min() >= 0 and 0.8 < drawn["mask_noise"].max() < 1
    from_key = forward(model)(params, batch)
    for got, want in zip(from_key, forward(model)(params, batch, drawn), strict=True):
        assert_close(got, want, 1e-5)
    other = forward(model)(params, batch, model.draw(batch, jax.random.key(1)))
    assert np.abs(other[2] - from_key[2]).max() > 1e-4
    with pytest.raises(ValueError, match=r"draws \['mask_noise'\], got draws=\['noise'\]"):
        model.encode(params, batch, KEY, draws={"noise": noise})
    assert task.draw(batch, KEY) == {}
    with pytest.raises(ValueError, match="draws nothing"):
        model.generate(params, batch, KEY, draws={"mask_noise": noise})


def test_generate_pastes_what_is_visible_and_clips():
    batch, _ = jax.tree.map(jnp.asarray, inputs())
    params = random_params()
    bright = params["decoder"]["pred"] | {"bias": params["decoder"]["pred"]["bias"] + 9}
    params = params | {"decoder": params["decoder"] | {"pred": bright}}
    image = np.asarray(jax.jit(MAE(**SMALL).generate)(params, batch, KEY))
    hole = np.broadcast_to(batch["mask"] == 1, image.shape)
    np.testing.assert_array_equal(image[~hole], batch["image"][~hole])
    np.testing.assert_array_equal(image[hole], 1)
    with pytest.raises(ValueError, match="norm_pix_loss=True cannot generate"):
        MAE(**SMALL, norm_pix_loss=True).generate(params, batch, KEY)


def test_a_model_of_normalised_patches_decodes_them_as_they_are():
    batch, noise = inputs()
    models = MAE(**SMALL), MAE(**SMALL, norm_pix_loss=True)
    plain, normed = (forward(m)(random_params(), batch, {"mask_noise": noise}) for m in models)
    assert_close(normed[0], plain[0], 1e-6)
    assert_close(plain[1], 2 * (np.asarray(normed[1]) * STD + MEAN) - 1, 1e-6)


def test_bfloat16_is_near_float32():
    batch, noise = inputs()
    models = MAE(**SMALL, dtype="bfloat16"), MAE(**SMALL)
    half, full = (forward(m)(random_params(), batch, {"mask_noise": noise}) for m in models)
    for got, want in zip(half, full, strict=True):
        assert got.dtype == jnp.float32
        assert np.any(got != want)
        assert_close(got, want, 0.05)


def test_remat_changes_no_gradient():
    batch, noise = jax.tree.map(jnp.asarray, inputs())
    params, draws = random_params(), {"mask_noise": noise}
    models = MAE(**SMALL, remat=True), MAE(**SMALL)
    got, want = (gradient(model)(params, batch, draws)[0] for model in models)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, want)
    traced = [str(jax.make_jaxpr(lambda p, m=m: m.loss(p, batch, KEY))(params)) for m in models]
    assert [len(re.findall(r"\b(?:checkpoint|remat\d?)\[", t)) for t in traced] == [2 + 1, 0]


def test_methods_compare_the_same_patches():
    batch, _ = inputs(4)
    flags = {"is_forget": jnp.arange(4) < 2, "valid": jnp.full(4, True)}
    batch = {name: jnp.asarray(x) for name, x in (batch | flags).items()}
    params, model = random_params(), MAE(**SMALL)
    terms = jax.jit(lambda p: i2i.l2_encoder(model, p, params, batch, KEY))(params)
    assert np.all(terms.retain[2:] < 1e-9)
    assert np.all(terms.forget[:2] < -1e-3)


@pytest.mark.long
@pytest.mark.parametrize(
    "name,values,tensors",
    [("base", 111_907_840, 254), ("large", 329_541_888, 398), ("huge", 657_074_508, 494)],
)
def test_published_sizes_and_what_a_checkpoint_tells(name, values, tensors):
    model = MAE(**PRESETS[name])
    shapes = jax.eval_shape(model.init, KEY)
    leaves = jax.tree.leaves(shapes)
    assert (sum(leaf.size for leaf in leaves), len(leaves)) == (values, tensors)
    assert FAMILY.model(torch_shapes(shapes), {"norm_pix_loss": False}) == model
    if name == "large":
        chosen = select(shapes, model.trainable)
        assert set(chosen) == {"encoder"} and "pos_embed" not in chosen["encoder"]
        assert sum(leaf.size for leaf in jax.tree.leaves(chosen)) == 303_099_904


def test_params_start_with_the_tables_and_without_structure():
    model = MAE(**SMALL)

    def some(key):  # the rest is not computed
        params = model.init(key)
        names = ("cls_token", "mask_token", "pos_embed", "patch_embed")
        return {part: {n: p[n] for n in names if n in p} for part, p in params.items()}

    params = jax.jit(some)(KEY)
    for part in params:
        table = params[part]["pos_embed"]
        np.testing.assert_array_equal(table, random_params()[part]["pos_embed"])
    tokens = np.r_[params["encoder"]["cls_token"].ravel(), params["decoder"]["mask_token"].ravel()]
    assert 0.01 < tokens.std() < 0.03
    kernel = np.abs(params["encoder"]["patch_embed"]["kernel"])
    bound = np.sqrt(6 / (4 * 4 * 3 + 32))  # Glorot, as a dense layer
    assert 0.98 * bound < kernel.max() <= bound


def test_published_names():
    shapes = torch_shapes(jax.eval_shape(MAE(**PRESETS["large"]).init, KEY))
    expected = {
        "cls_token": (1, 1, 1024),
        "pos_embed": (1, 197, 1024),
        "mask_token": (1, 1, 512),
        "decoder_pos_embed": (1, 197, 512),
        "patch_embed.proj.weight": (1024, 3, 16, 16),
        "blocks.23.attn.qkv.weight": (3072, 1024),
        "blocks.0.mlp.fc1.bias": (4096,),
        "norm.weight": (1024,),
        "decoder_embed.weight": (512, 1024),
        "decoder_blocks.7.mlp.fc2.weight": (512, 2048),
        "decoder_norm.bias": (512,),
        "decoder_pred.weight": (768, 512),
    }
    assert {name: shapes.get(name) for name in expected} == expected


def test_checkpoints_that_do_not_serve_are_refused():
    shapes = torch_shapes(jax.eval_shape(MAE(**SMALL).init, KEY))
    heads = {"heads": 2, "decoder_heads": 3, "mask_ratio": 0.6}
    heads |= {"epsilon": 1e-6, "norm_pix_loss": False}
    assert FAMILY.model(shapes, heads) == MAE(**SMALL)
    with pytest.raises(
        ValueError, match="does not say heads and decoder_heads and epsilon and norm_pix"
    ):
        FAMILY.model(shapes, {})
    encoder = {n: s for n, s in shapes.items() if not re.match("decoder_|mask_token", n)}
    with pytest.raises(ValueError, match=r"encoder only, and cannot generate.*mae_visualize_"):
        FAMILY.model(encoder, heads)
    with pytest.raises(ValueError, match="no cls_token, patch_embed"):
        FAMILY.model({n: s for n, s in shapes.items() if not n.startswith(("cls", "pat"))}, heads)
    with pytest.raises(ValueError, match="18 is not a square"):
        FAMILY.model(shapes | {"pos_embed": (1, 19, 32)}, heads)


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"patch": 5}, r"image_size must be a multiple of patch \(5\), got 16"),
        ({"heads": 3}, r"dim must be a multiple of heads \(3\), got 32"),
        ({"decoder_heads": 5}, r"decoder_dim must be a multiple of decoder_heads \(5\), got 24"),
        ({"dim": 34}, "dim must be a multiple of 4 "),
        ({"decoder_dim": 27}, "decoder_dim must be a multiple of 4 "),
        ({"mask_ratio": 0.99}, "hide some and leave some of the 16 patches, got 0.99"),
        ({"mask_ratio": 0.0}, "hide some and leave some"),
        ({"masking": "grid"}, "masking must be one of .*got 'grid'"),
        ({"dtype": "float16"}, "dtype must be one of .*got 'float16'"),
        ({"std": (1.0, 0.0, 1.0)}, "those of std above 0"),
        ({"heads": 3, "masking": "grid"}, "dim must be .*; masking must be"),
    ],
)
def test_fields_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=f"MAE: .*{message}"):
        MAE(**SMALL | fields)


def test_images_of_another_size_are_refused():
    batch = {"image": jnp.zeros((2, 8, 8, 3)), "mask": jnp.zeros((2, 8, 8, 1))}
    with pytest.raises(ValueError, match=r"expects images \[b, 16, 16, 3\], got \[2, 8, 8, 3\]"):
        MAE(**SMALL).encode(random_params(), batch, KEY)


def test_position_tables_are_leaves_that_are_used():
    batch, noise = inputs()
    params, draws, run = random_params(), {"mask_noise": noise}, forward(MAE(**SMALL))
    for part in params:
        other = params | {part: params[part] | {"pos_embed": params[part]["pos_embed"][:, ::-1]}}
        difference = run(other, batch, draws)[2] - run(params, batch, draws)[2]
        assert np.abs(difference).max() > 1e-3
