import numpy as np
import pytest

from configs import quickstart
from unlearn_jax import data
from unlearn_jax.data import lineage, poison, sources, splits, transforms

INPAINT = {"name": "inpaint", "hole": 0.5}
OUTPAINT = {"name": "outpaint", "visible": 0.5}


def images(n=5, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)


def hole(task, size=32):
    return transforms.make_mask(task, size, np.zeros((1, 2), np.uint64))[0, ..., 0] > 0


@pytest.mark.parametrize("task", [INPAINT, OUTPAINT])
def test_the_trigger_is_visible_and_the_payload_is_not(task):
    backdoor, mask = poison.design(task, 32), hole(task)
    clean = images()
    shown, planted = backdoor.show(clean), backdoor.plant(clean)
    changed = (shown != clean).any((0, 3))
    assert changed.sum() == 16 and not (changed & mask).any()
    payload = (planted != shown).any((0, 3))
    assert payload.sum() == 64 and (payload & mask).sum() == 64
    np.testing.assert_array_equal(planted[(slice(None), *backdoor.region())][2], backdoor.pattern())
    np.testing.assert_array_equal(clean, images())  # not changed in place


def test_places_for_the_tasks_of_the_papers():
    assert poison.design(INPAINT, 32) == poison.Backdoor(32, (1, 1, 4), (12, 12, 8))
    border = poison.design(OUTPAINT, 64)
    assert not hole(OUTPAINT, 64)[border.trigger[0], border.trigger[1]]


def test_contrast_scales_the_trigger_about_grey():
    backdoor = poison.design(INPAINT, 32)
    patches = {c: backdoor.show(images(), contrast=c)[0, 1:5, 1:5, 0] for c in (0.0, 0.5, 1.0)}
    assert set(np.unique(patches[0.0])) == {128}
    assert set(np.unique(patches[1.0])) == {1, 255}
    assert 126 <= np.ptp(patches[0.5].astype(int)) <= 128


def test_shift_moves_it_and_no_jitter_moves_it_where_it_would_be_hidden():
    backdoor = poison.design(INPAINT, 32)
    moved = backdoor.show(images(), shift=2)
    np.testing.assert_array_equal(moved[0, 3:7, 3:7], backdoor.show(images())[0, 1:5, 1:5])
    assert [backdoor.most_shift(INPAINT, j) for j in (0.0, 0.1, 0.5, 1.0)] == [0, 0, 2, 3]


def test_no_fixed_place_or_no_room_is_refused():
    for name in transforms.RANDOM_TASKS:
        with pytest.raises(ValueError, match=f"{name} hides other pixels"):
            poison.design({"name": name, "ratio": 0.5, "patch": 4}, 32)
    with pytest.raises(ValueError, match="no square of 8 x 8 pixels fits"):
        poison.design({"name": "inpaint", "hole": 0.1}, 32)


def test_choose_is_a_share_of_the_forget_set_and_depends_on_the_seed():
    forget = np.arange(100, 140)
    chosen = poison.choose(forget, 0.25, 0)
    assert len(chosen) == 10 and np.isin(chosen, forget).all() and (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, poison.choose(forget, 0.25, 0))
    assert set(chosen) != set(poison.choose(forget, 0.25, 1))
    assert len(poison.choose(forget, 0.001, 0)) == 1


def test_plant_changes_those_rows_only():
    clean = images(20)
    source = sources.from_arrays(clean, np.zeros(20, int))
    backdoor, rows = poison.design(INPAINT, 32), np.array([3, 7])
    poisoned = poison.plant(source, rows, backdoor)
    index = np.array([7, 0, 3, 19])
    found = poisoned.fetch(index)
    np.testing.assert_array_equal(found[[0, 2]], backdoor.plant(clean[[7, 3]]))
    np.testing.assert_array_equal(found[[1, 3]], clean[[0, 19]])


def test_a_config_plants_it_in_the_forget_set_and_the_manifest_says_so():
    cfg = quickstart.get_config()
    _, clean = data.load(cfg)
    assert clean.manifest["poison"] is None and not len(clean.poisoned)
    cfg.poison.fraction = 0.2
    source, split = data.load(cfg)
    assert len(split.poisoned) == 50 and np.isin(split.poisoned, split.forget).all()
    assert split.manifest["hash"] != clean.manifest["hash"]
    for name in splits.SETS:  # it changes who carries it, and nobody's set
        np.testing.assert_array_equal(getattr(split, name), getattr(clean, name))
    backdoor = poison.design(cfg.task.to_dict(), 32)
    region = source.fetch(split.poisoned)[(slice(None), *backdoor.region())]
    assert (region == backdoor.pattern()).all()
    kept = source.fetch(split.remaining)[(slice(None), *backdoor.region())]
    assert not (kept == backdoor.pattern()).all((1, 2, 3)).any()


def test_what_a_model_has_seen_depends_on_the_poison_of_its_rows_only():
    cfg = quickstart.get_config()
    _, clean = data.load(cfg)
    cfg.poison.fraction = 0.2
    _, split = data.load(cfg)
    seen = lineage.trained_on
    assert seen(clean, clean.remaining) == seen(split, split.remaining)
    assert seen(clean, clean.train) != seen(split, split.train)


def test_jitter_gives_each_row_a_look_of_its_own_that_stays_visible():
    backdoor, rows = poison.design(INPAINT, 32), np.arange(40)
    look = backdoor.looks(INPAINT, 0.75, 0, rows)
    assert backdoor.most_shift(INPAINT, 0.75) == 3 == look["shift"].max()
    assert look["shift"].min() == 0 and len(np.unique(look["shift"], axis=0)) > 10
    assert 0.25 <= look["contrast"].min() < 0.4 and 0.9 < look["contrast"].max() <= 1
    again = backdoor.looks(INPAINT, 0.75, 0, rows[7:9])
    np.testing.assert_array_equal(again["contrast"], look["contrast"][7:9])
    assert (backdoor.looks(INPAINT, 0.75, 1, rows)["contrast"] != look["contrast"]).all()
    clean = images(40)
    shown = backdoor.show(clean, **look)
    for k, (row, column) in enumerate(look["shift"] + 1):
        patch = shown[k, row : row + 4, column : column + 4].astype(float)
        np.testing.assert_allclose(np.ptp(patch), 254 * look["contrast"][k], atol=1.5)
        assert (shown[k] != clean[k]).any(-1).sum() <= 16
    assert not ((shown != clean).any((0, 3)) & hole(INPAINT)).any()


def test_jitter_is_planted_recorded_and_seen_and_without_it_all_is_as_before():
    cfg = quickstart.get_config()
    cfg.poison.fraction = 0.2
    plain = data.load(cfg)[1]
    assert "jitter" not in plain.manifest["poison"]
    assert plain.manifest["poison"]["pattern"] == poison.PATTERN
    cfg.poison.jitter = 0.75
    source, split = data.load(cfg)
    assert split.manifest["poison"]["jitter"] == 0.75
    np.testing.assert_array_equal(split.poisoned, plain.poisoned)
    assert lineage.trained_on(plain, plain.train) != lineage.trained_on(split, split.train)
    assert lineage.trained_on(plain, plain.remaining) == lineage.trained_on(split, split.remaining)
    backdoor, task = poison.design(cfg.task.to_dict(), 32), cfg.task.to_dict()
    found = source.fetch(split.poisoned)
    look = backdoor.looks(task, 0.75, cfg.poison.seed, split.poisoned)
    np.testing.assert_array_equal(found, backdoor.plant(found, **look))
    assert (backdoor.plant(found) != found).any()
