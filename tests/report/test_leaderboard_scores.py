"""The leaderboard's numbers are those of the panels, and nothing is made up where there is none."""

import copy
import math
import re

import pytest

from tests.helpers.made_results import make_results, make_workdir, number
from tests.helpers.pages import Page
from unlearn_jax.report import leaderboard
from unlearn_jax.report import leaderboard_scores as scores


@pytest.fixture(scope="module")
def results():
    return make_results()


def test_a_row_is_what_the_panel_says(results):
    row = next(r for r in leaderboard.rows(results) if r["method"] == "l2_encoder")
    assert row == {
        "method": "l2_encoder", "default": False, "seeds": [1, 2, 3],
        "recall_excess": 0.08, "recall_excess_interval": [0.06, 0.1],
        "hidden_excess": 0.24, "hidden_excess_interval": [0.22, 0.26],
        "worst_excess": 0.24, "worst_excess_interval": [0.22, 0.26], "worst": "resurfacing",
        "no_power": [], "retain_memory": 0.95, "retain_memory_interval": [0.93, 0.97],
        "unseen_loss": pytest.approx(0.0222222), "cost_fraction": 0.15,
        "unseen_loss_interval": pytest.approx([0.0122222, 0.0322222], rel=1e-4),
    }  # fmt: skip
    assert [r["method"] for r in leaderboard.rows(results) if r["default"]] == ["calibrated"]
    text = leaderboard.markdown_table(results)
    assert "| 2 | l2 encoder | 0.080 (\\[0.060, 0.100\\]) |" in text
    assert "0.240 (\\[0.220, 0.260\\] resurfacing)" in text


def test_met_is_said_of_the_upper_end_only(results):
    results = copy.deepcopy(results)
    headline = results["models"]["calibrated"]["panel"]["headline"]
    headline["recall_excess"] = number(0.04, half=0.02)
    words = {f.question: (f.status, f.word) for f in leaderboard.findings(results)}
    assert words["Recall excess at most 0.05?"] == ("bad", "missed")
    headline["recall_excess"] = number(0.02, half=0.02)
    words = {f.question: (f.status, f.word) for f in leaderboard.findings(results)}
    assert words["Recall excess at most 0.05?"] == ("good", "met")


def test_unknown_numbers_are_null_not_zero(results):
    results = copy.deepcopy(results)
    model = results["models"]["calibrated"]
    model["seeds"]["3"]["cost"] = None
    headline = model["panel"]["headline"]
    headline["recall_excess"] = {"value": None, "reason": "no recall witness has power"}
    row = leaderboard.rows(results)[0]
    assert row["method"] == "calibrated"
    assert row["recall_excess"] is None and row["cost_fraction"] is None
    assert row["recall_excess_interval"] == [None, None]
    words = {f.question: (f.status, f.word) for f in leaderboard.findings(results)}
    assert words["Cost at most 10 %?"] == ("unclear", "unknown")
    assert words["Recall excess at most 0.05?"] == ("unclear", "unknown")


def test_rows_without_power_are_left_out_with_their_reason(results):
    results = copy.deepcopy(results)
    for name in scores.methods(results):
        row = results["models"][name]["panel"]["witnesses"]["membership_plain"]
        row |= {"has_power": False, "word": "no power", "reason": "retrained models differ by 0.31"}
    assert set(scores.left_out(results)) == {"membership_plain", "difference"}
    text = leaderboard.markdown(results)
    assert "**Left out:** retrained models differ by 0.31" in text
    assert "leaks after exact deletion" in text


def test_rows_are_sorted_by_the_worst_then_by_name(results):
    results = copy.deepcopy(results)
    results["models"]["b"] = results["models"]["l2_encoder"] | {"label": "b"}
    heads = re.findall(r"^\| (\S+) \| ([\w ]+) \|", leaderboard.markdown(results), re.M)
    assert heads[1:] == [
        ("1", "calibrated"), ("2", "b"), ("3", "l2 encoder"), ("4", "noisy label"),
        ("5", "retain only"), ("6", "gradient ascent"), ("–", "retrained"), ("–", "original"),
    ]  # fmt: skip


def test_methods_may_have_seeds_of_their_own(tmp_path, results):
    results = copy.deepcopy(results)
    del results["models"]["noisy_label"]["seeds"]["1"]
    row = next(r for r in leaderboard.rows(results) if r["method"] == "noisy_label")
    assert row["seeds"] == [2, 3]
    assert scores.shown(results, "noisy_label") == [2]
    assert scores.shown(results, "retrained") == [1, 2]
    assert leaderboard.write(make_workdir(tmp_path, results)).exists()


def test_one_seed_has_no_deviation(tmp_path):
    results = make_results(seeds=(7,))
    table = leaderboard.markdown_table(results)
    assert "±" not in table and "nan" not in table
    assert math.isnan(scores.score(results, "retrained").worst_excess)
    assert all(row["seeds"] == [7] for row in leaderboard.rows(results))
    page = Page(leaderboard.write(make_workdir(tmp_path, results)))
    assert "nan" not in page.text and not any("nan" in text for text in page.values("aria-label"))
