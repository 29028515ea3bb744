"""Pixels and masks, against arithmetic done by hand."""

import numpy as np
import pytest

from unlearn_jax.data import transforms


def keys(n, seed=0):
    return np.stack([np.full(n, seed), np.arange(n)], axis=1).astype(np.uint64)


def test_pixels_survive_the_round_trip_exactly():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    floats = transforms.to_float(pixels)
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats.ravel(), np.linspace(-1, 1, 256), rtol=0, atol=1e-6)
    assert floats.min() == -1 and floats.max() == 1
    np.testing.assert_array_equal(transforms.to_uint8(floats), pixels)


def test_to_uint8_clips_rounds_and_refuses_nan():
    found = transforms.to_uint8(np.array([-7.0, 7.0, 0.0, 0.0041], np.float32))
    assert found.tolist() == [0, 255, 128, 128]  # 127.5 -> even; 128.02 -> 128
    with pytest.raises(ValueError, match="got 2 NaN or infinite"):
        transforms.to_uint8(np.array([0, np.nan, np.inf], np.float32))


@pytest.mark.parametrize(
    ("size", "fraction", "side"),
    [(32, 0.5, 16), (32, 0.25, 8), (33, 0.5, 17), (8, 0.01, 2), (7, 0.01, 1), (8, 0.99, 6)]
    + [(7, 0.99, 5), (10, 0.5, 4), (3, 0.5, 1)],
)
def test_holes_are_squares_exactly_in_the_centre(size, fraction, side):
    for task in ({"name": "inpaint", "hole": fraction}, {"name": "outpaint", "visible": fraction}):
        mask = transforms.make_mask({**task, "ratio": 9.0}, size, keys(2))
        assert mask.shape == (2, size, size, 1) and mask.dtype == np.float32
        square = mask if task["name"] == "inpaint" else 1 - mask
        expected = np.pad(np.ones((side, side)), (size - side) // 2)
        for one in square[..., 0]:
            np.testing.assert_array_equal(one, expected)
            np.testing.assert_array_equal(one, one[::-1, ::-1])


@pytest.mark.parametrize("k", range(1, 14))
def test_every_published_square_is_exact(k):
    """Protocol 4.1 and 4.2: inpaint [128 - 8k, 128 + 8k), outpaint keeps [8k, 256 - 8k)."""
    square = np.zeros((256, 256))
    square[128 - 8 * k : 128 + 8 * k, 128 - 8 * k : 128 + 8 * k] = 1
    mask = transforms.make_mask({"name": "inpaint", "hole": k / 16}, 256, keys(1))
    np.testing.assert_array_equal(mask[0, ..., 0], square)
    border = np.ones((256, 256))
    border[8 * k : 256 - 8 * k, 8 * k : 256 - 8 * k] = 0
    mask = transforms.make_mask({"name": "outpaint", "visible": 1 - k / 16}, 256, keys(1))
    np.testing.assert_array_equal(mask[0, ..., 0], border)


@pytest.mark.parametrize(("size", "fraction", "width"), [(256, 0.25, 64), (33, 0.5, 16)])
def test_sides_are_the_first_or_last_rows_or_columns(size, fraction, width):
    columns = {"left": np.arange(size) < width, "right": np.arange(size) >= size - width}
    expected = {name: np.tile(row, (size, 1)) for name, row in columns.items()}
    expected |= {"up": expected["left"].T, "down": expected["right"].T}
    for name, mask in expected.items():
        found = transforms.make_mask({"name": name, "hole": fraction}, size, keys(2))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found[..., 0], np.stack([mask, mask]))


@pytest.mark.parametrize(
    ("size", "ratio", "patch", "count"), [(32, 0.5, 4, 32), (32, 0.75, 8, 12), (6, 0.3, 2, 3)]
)
def test_random_masks_have_exactly_so_many_whole_patches(size, ratio, patch, count):
    mask = transforms.make_mask(
        {"name": "random_mask", "ratio": ratio, "patch": patch}, size, keys(50)
    )
    assert mask.shape == (50, size, size, 1) and set(np.unique(mask)) == {0, 1}
    grid = mask[:, ::patch, ::patch, 0]
    np.testing.assert_array_equal(mask[..., 0], np.kron(grid, np.ones((1, patch, patch))))
    assert (grid.sum(axis=(1, 2)) == count).all()


def test_random_masks_depend_on_the_key_only_and_cover_every_patch():
    task = {"name": "random_mask", "ratio": 0.5, "patch": 4}
    masks = transforms.make_mask(task, 32, keys(400))
    np.testing.assert_array_equal(masks[7:9], transforms.make_mask(task, 32, keys(400)[7:9]))
    assert len({mask.tobytes() for mask in masks}) == 400
    assert transforms.make_mask(task, 32, keys(3, seed=1)).tobytes() != masks[:3].tobytes()
    # Every patch is masked half of the time: 5 standard deviations of 400 coin flips are 0.125.
    assert np.abs(masks.mean(axis=0) - 0.5).max() < 0.125


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"name": "inpant"}, "one of .*inpaint.*got 'inpant'"),
        ({"name": "inpaint", "hole": 1.0}, "0 < hole < 1.*got 1.0"),
        ({"name": "inpaint", "hole": True}, "0 < hole < 1"),
        ({"name": "outpaint", "hole": 0.5}, "0 < visible < 1.*got None"),
        ({"name": "left", "hole": 0.02}, "hole 0.02 of 32 pixels is none"),
        ({"name": "random_mask", "ratio": 0.5, "patch": 5}, "divides the image size 32, got 5"),
        ({"name": "random_mask", "ratio": 0.5, "patch": 0}, "divides"),
        ({"name": "random_mask", "ratio": 0.01, "patch": 8}, "of 16 patches masks 0"),
        ({"name": "random_mask", "ratio": 0.99, "patch": 8}, "of 16 patches masks 16"),
    ],
)
def test_impossible_tasks_are_refused(task, message):
    with pytest.raises(ValueError, match=message):
        transforms.make_mask(task, 32, keys(1))
