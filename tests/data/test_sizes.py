"""Images that are no squares: sizes in words, views, masks; what does not fit names what does."""

import numpy as np
import pytest
from PIL import Image

from unlearn_jax import models
from unlearn_jax.config import default, ranges
from unlearn_jax.data import poison, preprocess, sizes, transforms
from unlearn_jax.data.preprocess import Crops, View

KEYS = np.array([[3, 0], [3, 1], [3, 2]], np.uint64)


def mask(**task):
    return transforms.make_mask(task, (24, 40), KEYS)[..., 0]


def test_sizes_are_read_in_every_form():
    for same in (32, (32, 32), [32, 32]):
        assert sizes.settled(same) == 32 and sizes.sides(same) == (32, 32)
    assert sizes.settled([24, 40]) == (24, 40) == sizes.parsed("24,40", "--x")
    assert sizes.parsed("224", "--x") == 224
    for wrong in (0, -1, 2.0, True, "32", (1, 2, 3), (), (24, 0), None):
        with pytest.raises(
            ValueError, match="data.image_size must be positive, got .* one whole number"
        ):
            sizes.sides(wrong)
    with pytest.raises(ValueError, match="--x must be positive.*'24x40'"):
        sizes.parsed("24x40", "--x")


@pytest.mark.parametrize(
    "size,multiple,square,near",
    [
        (32, 8, False, ""),
        ((24, 40), 8, False, ""),
        (20, 8, False, "got 20; nearest: 16 or 24"),
        (3, 8, False, "got 3; nearest: 8"),
        ((100, 150), 16, False, "got 100 x 150 (height x width); nearest: 96 x 144 or 112 x 160"),
        ((24, 40), 8, True, "got 24 x 40 (height x width); nearest: 24 or 40"),
    ],
)
def test_what_does_not_fit_names_what_does(size, multiple, square, near):
    assert sizes.misfit(size, multiple, square) == near


@pytest.mark.parametrize(
    "name,fields,said",
    [
        ("mae", {"patch": 16, "image_size": (100, 160)}, r"nearest: 96 x 160 or 112 x 160"),
        ("palette", {"image_size": (24, 36)}, r"divisible by 8 .* nearest: 24 x 32 or 24 x 40"),
        ("autoencoder", {"image_size": (24, 20)}, r"divisible by 8 .* nearest: 24 x 16 or 24\."),
        ("vqgan", {"image_size": (32, 64)}, "of squares, got 32 x 64 .* nearest: 32 or 64"),
        ("mage", {"image_size": (32, 64)}, "of squares, got 32 x 64 .* nearest: 32 or 64"),
    ],
)
def test_models_refuse_in_one_line(name, fields, said):
    with pytest.raises(ValueError, match=said) as found:
        models.build(name, **fields)
    assert "\n" not in str(found.value)


def test_configs_hold_either_form():
    config = default()
    config.data.image_size = (24, 40)
    assert not [p for p in ranges.problems(config) if "image_size" in p]
    config.data.image_size = (24, 40, 3)
    assert [p for p in ranges.problems(config) if "config.data.image_size must be" in p]


@pytest.mark.parametrize("size,whole", [((100, 60), (80, 48)), ((60, 100), (48, 80))])
def test_crop_covers_and_pad_holds(size, whole):
    """By hand: at 24 x 40 the picture 100 x 60 is as wide as 40, 60 x 100 is as wide as 40, too."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8))
    wide = size[0] > size[1]
    covered = (40, 24) if wide else (40, 66)
    assert preprocess.cover(size, (40, 24)) == covered
    found = preprocess.fit(image, View((24, 40), "crop"), "x")
    top = round((covered[1] - 24) / 2)
    expected = np.asarray(image.resize(covered, Image.Resampling.BICUBIC))[top : top + 24]
    np.testing.assert_array_equal(found, expected)
    held = (40, 24) if wide else (14, 24)
    padded = preprocess.fit(image, View((24, 40), "pad"), "x")
    left = (40 - held[0]) // 2
    inside = np.asarray(image.resize(held, Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(padded[:, left : left + held[0]], inside)
    assert not padded[:, :left].any() and not padded[:, left + held[0] :].any()
    view = View((24, 40), crops=Crops())
    assert preprocess.random_view(image, view, KEYS[0]).shape == (24, 40, 3)


def test_masks_have_the_proportions_of_the_image():
    hole = mask(name="inpaint", hole=0.5)[0]
    assert hole[6:18, 10:30].all() and hole.sum() == 12 * 20
    np.testing.assert_array_equal(mask(name="outpaint", visible=0.5)[0], 1 - hole)
    for name, part in {"left": np.s_[:, :10], "right": np.s_[:, 30:], "up": np.s_[:6],
                       "down": np.s_[18:]}.items():  # fmt: skip
        found = mask(name=name, hole=0.25)[0]
        assert found[part].all() and found.sum() == np.ones((24, 40))[part].sum(), name
    patches = mask(name="random_mask", ratio=0.4, patch=8)
    tiles = patches.reshape(3, 3, 8, 5, 8)
    assert (tiles == tiles[:, :, :1, :, :1]).all()
    assert (patches.sum((1, 2)) == 6 * 64).all() and not (patches[0] == patches[1]).all()
    with pytest.raises(ValueError, match=r"divides the image size 24 x 40 .* of \[1, 2, 4, 8\]"):
        mask(name="random_mask", ratio=0.4, patch=16)
    strokes, canvas = mask(name="hybrid"), transforms.make_mask({"name": "hybrid"}, 256, KEYS)
    assert 0.8 < strokes.mean() / canvas.mean() < 1.25
    for one in mask(name="uncrop_one"):
        assert one.sum() == 480 and {*one.mean(0)} | {*one.mean(1)} <= {0.0, 0.5, 1.0}
    keys = np.array([[5, k] for k in range(60)], np.uint64)
    boxes = transforms.make_mask({"name": "uncrop_four"}, (24, 40), keys)[..., 0]
    assert (boxes.any(1).sum(1) >= 20).all() and (boxes.any(1).sum(1) < 40).all()
    assert all(box.sum() == box.any(0).sum() * box.any(1).sum() for box in boxes)
    assert (abs(boxes.sum((1, 2)) - 480) <= 40).all()  # a height is a whole number of pixels


def test_a_backdoor_fits_into_the_shorter_side():
    backdoor = poison.design({"name": "inpaint", "hole": 0.5}, (24, 40))
    assert backdoor.trigger == (1, 1, 3) and backdoor.payload == (9, 17, 6)
