"""What the report concludes is what the numbers say."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.made_request import RECORD, certified, make_results, make_workdir, stat
from tests.helpers.pages import Page, assert_self_contained
from unlearn_jax.report import audit_page
from unlearn_jax.report import results_page as report
from unlearn_jax.report.page import MINUS, interval, percent, value


def words(results):
    return {f.question: (f.status, f.word) for f in report.findings(results)}


def text_of(results, question):
    texts = {finding.question: finding.text for finding in report.findings(results)}
    return texts[question].replace(MINUS, "-")


SEEN, KEPT = "Was there something to forget?", "Is quality kept?"
FAIR = "Is retraining a fair yardstick?"


def number(value, low, high):
    return {"value": value, "ci_low": low, "ci_high": high, "n": 90}


def audited(word="not refuted", gate=0.9, unseen=(0.01, 0.0, 0.02)):
    """Results with an audit that says so."""
    audit = audit_page.without("no reason") | {"format": audit_page.FORMAT}
    audit["conclusion"] |= {"word": word}
    audit["gate"] = number(gate, gate - 0.02, gate + 0.02) | {"least": 0.6, "passed": gate >= 0.6}
    audit["damage"] = {"unseen_loss": number(*unseen)}
    return make_results(audit=audit)


@pytest.mark.parametrize(
    ("results", "question", "answer"),
    [
        (audited(), SEEN, ("note", "yes")),
        (audited(gate=0.55), SEEN, ("unclear", "nothing measurable")),
        (make_results(), SEEN, ("unclear", "not tested")),
        (audited(), KEPT, ("good", "kept")),
        (audited(word="refuted"), KEPT, ("note", "kept")),
        (audited(word="not tested"), KEPT, ("note", "kept")),
        (audited(unseen=(0.04, 0.02, 0.06)), KEPT, ("unclear", "too few images")),
        (audited(unseen=(0.08, 0.051, 0.1)), KEPT, ("bad", "damaged")),
        (audited(word="refuted", unseen=(0.08, 0.051, 0.1)), KEPT, ("bad", "damaged")),
        (make_results(), KEPT, ("unclear", "not tested")),
        (make_results(retrained=False), FAIR, ("unclear", "not retrained")),
        (make_results(), FAIR, ("note", "fair")),
        (make_results(), "Is there a guarantee?", ("unclear", "no certificate")),
        (make_results((np.nan, 0.1, 0.1)), "Are the numbers usable?", ("bad", "no")),
    ],
)
def test_findings(results, question, answer):
    assert words(results)[question] == answer


def test_findings_have_interval_and_n():
    assert "0.900 [0.880, 0.920] (n = 90)" in text_of(audited(), SEEN)
    assert "1 % [0 %, 2 %] (n = 90)" in text_of(audited(), KEPT)
    assert "0.0000 [-0.0028, 0.0028] (n = 90)" in text_of(make_results(), FAIR)
    assert SEEN not in words(make_results((np.nan, 0.1, 0.1)))


def test_a_retrained_model_that_tells_the_sets_apart_is_no_fair_yardstick():
    results = make_results()
    for mean in (-0.01, 0.01):
        results["contrasts"]["retrained"]["mse_hole"] = stat(mean, 0.002, n=90)
        assert words(results)[FAIR] == ("unclear", "sets differ")


def test_cost():
    results, question = audited(), "Was it cheaper than retraining?"
    assert words(results)[question] == ("good", "cheaper")
    assert words(make_results())[question] == ("note", "cheaper")
    results["cost"]["wall_ratio"] = 1.2
    assert words(results)[question] == ("unclear", "mixed")
    results["cost"] = dict.fromkeys(results["cost"], 3.0)
    assert words(results)[question] == ("bad", "dearer")
    for flops, text in ((0.125, "12 % of its FLOPs."), (None, "FLOPs were not counted.")):
        results["cost"]["flops_ratio"] = flops
        assert text in text_of(results, question)
    assert "FLOPs not counted" in report.summary(results)


SURE = "Is there a guarantee?"


@pytest.mark.parametrize(
    ("change", "answer", "text"),
    [
        ({}, ("good", "certified"), "Certified: ε is at most 8 at δ = 1e-05, against the same"),
        ({}, ("good", "certified"), "Tested: attacked, the mechanism shows an ε of at least"),
        ({"upper": {"verified": False, "reason": "epsilon: expected 9."}}, ("bad", "not verified"),
         "guarantees nothing. epsilon: expected 9."),
        ({"lower": {"epsilon": 8.5}}, ("bad", "refuted"), "there is a bug, nothing is guaranteed"),
        ({"lower": {"self_test": False}}, ("bad", "refuted"), "there is a bug"),
        # Who says so, and not what it says of itself.
        ({"lower": {"epsilon": 8.5, "refuted": False}}, ("bad", "refuted"), "there is a bug"),
        ({"lower": {"reason": "no audit"}}, ("unclear", "certified"), "was not tested"),
        ({"upper": {"cautions": ["epsilon = 20"]}}, ("unclear", "certified"), "Caution: epsilon"),
        ({"record": {"certifier": "reference"}}, ("good", "certified"), "public weights, which"),
    ],
)  # fmt: skip
def test_the_guarantee(change, answer, text):
    results = certified(make_results(), **change)
    assert words(results)[SURE] == answer and text in text_of(results, SURE)


@pytest.fixture
def no_charts(monkeypatch):
    """Charts take most of the time."""
    for name in ("_overview", "_histograms", "_curves"):
        monkeypatch.setattr(report, name, lambda *args: [])


def section(path, name):
    return re.search(rf'<section id="{name}">.*?</section>', Path(path).read_text(), re.S)[0]


def test_what_another_epsilon_takes_is_drawn_of_a_verified_certificate_only(tmp_path, no_charts):
    points = [[1.0, 5435.0], [8.0, 874.5], [32.0, 299.0]]

    def shown(**upper):
        results = certified(make_results(), upper={"tradeoff": points, **upper})
        return section(report.write(make_workdir(tmp_path, results, rows=1)), "certificate")

    page = shown()
    assert "What another ε takes" in page and "ε 8: 874 radii" in page and "<svg" in page
    assert "mathdefault" not in page and re.search(r">16</text>", page)  # ticks
    assert "error on unseen images original 0." in page
    for upper in ({"verified": False, "reason": "no"}, {"tradeoff": []}):
        assert "What another ε takes" not in shown(**upper)
    with pytest.raises(ValueError, match="tradeoff"):
        shown(tradeoff=[[1.0, "many"]])


def test_the_two_bounds_are_side_by_side_and_never_mixed_up(tmp_path, no_charts):
    write = lambda **change: report.write(  # noqa: E731
        make_workdir(tmp_path, certified(make_results(), **change), rows=1)
    )
    path = write()
    assert_self_contained(Page(path))
    upper, lower = section(path, "certificate").split("<h3>Tested, a lower bound</h3>")
    for text in (
        "Certified, an upper bound",
        "ε ≤ 8<",
        "verified",
        "1e-05",
        "retrain: the same",
        "noisy_finetune",
        "in each of 20 steps",
        "gdp",
        "nobody looked",
        "In 40 %.",
    ):
        assert text in upper
    for text in (
        "ε ≥ 3.21",
        "4,000 and 4,000 runs",
        "0.01: the bound exceeds",
        "mechanism alone",
        "self-test passed",
        "fresh noise in each",
        "refutes nothing, proves nothing",
    ):
        assert text in lower and text not in upper
    summary = lower.index("<details>")
    assert (
        "3.21" not in upper and "ε ≤" not in lower[:summary] and "verified" not in lower[:summary]
    )

    refused = section(write(upper={"verified": False, "reason": "a byte <differs>"}), "certificate")
    assert "ε ≤" not in refused and "a byte &lt;differs&gt;" in refused
    assert "not verified" in refused and "which is not guaranteed" in refused
    unreadable = {"verified": False, "reason": "altered", "record": None}
    refused = section(write(upper=unreadable), "certificate")
    assert "ε ≤" not in refused and "ε ≥ 3.21" in refused and "refutes" not in refused
    refuted = section(write(lower={"epsilon": 8.5}), "certificate")
    assert "ε ≤" not in refuted and "refuted by the test" in refuted
    assert "refutes the certificate" in refuted
    untested = section(write(lower={"reason": "not of this certificate"}), "certificate")
    assert "not tested" in untested and "ε ≥" not in untested


def test_a_bound_that_is_not_there_has_its_reason(tmp_path, no_charts):
    results = certified(make_results())
    results["certificate"]["lower"] = {"reason": "nobody attacked it"}
    assert words(results)[SURE] == ("unclear", "certified")
    assert "Not tested." in report.summary(results)
    page = section(report.write(make_workdir(tmp_path, results, rows=1)), "certificate")
    assert "nobody attacked it" in page and "ε ≤" in page and "ε ≥" not in page

    unread = {"verified": False, "reason": "damaged", "record": None, "cautions": []}
    results["certificate"]["upper"] = unread
    assert words(results)[SURE] == ("bad", "not verified")
    page = section(report.write(make_workdir(tmp_path, results, rows=1)), "certificate")
    assert "damaged" in page and "ε ≤" not in page and "ε ≥" not in page


@pytest.mark.parametrize("name", sorted(set(RECORD) - {"mu"}))  # not shown
def test_a_record_that_is_not_whole_is_damage(tmp_path, name):
    results = certified(make_results(), upper={"verified": False})
    del results["certificate"]["upper"]["record"][name]
    with pytest.raises(ValueError, match=f"record/{name} is missing"):
        report.write(make_workdir(tmp_path, results, rows=1))


def test_a_guarantee_that_is_not_whole_is_damage(tmp_path):
    results = certified(make_results())
    del results["certificate"]["upper"]["record"]["delta"], results["certificate"]["lower"]["n"]
    with pytest.raises(ValueError, match="record/delta is missing") as error:
        report.write(make_workdir(tmp_path, results, rows=1))
    assert "lower/n is missing" in str(error.value)
    old = make_results() | {"certificate": RECORD}
    with pytest.raises(ValueError, match="certificate/upper is missing"):
        report.write(make_workdir(tmp_path, old, rows=1))


def test_displacement_is_shown_between_its_bounds(tmp_path, no_charts):
    results = make_results()
    results["displacement"]["models"]["unlearned"]["retain"] |= {"held": 88}
    moved = {"unlearned": 61, "retrained": 70}
    results["displacement"]["wanted"] = {"lambda": 0.2, "phase": "decouple", "moved": moved}
    text = Page(report.write(make_workdir(tmp_path, results, rows=1))).text
    assert "0.0400 ≤ 0.2100 ≤ 0.5000" in text and "88 of 90: an error in the evaluation" in text
    assert "λ = 0.2 on average" in text
    assert "61 of 90 forget images have moved by at least λ under the unlearned model" in text
    del results["displacement"]
    text = Page(report.write(make_workdir(tmp_path, results, rows=1))).text
    assert "It was not measured beside its bounds" in text


def test_summary_fits_a_terminal():
    results = make_results(unlearned=(0.13, 0.112, 0.075))
    results["request"]["text"] *= 5
    lines = report.summary(results).splitlines()
    assert len(lines) < 20 and max(map(len, lines)) <= 80
    assert re.fullmatch(r"unlearned +0\.1300 ± 0\.0020 +0\.1120 ± 0\.0020 +0\.0750 .*", lines[4])
    assert "not tested" in lines[7] and "steps 25 %" in lines[6]
    both = "Certified: epsilon <= 8 at delta 1e-05. Tested: epsilon >= 3.21 (N = 4000)."
    assert report.summary(certified(results)).splitlines()[7] == both
    refuted = report.summary(certified(results, lower={"epsilon": 9.0}))
    unverified = report.summary(certified(results, upper={"verified": False}))
    assert "Certified" not in refuted + unverified and "refuted" in refuted


def test_numbers_have_the_digits_they_merit():
    cases = [(0.123456, 0.012), (-1234.5, 30), (0.5, 0.0), (7.0, 1.2)]
    texts = [value(stat(*case)).replace(MINUS, "-") for case in cases]
    assert texts == ["0.123", "-1234", "0.5", "7.0"]
    assert [interval(stat(40, 0.0, n=n)) for n in (1, 2)] == ["no interval", "all alike"]
    texts = [percent(ratio) for ratio in (0.0312, 0.05, 0.314, 0.0996, 3.14)]
    assert texts == ["3.1 %", "5 %", "31 %", "10 %", "3.1 times"]
