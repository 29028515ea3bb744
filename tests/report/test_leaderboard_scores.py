"""The leaderboard's arithmetic, by hand, and what it leaves out."""

import copy
import math
import re

import numpy as np
import pytest
from scipy import stats

from tests.helpers.made_results import make_results, make_workdir, small
from tests.helpers.pages import Page
from unlearn_jax.report import leaderboard
from unlearn_jax.report import leaderboard_scores as scores


@pytest.fixture(scope="module")
def results():
    return make_results()


def test_arithmetic_by_hand():
    results = small(
        original=([0.1, 0.1], [1.0, 1.0]),
        retrained=([0.48, 0.52], [1.1, 1.3]),
        m=([0.4, 0.55], [1.26, 1.38]),
    )
    # r = 0.5, |o - r| = 0.4, gaps 0.1 / 0.4 and 0.05 / 0.4; losses 1.26 / 1.2 - 1, 1.38 / 1.2 - 1
    row = {"method": "m", "seeds": [1, 2], "forget_gap": 0.1875, "worst_gap": 0.1875}
    row |= {"gaps": {"a": 0.1875}, "utility_loss": 0.1, "cost_fraction": 0.15}
    assert leaderboard.rows(results) == [row]
    half = 12.706204736 * 0.125 / 2  # t with 1 degree of freedom, sd 0.125 / sqrt(2), 2 seeds
    assert scores.score(results, "m").forget_half == pytest.approx(half, rel=1e-9)
    loss = stats.ttest_1samp([0.05, 0.15], 0).confidence_interval(0.95)
    half = scores.score(results, "m").utility_half
    assert half == pytest.approx((loss.high - loss.low) / 2, rel=1e-9)
    assert scores.score(results, "retrained").forget_gap == pytest.approx(0.04 / 0.4)
    assert scores.score(results, "original").forget_gap == pytest.approx(1)
    assert scores.utility_floor(results) == pytest.approx(0.2 / 1.2)


def test_the_floor_leaves_one_seed_out():
    results = small(
        original=([103, 103, 103], [1, 1, 1]),
        retrained=([1, 2, 6], [1, 1, 1]),
        m=([3, 3, 3], [1, 1, 1]),
    )
    floor = scores.score(results, "retrained").gaps["a"]  # |1 - 4|, |2 - 3.5|, |6 - 1.5| over 100
    assert floor == pytest.approx((3 + 1.5 + 4.5) / 3 / 100)


def test_gaps_are_averaged_over_audits_and_the_worst_named():
    results = small(original=([0], [2]), retrained=([1], [4]), m=([0.9], [3]), k=([1.5], [5]))
    results["audits"]["b"] = results["audits"]["a"] | {"label": "second"}
    for name, b in {"original": 10, "retrained": 20, "m": 17, "k": 21}.items():
        results["models"][name]["seeds"]["1"]["audits"]["b"] = {"value": b}
    m, k = leaderboard.rows(results)
    assert (m["method"], k["method"]) == ("m", "k")
    assert m["gaps"] == {"a": 0.1, "b": 0.3} and m["forget_gap"] == 0.2 and m["worst_gap"] == 0.3
    assert k["gaps"] == {"a": 0.5, "b": 0.1} and k["forget_gap"] == 0.3 and k["worst_gap"] == 0.5
    assert m["utility_loss"] == -0.25 and k["utility_loss"] == 0.25  # sign kept, against 4
    text = leaderboard.markdown_table(results)
    assert "| 1 | m | 0.200 | 0.300 (second) | −25.0 % | 10 % | 0.9 (gap 0.100) | 17 (gap" in text


def test_the_worst_utility_counts():
    results = make_results(noise=0)
    row = next(r for r in leaderboard.rows(results) if r["method"] == "gradient_ascent")
    assert row["utility_loss"] == pytest.approx(0.083 / 0.061 - 1, rel=1e-5)  # 0.118 / 0.09 is less
    row = next(r for r in leaderboard.rows(results) if r["method"] == "retain_only")
    assert row["utility_loss"] == pytest.approx(0.088 / 0.09 - 1, rel=1e-5)


@pytest.mark.parametrize(
    ("retrained", "kept"),
    # The pooled sd is sqrt(0.02): an audit must tell the means apart by more than 0.2828.
    [([0.3, 0.5], False), ([0.38, 0.58], False), ([0.39, 0.59], True), ([-0.19, 0.01], True)],
)
def test_audits_that_do_not_tell_the_references_apart_are_left_out(retrained, kept):
    results = small(
        original=([0.1, 0.3], [1, 1]), retrained=(retrained, [1, 1]), m=([0.2, 0.2], [1, 1])
    )
    counted, left_out = scores.anchors(results)
    assert set(counted) == ({"a"} if kept else set()) and set(left_out) == {"a"} - set(counted)
    assert (leaderboard.rows(results)[0]["forget_gap"] is None) == (not kept)
    assert ("**Left out:** original (0.2) and retrained" in leaderboard.markdown(results)) != kept


def test_null_values_leave_the_audit_out_for_all(results):
    results = copy.deepcopy(results)
    entry = results["models"]["noisy_label"]["seeds"]["2"]["audits"]["score_spread"]
    entry |= {"value": None, "reason": "too few images"}
    results["models"]["l2_encoder"]["seeds"]["1"]["audits"]["forget_error"]["value"] = math.inf
    left_out = scores.anchors(results)[1]
    assert left_out["score_spread"] == "no value for noisy label of seed 2 (too few images)"
    assert left_out["forget_error"] == "no value for l2 encoder of seed 1 (no reason given)"
    for row in leaderboard.rows(results):
        assert set(row["gaps"]) == {"membership_auroc", "backdoor_success"}
        assert row["forget_gap"] == pytest.approx(np.mean(list(row["gaps"].values())), rel=1e-5)


def test_unknown_utility_and_cost_are_null_not_zero(results):
    results = copy.deepcopy(results)
    seed = results["models"]["calibrated"]["seeds"]["3"]
    seed["utility"]["retain_error"]["value"] = seed["cost"] = None
    row = leaderboard.rows(results)[0]
    assert (row["method"], row["utility_loss"], row["cost_fraction"]) == ("calibrated", None, None)
    words = {f.question: (f.status, f.word) for f in leaderboard.findings(results)}
    assert words["Cost at most 10 %?"] == ("unclear", "unknown")
    assert words["Utility loss at most 5 %?"] == ("unclear", "unknown")


def test_rows_are_sorted_by_gap_then_name():
    level = ([1.0, 1.0], [1, 1])
    same = ([0.5, 0.5], [1, 1])
    results = small(
        original=([0, 0], [1, 1]), retrained=level, z=same, b=same, a=([0.2, 0.1], [1, 1])
    )
    assert [row["method"] for row in leaderboard.rows(results)] == ["b", "z", "a"]
    heads = re.findall(r"^\| (\S+) \| (\w+) \|", leaderboard.markdown(results), re.M)
    assert heads[1:] == [("1", "b"), ("2", "z"), ("3", "a"), ("–", "retrained"), ("–", "original")]


def test_methods_may_have_seeds_of_their_own(tmp_path, results):
    results = copy.deepcopy(results)
    del results["models"]["noisy_label"]["seeds"]["1"]
    row = next(r for r in leaderboard.rows(results) if r["method"] == "noisy_label")
    assert row["seeds"] == [2, 3]
    assert scores.shown(results, "noisy_label") == [2]
    assert scores.shown(results, "retrained") == [1, 2]
    assert leaderboard.write(make_workdir(tmp_path, results)).exists()


def test_one_seed_has_no_intervals_and_no_floor(tmp_path):
    results = make_results(seeds=(7,))
    table = leaderboard.markdown_table(results)
    assert "±" not in table and "nan" not in table
    assert math.isnan(scores.score(results, "retrained").forget_gap)
    assert all(row["seeds"] == [7] and row["forget_gap"] > 0 for row in leaderboard.rows(results))
    first = leaderboard.findings(results)[0]
    assert first.status == "unclear" and "With one seed the order may be chance" in first.text
    page = Page(leaderboard.write(make_workdir(tmp_path, results)))
    assert "nan" not in page.text and not any("nan" in text for text in page.values("aria-label"))
