"""Slices: where an image is depends on it alone, and no batch on what has not entered."""

import numpy as np
import pytest

from tests.helpers import sliced, tiny, wide
from unlearn_jax import data
from unlearn_jax.certify.exact.plan import expected
from unlearn_jax.config import phase
from unlearn_jax.config.validation import validate
from unlearn_jax.data import slices
from unlearn_jax.models import MODELS
from unlearn_jax.registry import UserError

N = 60
IDS = [f"image_{i}" for i in range(N)]


@pytest.fixture(autouse=True)
def _wide_is_a_model(monkeypatch):
    monkeypatch.setitem(MODELS, "wide", wide.Wide)


@pytest.fixture
def source():
    images = np.random.default_rng(0).integers(0, 256, (N, 4, 4, 3), dtype=np.uint8)
    return data.from_arrays(images, np.zeros(N, np.int32), ids=IDS)


def spec(tmp_path=None, values=(), **changes):
    cfg = tiny.get_config()
    cfg.data.slices.update({"count": 4, **changes})
    if tmp_path:
        lines = [f"{id},{value}\n" for id, value in zip(IDS, values, strict=False)]
        (tmp_path / "table.csv").write_text("id,when\n" + "".join(lines))
        cfg.data.slices.update({"file": str(tmp_path / "table.csv"), "column": "when"})
    return cfg.data.slices


def test_a_slice_by_hash_does_not_depend_on_other_images(source):
    rows = np.arange(N)
    of = slices.assign(source, rows, spec())
    assert set(of.tolist()) == {0, 1, 2, 3}
    np.testing.assert_array_equal(slices.assign(source, rows[::7], spec()), of[::7])


def test_slices_by_number_date_and_risk(source, tmp_path):
    rows = np.arange(N)
    numbers = spec(tmp_path, [i % 4 for i in range(N)])
    assert slices.assign(source, rows, numbers).tolist() == [i % 4 for i in range(N)]
    dates = ("2024-01-01", "2025-01-01", "2026-01-01")
    by_date = spec(tmp_path, [f"202{3 + i % 4}-01-01" for i in range(N)], bounds=dates)
    assert slices.assign(source, rows, by_date)[:4].tolist() == [0, 1, 2, 3]
    by_risk = spec(tmp_path, [9 + i % 2 * 2 for i in range(N)], bounds=("2", "10", "100"))
    assert slices.assign(source, rows, by_risk)[:2].tolist() == [1, 2]  # 9 < 10, unlike "9" < "10"


@pytest.mark.parametrize(
    "values, bounds, said",
    (
        ([0] * (N - 1), (), "does not say the when of 1 of 60"),
        (["4"] * N, (), "expected the number of a slice, 0..3"),
        (["soon"] * N, ("1", "2", "3"), "expected numbers"),
    ),
)
def test_a_table_that_does_not_say_is_refused(source, tmp_path, values, bounds, said):
    with pytest.raises(UserError, match=said):
        slices.assign(source, np.arange(N), spec(tmp_path, values, bounds=bounds))


def test_digests_tell_ids_and_pixels_and_no_order(source):
    rows, pixels = np.arange(N), np.arange(2 * N, dtype=np.uint64).reshape(N, 2)
    found = slices.digests(source, rows, spec(), pixels)
    assert found == slices.digests(source, rows[::-1], spec(), pixels[::-1])
    other = pixels.copy()
    other[5] += np.uint64(1)
    changed = [
        a != b for a, b in zip(found, slices.digests(source, rows, spec(), other), strict=True)
    ]
    assert changed == [s == slices.assign(source, rows[5:6], spec())[0] for s in range(4)]


def test_segments_are_of_their_slices_whoever_is_gone(source):
    cfg = sliced.get_config()
    rows = np.arange(N)
    of = slices.assign(source, rows, cfg.data.slices)
    parts = slices.segments(source, rows, cfg)
    assert [part.first for part in parts] + [24] == sliced.ENTRANCES
    for part in parts:
        np.testing.assert_array_equal(part.newest, rows[of == part.slice])
        np.testing.assert_array_equal(part.earlier, rows[of < part.slice])
    fewer = slices.segments(source, rows[of != 2], cfg)
    for a, b in zip(parts[:2], fewer[:2], strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert [(p.first, p.last) for p in slices.within(parts, 16, 8)] == [(0, 4), (4, 8)]


@pytest.mark.parametrize(
    "changes, said",
    (
        ({"data.slices.count": 30}, "too few"),
        ({"data.slices.bounds": ("1",)}, "a column is of a file"),
        ({"data.slices.newest": 0.001}, "none or all"),
        ({"data.slices.last": 1.0}, "data.slices.last"),
        ({"phases.pretrain.noise.std": 0.1}, "not with data.slices.count"),
    ),
)
def test_a_config_whose_slices_cannot_be_is_refused(changes, said):
    validate(sliced.get_config())
    cfg = sliced.get_config()
    cfg.phases.pretrain = phase(**cfg.phases.pretrain.to_dict())
    cfg.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=said):
        validate(cfg)


def test_expected_cost_is_that_of_the_first_slice_touched():
    """Against drawing requests."""
    costs, weights = [1.0, 0.6, 0.2], [5, 3, 2]
    drawn = np.random.default_rng(0).choice(3, (20_000, 2), p=np.array(weights) / 10).min(1)
    assert expected(costs, weights, 2) == pytest.approx(np.array(costs)[drawn].mean(), abs=0.01)


def test_a_list_that_is_no_table_of_that_column_is_refused(source, tmp_path):
    of = spec(tmp_path, range(N))
    (tmp_path / "table.csv").write_text("\n".join(IDS) + "\nwhen,x\n")
    with pytest.raises(UserError, match="data.slices.*table.csv"):
        slices.assign(source, np.arange(N), of)
