"""The record of a comparison: parts are joined, and nothing else is."""

import json
import shutil

import numpy as np
import pytest

from tests.helpers import tiny_compare
from tests.helpers.made_models import Images
from unlearn_jax import data, files
from unlearn_jax.evaluate import comparison
from unlearn_jax.registry import UserError
from unlearn_jax.report import leaderboard

TRAINED = {"steps": 4, "examples": 128, "flops": 1e6, "wall_s": 3.0, "compile_s": 1.0}
METHODS = ("calibrated", "calibrated_reference", "gradient_ascent")
IMAGES = Images(0, n=80)


def config(**changes):
    cfg = tiny_compare.get_config()
    cfg.evaluation.resamples = 50
    cfg.update_from_flattened_dict(changes)
    return cfg


@pytest.fixture(scope="module")
def split():
    return data.load(config())[1]


def measured(seed, k, known, name):
    """Made arrays of a model that has this share of the original's memory, and pictures."""
    found = IMAGES.model(10 * seed + k, known)
    names = (name, "input", "truth") if name == "original" else (name,)
    picture = np.full((6, 32, 32, 3), 10 * seed + k, np.uint8)
    return found | {f"pictures/{k}/{n}": picture for k in ("forget", "triggered") for n in names}


def write(workdir, split, cfg, seeds, methods=METHODS):
    """Write a workdir's points, as a machine measures them."""
    of = comparison.about(cfg, split)
    for seed in seeds:
        for k, name in enumerate(("original", "retrained", *methods)):
            path = workdir / comparison.ARRAYS / f"{name}-{seed}-aaaa.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            known = {"original": 1.0, "retrained": 0.0}.get(name, 0.2 * k)
            np.savez_compressed(path, **measured(seed, k, known, name))
            comparison.append(workdir, of, (name, seed), TRAINED | {"phases": []}, path)
    return of


def plain(found):
    return {k: v for k, v in found.items() if k not in ("created", "command", "config")}


@pytest.mark.long
def test_parts_of_two_machines_are_what_one_would_have_made(tmp_path, split):
    whole, one, two, out = (tmp_path / name for name in ("whole", "one", "two", "out"))
    of = write(whole, split, config(), (0, 1))
    write(one, split, config(), (0,))
    write(two, split, config(**{"data.num_threads": 3, "checkpoint.every": 7}), (1,))
    expected = comparison.write(whole, of, comparison.read(whole, of)[1])
    found = comparison.write(out, *comparison.merge([two, one]))
    assert plain(found) == plain(expected) and found["seeds"] == [0, 1]
    assert found["models"]["calibrated"]["panel"]["witnesses"]["membership_plain"]["has_power"]
    leaderboard.write(out)
    rows = json.loads((out / "leaderboard.json").read_text())
    assert {row["method"] for row in rows} == set(METHODS)
    # a lost workdir, of which lines and arrays are left
    shutil.rmtree(two / "models", ignore_errors=True)
    again = comparison.write(out, *comparison.merge([out.parent / "whole"]))
    assert plain(again) == plain(expected)


def test_a_line_is_small_and_a_point_given_again_takes_its_place(tmp_path, split):
    of = write(tmp_path, split, config(), (0,), ())
    lines = files.read_jsonl(tmp_path / comparison.POINTS)
    assert [line.get("model") for line in lines] == [None, "original", "retrained"]
    assert max(len(json.dumps(line)) for line in lines[1:]) < 1000
    losses = np.load(tmp_path / "measured" / "original-0-aaaa.npz")["loss/unseen"]
    assert lines[1]["unseen_loss"] == {"value": pytest.approx(losses.mean()), "n": 80}
    write(tmp_path, split, config(), (0,), ())
    assert len(comparison.read(tmp_path, of)[1]) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"audit.rows": 77}, "comparison.config.audit.rows: 100 -> 77"),
        ({"phases.calibrated.steps": 5}, "comparison.config.phases.calibrated.steps: 6 -> 5"),
    ],
)
def test_another_config_is_refused_by_name(tmp_path, split, change, said):
    write(tmp_path / "one", split, config(), (0,))
    write(tmp_path / "two", split, config(**change), (1,))
    with pytest.raises(UserError, match="two is of another comparison than") as error:
        comparison.merge([tmp_path / "one", tmp_path / "two"])
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        ("versions", {"jax": "0.0.1"}, "comparison.versions.jax: "),
        ("split", {"hash": "sha256:other"}, "comparison.request: "),
    ],
)
def test_another_version_or_request_is_refused_by_name(tmp_path, split, section, change, said):
    write(tmp_path / "one", split, config(), (0,))
    of = comparison.about(config(), split)
    of[section] |= change
    path = tmp_path / "one" / "measured" / "original-0-aaaa.npz"
    (tmp_path / "two" / "measured").mkdir(parents=True)
    shutil.copy(path, tmp_path / "two" / "measured")
    comparison.append(tmp_path / "two", of, ("original", 1), TRAINED, path)
    with pytest.raises(UserError) as error:
        comparison.merge([tmp_path / "one", tmp_path / "two"])
    assert said in str(error.value)


def test_what_is_missing_twice_or_altered_is_named(tmp_path, split):
    one, two = tmp_path / "one", tmp_path / "two"
    of = write(one, split, config(), (0, 1), METHODS[:2])
    with pytest.raises(UserError, match="2 of 10 points .* gradient_ascent with seed 0"):
        comparison.write(one, of, comparison.read(one, of)[1])
    write(two, split, config(), (1,), ("gradient_ascent",))  # other arrays: another place
    with pytest.raises(UserError, match="calibrated_reference|gradient_ascent with seed 0"):
        comparison.write(two, *comparison.merge([one, two]))
    path = two / "measured" / "original-1-aaaa.npz"
    np.savez_compressed(path, **measured(5, 5, 1.0, "original"))
    with pytest.raises(UserError, match="not as measured: .*original-1"):
        comparison.merge([one, two])
    comparison.append(two, of, ("original", 1), TRAINED, path)
    with pytest.raises(UserError, match="original, seed 1: .*two has other numbers"):
        comparison.merge([one, two])
    with pytest.raises(UserError, match="expected the points of a comparison"):
        comparison.read(tmp_path)
