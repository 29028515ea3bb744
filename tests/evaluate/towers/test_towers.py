"""Feature towers against arrays made with torch (by test_towers_torch), and their checkpoints."""

import dataclasses
import re
import zlib
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearn_jax.convert import clip, inception, resnet50
from unlearn_jax.evaluate.towers.clip_tower import Clip
from unlearn_jax.evaluate.towers.inception import Inception
from unlearn_jax.evaluate.towers.resnet50 import ResNet50

SMALL = re.compile(r"_embedding|ln_pre|out_proj|c_proj")  # what CLIP adds up
GOLDEN = Path(__file__).parents[2] / "golden" / "towers.npz"
# Inception needs 107 pixels for 2 x 2 in its last blocks; below, all kinds of pooling agree there.
small = {"image_size": 107, "width": 2, "classes": 10}
clip_fields = {"image_size": 24, "patch": 8, "width": 128, "layers": 2, "heads": 2}
clip_fields |= {"mlp_width": 160, "embed_dim": 24}
TOWERS = {
    "inception_fid": (inception.FAMILY, Inception(**small)),
    "inception_torchvision": (inception.FAMILY, Inception("torchvision", auxiliary=True, **small)),
    "resnet50": (resnet50.FAMILY, ResNet50(image_size=64, width=4, classes=10)),
    "clip": (clip.FAMILY, Clip(**clip_fields)),
    "clip_quick_gelu": (clip.FAMILY, Clip(**clip_fields, quick_gelu=True)),
}
PUBLISHED = {
    # tensors, floats, of which trained: pytorch-fid's file, torchvision's, places365's, open_clip's
    "fid": (inception.FAMILY, Inception(), 472, 23_885_392, 23_850_960),
    "torchvision": (
        inception.FAMILY,
        Inception("torchvision", auxiliary=True),
        484,
        27_197_488,
        27_161_264,
    ),
    "places365": (resnet50.FAMILY, ResNet50(), 267, 24_309_037, 24_255_917),
    "imagenet": (resnet50.FAMILY, ResNet50(classes=1000), 267, 25_610_152, 25_557_032),
    "clip": (clip.FAMILY, Clip(), 392, 632_076_800, 632_076_800),
}


def tensor(name, shape):
    """A tensor of a made-up checkpoint, which follows from its name."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        x = 0.01 * random.uniform(0.5, 1.5, shape)  # small, so that epsilons matter
    elif len(shape) == 1 and name.endswith(".weight"):
        x = random.uniform(0.5, 1.5, shape)
    elif len(shape) == 1:
        x = 0.2 * random.standard_normal(shape)
    else:
        x = random.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5
    if len(shape) == 4 or name.endswith("running_mean"):
        x *= 0.1
    if SMALL.search(name):
        x *= 0.02
    if ".bn3." in name:
        x *= 0.3  # residual networks would grow
    return x.astype(np.float32)


def images(size):
    """Images of tiles, so that features differ more than those of noise."""
    tiles = np.random.RandomState(size).uniform(-1, 1, (2, size // 8 + 1, size // 8 + 1, 3))
    return jnp.asarray(tiles.repeat(8, 1).repeat(8, 2)[:, :size, :size], jnp.float32)


@cache
def leaves(tower):
    """{path: leaf without values}."""
    tree = jax.eval_shape(tower.init, jax.random.key(0))
    return {"/".join(k.key for k in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def torch_shapes(family, tower):
    """{torch name: shape there}, of a checkpoint that has no text encoder."""
    return {
        family.torch_name(path): family.layout(path, leaf.ndim)
        .to_torch(np.broadcast_to(0, leaf.shape))
        .shape
        for path, leaf in leaves(tower).items()
    }


def fill(family, tower, tensors):
    """The tower's params; every tensor is used once."""
    tensors, params = dict(tensors), {}
    for path, leaf in leaves(tower).items():
        value = family.layout(path, leaf.ndim).to_leaf(tensors.pop(family.torch_name(path)))
        assert value.shape == leaf.shape, path
        *folders, last = path.split("/")
        node = params
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = value
    assert not tensors, f"unused: {list(tensors)}"
    return params


@pytest.mark.long
@pytest.mark.parametrize("name", TOWERS)
def test_features_are_those_of_torch(name):
    family, tower = TOWERS[name]
    tensors = {k: tensor(k, shape) for k, shape in torch_shapes(family, tower).items()}
    params = fill(family, tower, tensors)
    got = jax.jit(tower.features)(params, images(tower.image_size))
    with np.load(GOLDEN) as golden:
        expected = {key.split("/")[1]: golden[key] for key in golden if key.startswith(name + "/")}
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert got[key].dtype == np.float32
        np.testing.assert_allclose(got[key], value, rtol=2e-5, atol=2e-5 * np.abs(value).max())


@pytest.mark.long
@pytest.mark.parametrize("name", PUBLISHED)
def test_has_as_many_parameters_as_published(name):
    _, tower, tensors, floats, trained = PUBLISHED[name]
    sizes = {path: leaf.size for path, leaf in leaves(tower).items()}
    assert {leaf.dtype for leaf in leaves(tower).values()} == {np.dtype("float32")}
    assert (len(sizes), sum(sizes.values())) == (tensors, floats)
    statistics = sum(n for path, n in sizes.items() if path.endswith(("/mean", "/var")))
    assert floats - statistics == trained


@pytest.mark.long
@pytest.mark.parametrize("name", PUBLISHED)
def test_fields_are_read_off_the_checkpoint(name):
    family, tower, *_ = PUBLISHED[name]
    shapes = torch_shapes(family, tower)
    assert family.model(shapes, {}) == tower
    assert family.model(shapes, {"dtype": "bfloat16"}) == dataclasses.replace(
        tower, dtype="bfloat16"
    )


def test_heads_are_not_guessed_by_their_usual_width():
    family, tower = TOWERS["clip"]
    shapes = torch_shapes(family, tower)
    with pytest.raises(ValueError, match="--set=heads=N --set=quick_gelu="):
        family.model(shapes, {})
    assert family.model(shapes, {"heads": 4, "quick_gelu": False}).heads == 4


def test_a_variant_that_cannot_be_read_off_must_be_said():
    family, tower = TOWERS["inception_fid"]
    shapes = torch_shapes(family, tower)
    with pytest.raises(ValueError, match="does not say variant.*classes=10.*--set=variant=fid"):
        family.model(shapes, {})
    fields = {"variant": "fid", "image_size": 107}
    assert family.model(shapes, fields) == tower


def test_other_checkpoints_are_refused():
    shapes = torch_shapes(*TOWERS["resnet50"])
    with pytest.raises(ValueError, match=r"expected tensors \['Conv2d_1a.* Is it an Inception-v3"):
        inception.FAMILY.model(shapes, {})
    with pytest.raises(ValueError, match="expected tensors .*visual.conv1.weight"):
        clip.FAMILY.model(shapes, {})
    deeper = shapes | {"layer3.6.conv3.weight": (64, 16, 1, 1)}
    with pytest.raises(ValueError, match=r"got \(3, 4, 7, 3\) such blocks. Is it a ResNet-50"):
        resnet50.FAMILY.model(deeper, {})


@pytest.mark.parametrize("name", ["inception_torchvision", "resnet50"])
def test_an_export_has_the_counter_of_every_batch_norm(name):
    family, tower = TOWERS[name]
    names = torch_shapes(family, tower)
    norms = {k.removesuffix(".running_mean") for k in names if k.endswith(".running_mean")}
    buffers = family.buffers(tower)
    assert set(buffers) == {f"{norm}.num_batches_tracked" for norm in norms}
    assert all(value.dtype == np.int64 and value.shape == () for value in buffers.values())


@pytest.mark.long
@pytest.mark.parametrize("name", ["inception_fid", "resnet50", "clip"])
def test_accelerators_multiply_in_float32(name):
    _, tower = TOWERS[name]
    params = jax.eval_shape(tower.init, jax.random.key(0))
    jaxpr = str(jax.make_jaxpr(tower.features)(params, images(tower.image_size)))
    products = jaxpr.count("conv_general_dilated[") + jaxpr.count("dot_general[")
    assert products and jaxpr.count("precision=None") == 0


def test_bfloat16_is_close():
    family, tower = TOWERS["clip"]
    tensors = {k: tensor(k, shape) for k, shape in torch_shapes(family, tower).items()}
    params = fill(family, tower, tensors)
    exact = jax.jit(tower.features)(params, images(tower.image_size))["embedding"]
    rough = dataclasses.replace(tower, dtype="bfloat16")
    got = jax.jit(rough.features)(params, images(tower.image_size))["embedding"]
    assert got.dtype == np.float32
    assert 1e-5 < np.abs(got - exact).max() < 0.02
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", ["inception_fid", "resnet50", "clip"])
def test_images_of_another_size_are_refused(name):
    _, tower = TOWERS[name]
    params = jax.eval_shape(tower.init, jax.random.key(0))
    with pytest.raises(ValueError, match=rf"expects images \[b, {tower.image_size}, .* \[2, 88,"):
        jax.eval_shape(tower.features, params, images(88))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Inception("tf"), "variant must be one of .* got 'tf'"),
        (lambda: Inception(width=3), "width must be even"),
        (lambda: Inception(image_size=64), "75 or more"),
        (lambda: ResNet50(classes=0), "classes must be positive"),
        (lambda: ResNet50(mean=(0.5, 0.5)), "mean must be three numbers"),
        (lambda: ResNet50(std=[0.5, 0.5, 0.0]), "std must be three positive numbers"),
        (lambda: Clip(dtype="float16"), 'dtype must be "float32" or "bfloat16"'),
        (lambda: Clip(heads=24), "width must be a multiple of heads=24, got 1280"),
    ],
)
def test_fields_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_fields_from_a_config_are_hashable():
    assert ResNet50(mean=[0.5] * 3, std=[0.5] * 3) == ResNet50(mean=(0.5,) * 3, std=(0.5,) * 3)
    assert hash(Inception(mean=[0.5] * 3)) == hash(Inception(mean=(0.5,) * 3))
