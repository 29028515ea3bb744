"""A comparison from the command line, with a model small enough for tests."""

import json

import numpy as np
import pytest

from tests.helpers import binaries
from unlearn_jax.data import poison, splits
from unlearn_jax.evaluate import comparison
from unlearn_jax.evaluate.comparison import Point

CONFIG = f"--config={binaries.ROOT / 'tests' / 'helpers' / 'tiny_compare.py'}"
METHODS = ("calibrated_reference", "gradient_ascent")
ONLY = f"--config.compare.only={','.join(METHODS)}"

LIKE = {"devices": 2, "accelerator": "none"}  # what no plug-in of a GPU or TPU tells


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(workdir, stdout, stderr) of a comparison."""
    workdir = tmp_path_factory.mktemp("compare") / "run"
    flags = (CONFIG, ONLY, f"--workdir={workdir}")
    out, err = binaries.run("unlearn_jax.compare", *flags, **LIKE)
    return workdir, out, err


def test_it_ends_with_the_leaderboard(finished):
    workdir, out, err = finished
    assert out.rstrip().endswith(f"Leaderboard: {workdir / 'leaderboard.html'}")
    assert "Traceback" not in err
    rows = json.loads((workdir / "leaderboard.json").read_text())
    assert {row["method"] for row in rows} == set(METHODS)
    for row in rows:
        assert row["seeds"] == [0, 1] and row["cost_fraction"] > 0
        assert row["worst_excess_interval"] and "recall_excess" in row
        assert row["default"] == (row["method"] == "gradient_ascent")  # as the unlearned stage
    for label in ("With a reference", "Ascent"):
        assert label in (workdir / "leaderboard.md").read_text()


def test_every_model_has_every_audit_with_interval_and_n(finished):
    workdir, _, _ = finished
    results = json.loads((workdir / "results.json").read_text())
    assert set(results["models"]) == {"original", "retrained", *METHODS}
    assert results["command"].startswith("python -m unlearn_jax.compare --config=")
    for name, model in results["models"].items():
        assert set(model["seeds"]) == {"0", "1"}
        for values in model["seeds"].values():
            assert set(values["audits"]) == set(results["audits"])
            for audit, value in values["audits"].items():
                assert value["value"] is None or (
                    value["ci_low"] <= value["value"] <= value["ci_high"] and value["n"] >= 1
                ), (name, audit)
            assert values["audits"]["backdoor"]["value"] is not None
            assert values["cost"]["flops_fraction"] > 0
    for values in results["models"]["retrained"]["seeds"].values():
        assert abs(values["audits"]["backdoor"]["value"]) < 0.1
        assert values["cost"]["flops_fraction"] == 1


def test_the_reference_model_is_paid_for(finished):
    workdir, _, _ = finished
    models = json.loads((workdir / "results.json").read_text())["models"]
    cost = {m: models[m]["seeds"]["0"]["cost"]["examples_fraction"] for m in METHODS}
    # 6 steps of 32 rows and 4 of the reference, or 6 and 6, against 24
    assert cost["calibrated_reference"] == pytest.approx(10 / 24)
    assert cost["gradient_ascent"] == pytest.approx(12 / 24)


def test_errors_of_examples_are_those_that_the_means_are_of(finished):
    workdir, _, _ = finished
    results = json.loads((workdir / "results.json").read_text())
    examples = np.load(workdir / "examples.npz")
    split = splits.load(workdir / "gradient_ascent" / "0" / "split.json")
    rows = examples["index/forget"]
    assert np.isin(rows, split.forget).all() and not np.isin(rows, split.poisoned).any()
    for name, model in results["models"].items():
        for seed, values in model["seeds"].items():
            column = examples[f"error/{name}/{seed}"]
            assert len(column) == len(rows)
            measured = np.load(next((workdir / "measured").glob(f"{name}-{seed}-*.npz")))
            np.testing.assert_array_equal(column, measured["error/forget"])
            value = values["audits"]["forget_error"]["value"]
            logs = [
                np.log(measured[f"loss/{s}"].astype(float)).mean() for s in ("unseen", "forget")
            ]
            assert value == pytest.approx(logs[0] - logs[1], rel=1e-5)


def test_pictures_of_forget_images_and_of_unseen_ones_with_the_trigger(finished):
    grids = np.load(finished[0] / "grids.npz")
    columns = ("truth", "input", "original", "retrained", *METHODS)
    assert set(grids) == {f"{k}/{c}" for k in ("forget", "triggered") for c in columns}
    assert {grids[key].shape for key in grids} == {(6, 32, 32, 3)}
    show = poison.design({"name": "inpaint", "hole": 0.5}, 32).show
    for kind, triggered in (("forget", False), ("triggered", True)):
        truth = grids[f"{kind}/truth"]
        assert all(np.array_equal(show(x[None])[0], x) == triggered for x in truth)
        np.testing.assert_array_equal(grids[f"{kind}/input"][:, :4], truth[:, :4])


def test_given_again_it_trains_and_measures_nothing(finished):
    workdir, _, _ = finished
    before = json.loads((workdir / "results.json").read_text())
    _, err = binaries.run("unlearn_jax.compare", CONFIG, ONLY, f"--workdir={workdir}", **LIKE)
    assert "pretrain" not in err and "img" not in err
    after = json.loads((workdir / "results.json").read_text())
    assert before | {"created": 0} == after | {"created": 0}


@pytest.mark.full
def test_another_request_uses_the_models_that_do_not_depend_on_it(finished, tmp_path):
    workdir, _, _ = finished
    flags = (f"--config.compare.models={workdir / 'models'}", "--config.poison.fraction=0.0")
    _, err = binaries.run(
        "unlearn_jax.compare", CONFIG, ONLY, f"--workdir={tmp_path / 'run'}", *flags
    )
    assert "original: pretrain" in err  # it has not seen the poison
    assert "retrained: pretrain" not in err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    row = results["models"]["gradient_ascent"]["panel"]["witnesses"]["backdoor"]
    assert row["word"] == "not measured" and results["poison"] is None


@pytest.mark.full
def test_two_machines_with_a_seed_each_make_what_one_makes(finished, tmp_path):
    workdir, parts = finished[0], [tmp_path / "0", tmp_path / "1"]
    models = f"--config.compare.models={workdir / 'models'}"
    for seed, part in enumerate(parts):
        flags = (CONFIG, ONLY, f"--workdir={part}", f"--only_seed={seed}", models)
        out, _ = binaries.run("unlearn_jax.compare", *flags, **LIKE)
        assert "points.jsonl" in out and not (part / "results.json").exists()
    flags = (f"--workdir={tmp_path / 'all'}", f"--merge={parts[0]},{parts[1]}")
    binaries.run("unlearn_jax.report.leaderboard", *flags)
    found, expected = (
        json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "all", workdir)
    )
    for name in METHODS:
        assert found["models"][name]["panel"] == expected["models"][name]["panel"]
    flags = (CONFIG, f"--workdir={tmp_path / '2'}", "--only_seed=7")
    _, err = binaries.run("unlearn_jax.compare", *flags, code=1)
    assert "--only_seed: expected one of config.compare.seeds, (0, 1), got 7" in err


def test_a_comparison_of_nothing_is_refused(tmp_path):
    _, err = binaries.run("unlearn_jax.compare", binaries.TINY, f"--workdir={tmp_path}", code=1)
    assert "error: compare: expected config.compare.methods" in err and "Traceback" not in err


@pytest.mark.parametrize("best", ["quarter", "retrained"])
def test_the_best_training_from_scratch_is_named_by_calibration_images(best):
    def of(alpha):
        return {"phases": [{"shrink": {"alpha": alpha}}], "label": "L", "seeds": {"0": {}, "1": {}}}

    found = {"retrained": of(0.0), "half": of(1.0), "quarter": of(1.0), "shrunk": of(0.5)}
    losses = {"retrained": 0.2, "half": 0.19, "quarter": 0.21, "shrunk": 0.1} | {best: 0.15}
    points = {
        (name, seed): Point({}, {"loss/calibration": np.full((4, 1), loss + 0.01 * seed)})
        for name, loss in losses.items()
        for seed in (0, 1)
    }
    comparison._mark_early_stopped(found, points)
    marked = [name for name, model in found.items() if model["label"] != "L"]
    assert marked == ([] if best == "retrained" else ["quarter"])
    assert not marked or found["quarter"]["label"] == "L (best early-stopped)"
