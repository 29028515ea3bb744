"""The report: offline, escaped, complete, deterministic, and its verdict says what numbers say."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from unlearn_jax import report
from unlearn_jax.page import COLOURS, MINUS, percent, value

SETS = ("forget", "holdout", "retain")
ERRORS = {  # mean error on forget, holdout, retain
    "original": (0.060, 0.100, 0.060),
    "unlearned": (0.099, 0.101, 0.062),
    "retrained": (0.100, 0.100, 0.060),
}
RESULTS = """{"format": 1, "name": "quickstart", "created": "2026-01-02T03:04:05Z", "seed": 0,
"config": {"model": {"name": "autoencoder"}, "batch_size": 64}, "versions": {"jax": "0.10.2"},
"hardware": "2 CPU devices", "task": {"name": "inpaint", "hole": 0.5}, "confidence": 0.95,
"request": {"text": "Forget 250 of 2,500 training images: 10 % of each class.", "kind": "random"},
"split": {"hash": "sha256:abababab", "n": {"forget": 250, "holdout": 500, "retain": 2250}},
"metrics": {
  "mse_hole": {"label": "Error on the hole", "unit": "images in [-1, 1]", "better": "lower"},
  "psnr": {"label": "PSNR", "unit": "dB", "better": "higher"},
  "displacement": {"label": "Displacement", "unit": "RMS distance", "better": null}},
"stages": {
  "original": {"steps": 400, "wall_s": 40.1, "examples": 25600, "phases": [{"name": "train",
    "objective": "supervised", "first_step": 0, "last_step": 400, "stopped_by": "steps"}]},
  "unlearned": {"steps": 100, "wall_s": 10, "examples": 6400, "phases": [{"name": "decouple",
    "objective": "ascent", "first_step": 0, "last_step": 40, "stopped_by": "displacement >= 0.2"},
    {"name": "repair", "objective": "distance", "first_step": 40, "last_step": 100,
    "stopped_by": "steps"}]}},
"certificate": null}"""


def stat(mean, half, **more):
    return {"mean": mean, "ci_low": mean - half, "ci_high": mean + half, **more}


def make_results(unlearned=None, original=None, retrained=True, half=0.002):
    """Returns a results.json whose mean errors are those of ERRORS, or as given."""
    results, given = json.loads(RESULTS), {"original": original, "unlearned": unlearned}
    errors = {model: given.get(model) or means for model, means in ERRORS.items()}
    if retrained:
        results["stages"]["retrained"] = results["stages"]["original"]
        gaps = zip(SETS, np.subtract(errors["unlearned"], errors["retrained"]), strict=True)
        results["gaps"] = {name: {"mse_hole": stat(float(gap), half)} for name, gap in gaps}
        results["cost"] = dict.fromkeys(("steps_ratio", "wall_ratio", "examples_ratio"), 0.25)
    else:
        del errors["retrained"]
    results["evaluation"] = {model: {} for model in errors}
    for model, means in errors.items():
        for name, mean in zip(SETS, means, strict=True):
            n = results["split"]["n"][name]
            metrics = {"mse_hole": stat(mean, half, n=n), "psnr": stat(9 - mean, 0.2, n=n)}
            moved = {} if model == "original" else {"displacement": stat(0.21, 0.004, n=n)}
            results["evaluation"][model][name] = metrics | moved
    contrasts = {m: {"mse_hole": stat(e[0] - e[1], 1.4 * half)} for m, e in errors.items()}
    three = {"lower": 0.04, "measured": 0.21, "upper": 0.5}
    results["displacement"] = {"wanted": None, "models": {}}
    for model in set(errors) - {"original"}:
        moved = {s: {"example": three, "rms": three, "held": 90, "n": 90} for s in SETS}
        results["displacement"]["models"][model] = moved
    return results | {"contrasts": contrasts}


RECORD = {"mechanism": "noisy_finetune", "certifier": "retrain", "epsilon": 8.0, "delta": 1e-5,
          "mu": 1.67, "noise_std": 0.5, "sensitivity": 2.0, "steps": 20, "accountant": "gdp",
          "conditional": False, "parameters": 6144, "assumptions": ["nobody looked"]}  # fmt: skip
LOWER = {"reason": "", "epsilon": 3.21, "n": [4000, 4000], "significance": 0.01, "delta": 1e-5,
         "refuted": False, "self_test": True, "repeated": "the mechanism alone",
         "assumptions": ["fresh noise in each"]}  # fmt: skip


def certified(results, upper=(), lower=(), record=()):
    """Returns the results with a verified certificate and an audit, or as given."""
    up = {"verified": True, "reason": "", "record": RECORD | dict(record), "cautions": []}
    both = {"upper": up | dict(upper), "lower": LOWER | dict(lower), "clipping": "In 40 %."}
    return results | {"certificate": both}


def make_workdir(root, results, size=32, rows=8):
    """Returns `root` filled with the files of a finished request that fit `results`."""
    rng = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    (root / "results.json").write_text(json.dumps(results))
    examples, grids = {}, {}
    y, x = np.mgrid[:size, :size] / size
    for name in SETS:
        grids[f"{name}/index"] = rng.choice(50000, rows)
        wave = np.sin(rng.uniform(1, 9, [rows, 1, 1, 3]) * (x + y)[..., None])
        truth = np.clip(127 + 90 * wave + 8 * rng.standard_normal(wave.shape), 0, 255)
        hidden = np.where(x[..., None] < 0.5, truth, 127)
        grids |= {f"{name}/truth": truth, f"{name}/input": hidden}
        for model in results["evaluation"]:
            mean = results["evaluation"][model][name]["mse_hole"]["mean"]
            errors = mean * np.exp(0.6 * rng.standard_normal(200) - 0.18)
            examples[f"{model}/{name}/mse_hole"] = errors.astype(np.float32)
            noise = 127 * mean**0.5 * rng.standard_normal(truth.shape)
            grids[f"{name}/{model}"] = np.clip(truth + noise, 0, 255)
    pixels = {k: v if v.ndim == 1 else v.astype(np.uint8) for k, v in grids.items()}
    np.savez(root / "examples.npz", **examples)
    np.savez(root / "grids.npz", **pixels)
    for model, stage in results["stages"].items():
        (root / model).mkdir(exist_ok=True)
        lines = []
        for phase in stage["phases"]:
            for step in range(phase["first_step"], phase["last_step"], 5):
                row = {"step": step, "phase": phase["name"], "loss": 0.06 + 0.5 ** (1 + step / 60)}
                if model == "unlearned":
                    term = "forget" if phase["name"] == "decouple" else "retain"
                    row |= {term: 1 / (step + 9), "displacement": min(step, 40) / 188}
                if step % 20 == 0:
                    row |= {"probe_forget": 0.08 + row["loss"] / 9, "probe_holdout": 0.11}
                lines.append(json.dumps(row))
        (root / model / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return root


class Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.html = Path(path).read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, text or "") for name, text in attrs]

    def handle_data(self, data):
        self.text += data.replace(MINUS, "-")

    def values(self, *names):
        return [text for _, name, text in self.attributes if name in names]


def assert_self_contained(page):
    allowed = r"data:image/png;base64,[\w+/=]+|#[\w-]+"
    assert all(re.fullmatch(allowed, text) for text in page.values("src", "href", "xlink:href"))
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    names = {name for _, name, _ in page.attributes}
    names = {"on" if name.startswith("on") else name for name in names}
    assert not names & {"on", "srcset", "action", "poster", "background", "data", "xmlns"}
    styles = re.findall(r"<style>(.*?)</style>", page.html, re.S) + page.values("style")
    assert not any("url(" in style or "@import" in style for style in styles)
    assert all(re.fullmatch(r"url\(#[\w-]+\)", text) for text in page.values("clip-path"))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("request"), make_results())


@pytest.fixture(scope="module")
def page(workdir):
    return Page(report.write(workdir))


def words(results):
    return {finding.question: (finding.status, finding.word) for finding in report.verdict(results)}


def text_of(results, question):
    texts = {finding.question: finding.text for finding in report.verdict(results)}
    return texts[question].replace(MINUS, "-")


def test_page_is_self_contained_and_small(page):
    assert_self_contained(page)
    assert "http-equiv" in page.html and not re.search("https?:", page.html)
    assert len(page.html) < 2e6


def test_ids_are_unique_and_every_reference_resolves(page):
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:href="|url\()#([\w-]+)', page.html)
    assert len(references) > 20 and set(references) <= set(ids)


def test_page_is_complete_and_in_order(page):
    wanted = ["verdict", "headline", "images", "errors", "displacement", "certificate", "metrics"]
    wanted += ["curves", "cost", "phases", "configuration", "words"]
    assert [text for tag, name, text in page.attributes if tag + name == "sectionid"] == wanted
    assert page.tags.count("svg") == 1 + 3 + 2 + 3 + 2  # overview, histograms, curves of 3 stages
    for text in ("Forget 250 of 2,500", "displacement >= 0.2", "sha256:abababab", "2 CPU devices"):
        assert text in page.text
    assert "do not cover the variation between training runs" in page.text.replace("\n", " ")


def test_images_on_the_page_are_those_of_the_grids(page, workdir):
    grids = np.load(workdir / "grids.npz")
    columns = ("input", "original", "unlearned", "retrained", "truth")
    wanted = [grids[f"{s}/{c}"][row] for s in SETS for row in range(8) for c in columns]
    for source, image in zip(page.values("src"), wanted, strict=True):
        content = base64.b64decode(source.partition(",")[2])
        np.testing.assert_array_equal(Image.open(io.BytesIO(content)), image)
    assert page.values("alt")[0] == f"forget example {grids['forget/index'][0]}: input"
    assert "0.0990 [0.0970, 0.1010]" in page.text  # unlearned on forget
    assert "-0.0400 [-0.0428, -0.0372]" in page.text  # original, forget minus holdout
    assert "2,250" in page.text and "neither direction is better" in page.text


def test_charts_follow_the_colour_scheme(page):
    charts = re.findall(r"<svg.*?</svg>", page.html, re.S)
    assert all("currentColor" in chart and "aria-label" in chart for chart in charts)
    assert not any("#000000" in chart or "#ffffff" in chart for chart in charts)
    assert all(sum(colour in c for c in charts) >= 3 for colour in COLOURS.values())


def test_hostile_names_are_shown_not_obeyed(tmp_path):
    hostile = '</style></svg><script>alert(1)</script>"><img src=http://evil/ onerror=x>$\\x$'

    def poison(tree):
        if isinstance(tree, dict):
            return {key: poison(branch) for key, branch in tree.items()}
        leaves = [poison(leaf) for leaf in tree] if isinstance(tree, list) else tree
        return hostile if isinstance(tree, str) else leaves

    results = poison(make_results())
    results["name"] = "\x1b[2J" + hostile
    results["config"][hostile] = results["versions"][hostile] = hostile
    results["stages"]["unlearned"]["phases"][0]["name"] = "<script>$\\bad$"
    page = Page(report.write(make_workdir(tmp_path, results)))
    assert_self_contained(page)
    assert page.tags.count("img") == 8 * 5 * 3 and page.text.count("<script>alert(1)") > 8
    assert "<script>$\\bad$" in page.text
    assert "\x1b" not in report.summary(results)


SEEN, FAIR = "Was there something to forget?", "Is retraining a fair yardstick?"
GONE, KEPT = "Is it forgotten?", "Is quality kept?"


@pytest.mark.parametrize(
    ("change", "question", "answer"),
    [
        ({}, SEEN, ("good", "memorised")),
        ({"original": (0.12, 0.1, 0.1)}, SEEN, ("unclear", "nothing visible")),
        ({}, GONE, ("good", "matched")),
        ({"unlearned": (0.07, 0.1, 0.06)}, GONE, ("bad", "under-forgotten")),
        ({"unlearned": (0.13, 0.1, 0.06)}, GONE, ("bad", "over-forgotten")),
        # 3 % away with a narrow interval: a difference, but too small to matter.
        ({"unlearned": (0.097, 0.1, 0.06), "half": 0.001}, GONE, ("good", "matched")),
        # 20 % away, yet the interval contains 0.
        ({"unlearned": (0.08, 0.1, 0.06), "half": 0.025}, GONE, ("good", "matched")),
        # Nothing was memorised, so a match proves nothing.
        ({"original": (0.1, 0.1, 0.1)}, GONE, ("unclear", "matched")),
        ({"unlearned": (0.1, 0.104, 0.062)}, KEPT, ("good", "kept")),
        ({"unlearned": (0.1, 0.106, 0.06)}, KEPT, ("bad", "damaged")),
        ({"unlearned": (0.1, 0.1, 0.07)}, KEPT, ("bad", "damaged")),
        # The worse of original and retrained sets the standard.
        ({"original": (0.06, 0.12, 0.06), "unlearned": (0.1, 0.12, 0.06)}, KEPT, ("good", "kept")),
        ({"unlearned": (0.07, 0.1, 0.06), "retrained": False}, GONE, ("bad", "under-forgotten")),
        ({"retrained": False}, GONE, ("good", "matched")),
        ({"retrained": False}, FAIR, ("unclear", "not retrained")),
        ({}, FAIR, ("good", "fair")),
        ({}, "Is there a guarantee?", ("unclear", "no certificate")),
        ({"unlearned": (np.nan, 0.1, 0.1)}, "Are the numbers usable?", ("bad", "no")),
    ],
)
def test_verdict(change, question, answer):
    assert words(make_results(**change))[question] == answer


def test_verdict_states_how_far_it_went():
    text = text_of(make_results(unlearned=(0.07, 0.1, 0.06)), GONE)
    assert "0.0700" in text and "0.1000" in text and "-0.0300 [-0.0320, -0.0280]" in text
    assert "30 % of that" in text and "it went 25 %" in text and "still knows" in text
    text = text_of(make_results(unlearned=(0.08, 0.1, 0.06), half=0.025), GONE)
    assert "rules out gaps beyond 45 %" in text
    assert "it went" not in text_of(make_results(original=(0.1, 0.1, 0.1)), GONE)
    text = text_of(make_results(unlearned=(0.1, 0.104, 0.05)), KEPT)
    assert "17 % below on retain and 4 % above on holdout" in text


def test_verdict_says_when_it_is_weak():
    assert GONE not in words(make_results(unlearned=(np.nan, 0.1, 0.1)))
    results = make_results(original=(0.1, 0.1, 0.1))
    assert "conclusions below are weak" in text_of(results, SEEN)
    assert "not a random sample" not in text_of(results, SEEN)
    results["request"]["kind"] = "classes"
    assert "not a random sample" in text_of(results, SEEN)


def test_a_retrained_model_that_tells_the_sets_apart_is_no_fair_yardstick():
    results = make_results()
    for mean in (-0.01, 0.01):
        results["contrasts"]["retrained"]["mse_hole"] = stat(mean, 0.002)
        assert words(results)[FAIR] == ("unclear", "sets differ")


def test_verdict_on_cost():
    results, question = make_results(), "Was it cheaper than retraining?"
    assert words(results)[question] == ("good", "cheaper")
    results["cost"]["wall_ratio"] = 1.2
    assert words(results)[question] == ("unclear", "mixed")
    results["cost"] = dict.fromkeys(results["cost"], 3.0)
    assert words(results)[question] == ("bad", "dearer")


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
def test_verdict_on_the_guarantee(change, answer, text):
    results = certified(make_results(), **change)
    assert words(results)[SURE] == answer and text in text_of(results, SURE)


@pytest.fixture
def no_charts(monkeypatch):
    """Charts take most of the time."""
    for name in ("_overview", "_histograms", "_curves"):
        monkeypatch.setattr(report, name, lambda *args: [])


def section(path, name):
    return re.search(rf'<section id="{name}">.*?</section>', Path(path).read_text(), re.S)[0]


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


def test_without_a_retrained_model_the_page_says_so(tmp_path):
    page = Page(report.write(make_workdir(tmp_path, make_results(retrained=False), rows=2)))
    assert "There is no retrained model" in page.text and "retraining to compare with" in page.text
    assert page.tags.count("img") == 2 * 4 * 3
    assert "retrained" not in " ".join(page.values("alt", "aria-label"))


def test_summary_fits_a_terminal():
    results = make_results(unlearned=(0.13, 0.112, 0.075))
    results["request"]["text"] *= 5
    lines = report.summary(results).splitlines()
    assert len(lines) < 20 and max(map(len, lines)) <= 80
    assert re.fullmatch(r"unlearned +0\.1300 ± 0\.0020 +0\.1120 ± 0\.0020 +0\.0750 .*", lines[4])
    assert "over-forgotten" in lines[9] and "steps 25 %" in lines[6]
    both = "Certified: epsilon <= 8 at delta 1e-05. Tested: epsilon >= 3.21 (N = 4000)."
    assert report.summary(certified(results)).splitlines()[7] == both
    refuted = report.summary(certified(results, lower={"epsilon": 9.0}))
    unverified = report.summary(certified(results, upper={"verified": False}))
    assert "Certified" not in refuted + unverified and "refuted" in refuted


def test_numbers_have_the_digits_they_merit():
    cases = [(0.123456, 0.012), (-1234.5, 30), (0.5, 0.0), (7.0, 1.2)]
    texts = [value(stat(*case)).replace(MINUS, "-") for case in cases]
    assert texts == ["0.123", "-1234", "0.5000", "7.0"]
    texts = [percent(ratio) for ratio in (0.0312, 0.05, 0.314, 0.0996, 3.14)]
    assert texts == ["3.1 %", "5 %", "31 %", "10 %", "3.1 times"]


@pytest.mark.parametrize(
    "name", ["results.json", "examples.npz", "grids.npz", "unlearned/metrics.jsonl"]
)
def test_missing_and_damaged_files_are_named_with_their_remedy(tmp_path, name):
    make_workdir(tmp_path, make_results(), rows=1)
    path = tmp_path / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3] + b"\n!" + content[len(content) // 2 :])
    with pytest.raises(ValueError, match=rf"(?s){name} is damaged.*unlearn_jax\.pipeline"):
        report.write(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing.*unlearn_jax\.pipeline"):
        report.write(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_all_missing_entries_are_listed_at_once(tmp_path):
    results = make_results()
    make_workdir(tmp_path, results, rows=1)
    del results["evaluation"]["unlearned"]["retain"], results["cost"]["wall_ratio"]
    (tmp_path / "results.json").write_text(json.dumps(results | {"seed": "zero"}))
    with pytest.raises(ValueError) as error:
        report.write(tmp_path)
    for part in ("/evaluation/unlearned/retain is missing", "/cost/wall_ratio is missing", "/seed"):
        assert part in str(error.value)


def test_arrays_of_the_wrong_shape_are_refused(tmp_path):
    make_workdir(tmp_path, make_results(), rows=1)
    grids = dict(np.load(tmp_path / "grids.npz"))
    grids["retain/truth"] = grids["retain/truth"][0]
    np.savez(tmp_path / "grids.npz", **grids)
    with pytest.raises(ValueError, match=r"retain/truth: expected uint8, 4 axes; got uint8 \[32"):
        report.write(tmp_path)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_pickles_are_never_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_workdir(tmp_path, make_results(), rows=1)
    arrays = dict(np.load(tmp_path / "examples.npz"))
    arrays["bomb"] = np.array([Bomb()], dtype=object)
    np.savez(tmp_path / "examples.npz", **arrays)
    with pytest.raises(ValueError, match="allow_pickle"):
        report.write(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_only_a_truncated_last_log_line_is_forgiven(tmp_path):
    make_workdir(tmp_path, make_results(), rows=1)
    log = tmp_path / "unlearned/metrics.jsonl"
    whole = report.write(tmp_path).read_bytes()
    log.write_bytes(log.read_bytes() + b'{"step": 100, "loss": 0.')
    assert report.write(tmp_path).read_bytes() == whole
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([lines[0][:9] + b"\n", *lines[1:]]))
    with pytest.raises(ValueError, match="metrics[.]jsonl is damaged"):
        report.write(tmp_path)


def test_same_inputs_give_the_same_bytes(workdir):
    first = report.write(workdir).read_bytes()
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "text.usetex": True}):
        assert report.write(workdir).read_bytes() == first


def test_binary_runs_and_imports_no_jax(workdir):
    code = (
        "import runpy, sys; sys.argv = ['report', '--workdir', sys.argv[1]]\n"
        "try: runpy.run_module('unlearn_jax.report', run_name='__main__')\n"
        "finally: assert 'jax' not in sys.modules, 'jax was imported'"
    )
    first = report.write(workdir).read_bytes()
    command = [sys.executable, "-c", code, str(workdir)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert "Is it forgotten?" in done.stdout and "report.html" in done.stdout
    assert (workdir / "report.html").read_bytes() == first
