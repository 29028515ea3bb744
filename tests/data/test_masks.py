"""Hybrid masks: what they hold at 256 pixels, how they scale, and the holes of the test set."""

import itertools

import numpy as np
import pytest
from PIL import ImageDraw

from unlearn_jax.data import masks, transforms

HYBRID = {"name": "hybrid"}


def keys(n, seed=0):
    return np.stack([np.full(n, seed), np.arange(n)], axis=1).astype(np.uint64)


def test_masks_depend_on_the_key_only():
    found = transforms.make_mask(HYBRID, 256, keys(40))
    assert found.shape == (40, 256, 256, 1) and found.dtype == np.float32
    assert set(np.unique(found)) == {0, 1}
    np.testing.assert_array_equal(found[7:9], transforms.make_mask(HYBRID, 256, keys(40)[7:9]))
    assert len({mask.tobytes() for mask in found}) == 40
    assert transforms.make_mask(HYBRID, 256, keys(1, seed=1)).tobytes() != found[:1].tobytes()
    # Other options of the task, for its other name, are not looked at.
    task = {"name": "hybrid", "hole": 0.5, "train": "hybrid"}
    np.testing.assert_array_equal(transforms.make_mask(task, 256, keys(2)), found[:2])


def test_smaller_images_take_every_nth_pixel():
    large = transforms.make_mask(HYBRID, 256, keys(5))
    for size in (16, 32, 64, 128):
        n = 256 // size
        np.testing.assert_array_equal(
            transforms.make_mask(HYBRID, size, keys(5)), large[:, n // 2 :: n, n // 2 :: n]
        )
    twice = transforms.make_mask(HYBRID, 512, keys(5))
    np.testing.assert_array_equal(twice, large.repeat(2, axis=1).repeat(2, axis=2))


def test_boxes_have_exactly_the_published_distribution(monkeypatch):
    monkeypatch.setattr(masks, "_stroke", lambda draw, rng: None)
    tops, lefts, heights, widths = [], [], [], []
    for mask in transforms.make_mask(HYBRID, 256, keys(600)):
        rows, columns = (np.flatnonzero(mask[..., 0].any(axis=axis)) for axis in (1, 0))
        assert mask.sum() == len(rows) * len(columns)  # a full box
        assert np.ptp(rows) == len(rows) - 1 and np.ptp(columns) == len(columns) - 1
        heights.append(len(rows))
        widths.append(len(columns))
        tops.append(rows[0] - (128 - len(rows)))
        lefts.append(columns[0] - (128 - len(columns)))
    # Before it shrinks from the top and left, its corner is in 20 … 107; each is about uniform.
    for found in (tops, lefts):
        assert min(found) in range(20, 24) and max(found) in range(104, 108)
        assert abs(np.mean(found) - 63.5) < 5 * 25.4 / 600**0.5
    for found in (heights, widths):
        assert set(found) == set(range(108, 129))
        assert abs(np.mean(found) - 118) < 5 * 6.1 / 600**0.5
    for a, b in itertools.combinations((tops, lefts, heights, widths), 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / 600**0.5


def test_strokes_have_the_published_numbers(monkeypatch):
    drawn = []

    class Recorder(ImageDraw.ImageDraw):
        def __init__(self, canvas):
            self.canvas = canvas

        def rectangle(self, box, fill):
            drawn.append({"lines": [], "discs": []})

        def line(self, corners, fill, width):
            assert fill == 1
            drawn[-1]["lines"].append((np.array(corners), width))

        def ellipse(self, box, fill):
            assert fill == 1
            drawn[-1]["discs"].append(box)

    monkeypatch.setattr(ImageDraw, "Draw", Recorder)
    transforms.make_mask(HYBRID, 256, keys(500))
    lines = [line for one in drawn for line in one["lines"]]
    assert {len(one["lines"]) for one in drawn} == {1, 2, 3}
    assert {len(corners) - 1 for corners, _ in lines} == set(range(4, 12))
    assert {width for _, width in lines} == set(range(12, 40))
    starts = np.array([corners[0] for corners, _ in lines])
    assert starts.min() in range(4) and starts.max() in range(252, 256)
    lengths, angles = [], []
    for corners, _ in lines:
        assert corners.min() >= 0 and corners.max() <= 256
        inside = ((corners > 0) & (corners < 256)).all(axis=1)
        for i, (dx, dy) in enumerate(np.diff(corners, axis=0)):
            if inside[i + 1]:  # not cut off at the border
                lengths.append(np.hypot(dx, dy))
                if lengths[-1] > 30:  # long enough for its angle to be seen in whole pixels
                    angles.append(np.arctan2(-dy if i % 2 == 0 else dy, dx))
    # Up, down, up, …: at 2/5 pi plus or minus 2/15 pi, and one more pixel of rounding.
    assert np.abs(np.array(angles) - 0.4 * np.pi).max() < 2 / 15 * np.pi + 2**0.5 / 30
    assert abs(np.mean(angles) - 0.4 * np.pi) < 0.05
    assert max(lengths) < 2 * 45.26 + 2
    # Cut off below 0, N(45.25, 22); what the border cuts was longer on average.
    assert 35 < np.mean(lengths) < 46 and 18 < np.std(lengths) < 23
    for one in drawn:
        discs = iter(one["discs"])
        for corners, width in one["lines"]:
            for x, y in corners:
                r = width // 2
                assert next(discs) == (x - r, y - r, x + r, y + r)


def test_holes_cover_what_they_should():
    found = transforms.make_mask(HYBRID, 64, keys(400))
    area = found.mean(axis=(1, 2, 3))
    assert area.min() > 108**2 / 256**2 * 0.95 and area.max() < 0.75
    assert 0.31 < area.mean() < 0.34
    assert (found.mean(axis=0) > 0).all()  # every pixel is in some hole


@pytest.mark.parametrize(("ratio", "low", "high"), [(0.5, 64, 192), (0.25, 96, 160)])
def test_inpaint_has_the_centre_of_the_published_test_set(ratio, low, high):
    found = transforms.make_mask({"name": "inpaint", "hole": ratio}, 256, keys(1))
    want = np.zeros((1, 256, 256, 1))
    want[:, low:high, low:high] = 1
    np.testing.assert_array_equal(found, want)


def test_images_can_be_too_small():
    with pytest.raises(
        ValueError, match="'hybrid': expected images of at least 16 x 16, got size 8"
    ):
        transforms.make_mask(HYBRID, 8, keys(1))
    with pytest.raises(ValueError, match="one of .*hybrid.*got 'hybird'"):
        transforms.make_mask({"name": "hybird"}, 32, keys(1))


def boxes(name, n=400, size=64):
    """The masks as (top, left, height, width), which they are; their areas."""
    found = []
    for mask in transforms.make_mask({"name": name}, size, keys(n))[..., 0]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask.sum() == len(rows) * len(columns)  # a full box
        found.append((rows[0], columns[0], len(rows), len(columns)))
    return found


def test_uncropping_of_one_side_is_each_half_equally_often():
    halves = {(0, 0, 64, 32), (0, 32, 64, 32), (0, 0, 32, 64), (32, 0, 32, 64)}
    found = boxes("uncrop_one")
    assert set(found) == halves
    counts = [found.count(half) for half in halves]
    assert min(counts) > 100 - 5 * (400 * 3 / 16) ** 0.5


def test_uncropping_of_four_sides_is_a_box_of_half_the_area_anywhere():
    found = boxes("uncrop_four", 2000)
    top, left, height, width = np.array(found).T
    assert width.min() == 32 and width.max() == 63
    np.testing.assert_array_equal(height, 64 * 64 // 2 // width)
    assert abs(width.mean() - 47.5) < 5 * 9.2 / 2000**0.5
    for start, length in ((top, height), (left, width)):
        assert (start + length <= 64).all()
        share = start[length < 64] / np.maximum(63 - length[length < 64], 1)  # uniform in [0, 1]
        assert abs(share.mean() - 0.5) < 0.04 and share.max() == 1 and share.min() == 0


def test_uncropping_is_either():
    halves = {(0, 0, 64, 32), (0, 32, 64, 32), (0, 0, 32, 64), (32, 0, 32, 64)}
    share = np.mean([box in halves for box in boxes("uncrop")])
    assert abs(share - 0.5) < 5 * 0.5 / 400**0.5 + 1 / 32


def test_odd_images_lose_the_rounded_half():
    masks_ = transforms.make_mask({"name": "uncrop_one"}, 33, keys(50))
    assert set(masks_.sum(axis=(1, 2, 3)).tolist()) == {33.0 * 16}
