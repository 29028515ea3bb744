"""The leaderboard: its arithmetic by hand, what it leaves out, and a safe, complete page."""

import base64
import copy
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from tests.test_report import Page, assert_self_contained
from unlearn_jax import leaderboard
from unlearn_jax import leaderboard_plots as plots
from unlearn_jax import leaderboard_scores as scores
from unlearn_jax.report import MINUS

RESULTS = """{"format": 1, "name": "cifar-like comparison", "created": "2026-01-02T03:04:05Z",
"command": "python -m unlearn_jax.compare --config=configs/compare.py --workdir=runs/comparison",
"hardware": "2 CPU devices", "versions": {"jax": "0.10.2"}, "config": {"batch_size": 64},
"confidence": 0.95, "request": {"kind": "random", "text": "Forget 250 of 2,500 training images."},
"poison": {"text": "Half of the forget images carry a 6 x 6 trigger."},
"split": {"hash": "sha256:abababab", "n": {"train": 2500, "forget": 250, "retain": 2250,
  "holdout": 500}}, "seeds": [1, 2, 3],
"utility": {"retain_error": {"label": "retain error", "unit": "MSE on the hole"},
  "holdout_error": {"label": "holdout error", "unit": "MSE on the hole"}}}"""
AUDITS = {  # label, unit, null
    "forget_error": ("forget error", "MSE on the hole", "the retrained model's"),
    "membership_auroc": ("membership AUROC", "AUROC", "0.5: no better than chance"),
    "score_spread": ("score spread", "ratio of sd", "1: as spread as holdout"),
    "backdoor_success": ("backdoor success", "share of images", "the retrained model's"),
}
UTILITY = ("retain_error", "holdout_error")
MODELS = {  # kind, values of the audits, values of the utility, cost
    "original": ("original", (0.060, 0.80, 1.6, 0.97), (0.060, 0.090), None),
    "retrained": ("retrained", (0.100, 0.52, 1.0, 0.01), (0.061, 0.089), 1.0),
    "calibrated": ("method", (0.0985, 0.53, 1.03, 0.05), (0.0615, 0.0905), 0.04),
    "gradient_ascent": ("method", (0.160, 0.31, 2.4, 0.002), (0.083, 0.118), 0.02),
    "noisy_label": ("method", (0.088, 0.61, 1.2, 0.30), (0.064, 0.091), 0.08),
    "retain_only": ("method", (0.073, 0.70, 1.4, 0.80), (0.059, 0.088), 0.30),
    "l2_encoder": ("method", (0.105, 0.55, 1.3, 0.10), (0.063, 0.092), 0.15),
}


def make_results(seeds=(1, 2, 3), noise=0.01):
    """Returns a results.json of five methods; values of a seed are those of MODELS, times noise."""
    rng, results = np.random.default_rng(0), json.loads(RESULTS) | {"seeds": list(seeds)}
    names = ("label", "unit", "null")
    results["audits"] = {key: dict(zip(names, texts, strict=True)) for key, texts in AUDITS.items()}
    results["models"] = {}
    for name, (kind, audits, utility, cost) in MODELS.items():
        model = {"kind": kind, "label": name.replace("_", " "), "source": "a paper", "seeds": {}}
        model["phases"] = [{"objective": name, "steps": 40}] * (kind == "method")
        for seed in seeds:
            x = {
                k: v * (1 + noise * rng.standard_normal())
                for k, v in zip(AUDITS, audits, strict=True)
            }
            u = {
                k: v * (1 + noise * rng.standard_normal())
                for k, v in zip(UTILITY, utility, strict=True)
            }
            model["seeds"][str(seed)] = {
                "audits": {
                    k: {"value": v, "ci_low": v, "ci_high": v, "n": 250} for k, v in x.items()
                },
                "utility": {k: {"value": v} for k, v in u.items()},
                "cost": None if cost is None else {"flops_fraction": cost, "steps": 40},
            }
        results["models"][name] = model
    return results


def small(**models):
    """Returns a results.json of one audit "a" and one utility "u": name=(audits, utilities)."""
    results = make_results()
    results["audits"] = {"a": {"label": "audit", "unit": "", "null": ""}}
    results["utility"] = {"u": {"label": "error", "unit": ""}}
    results["models"] = {}
    for name, (audits, utility) in models.items():
        seeds = {
            str(seed): {"audits": {"a": {"value": a}}, "utility": {"u": {"value": u}}}
            | {"cost": {"flops_fraction": 0.1 * seed}}
            for seed, (a, u) in enumerate(zip(audits, utility, strict=True), 1)
        }
        kind = name if name in scores.REFERENCES else "method"
        results["models"][name] = {"kind": kind, "label": name, "source": "", "seeds": seeds}
        results["models"][name]["phases"] = []
    return results


def make_workdir(root, results, n=700, size=32, triggered=True):
    rng = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    (root / "results.json").write_text(json.dumps(results))
    examples = {"index/forget": np.sort(rng.choice(50_000, n, replace=False))}
    hard = 0.5 * rng.standard_normal(n)
    for name, model in results["models"].items():
        for seed in model["seeds"]:
            noise = (0.05 if model["kind"] == "retrained" else 0.2) * rng.standard_normal(n)
            examples[f"error/{name}/{seed}"] = np.exp(hard + noise - 2.5).astype(np.float32)
    grids, (y, x) = {}, np.mgrid[:size, :size] / size
    for part in ("forget", "triggered")[: 1 + triggered]:
        wave = np.sin(rng.uniform(1, 9, [8, 1, 1, 3]) * (x + y)[..., None])
        truth = np.clip(127 + 90 * wave, 0, 255)
        grids |= {f"{part}/truth": truth, f"{part}/input": np.where(x[..., None] < 0.5, truth, 127)}
        for name in results["models"]:
            grids[f"{part}/{name}"] = np.clip(truth + 25 * rng.standard_normal(truth.shape), 0, 255)
    np.savez(root / "examples.npz", **examples)
    np.savez(root / "grids.npz", **{key: image.astype(np.uint8) for key, image in grids.items()})
    return root


@pytest.fixture(scope="module")
def results():
    return make_results()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, results):
    return make_workdir(tmp_path_factory.mktemp("comparison"), results)


@pytest.fixture(scope="module")
def page(workdir):
    return Page(leaderboard.write(workdir))


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


def test_nothing_to_rank_is_said(tmp_path, results):
    results = copy.deepcopy(results)
    for name, model in results["models"].items():
        for seed in model["seeds"].values():
            for key in AUDITS:
                seed["audits"][key]["value"] = None if name == "original" else 0.5
    assert leaderboard.findings(results)[0].word == "nobody"
    page = Page(leaderboard.write(make_workdir(tmp_path, results)))
    assert "nothing can be ranked" in page.text and page.text.count("Left out:") == len(AUDITS)


def test_findings_judge_the_first(results):
    found = {f.question: f for f in leaderboard.findings(results)}
    first = found["Who comes closest to retraining?"]
    assert (first.status, first.word) == ("good", "calibrated")
    assert "below those of all others" in first.text and "met by calibrated." in first.text
    assert [f.word for f in found.values()] == ["calibrated", *["met"] * 4, "memorised"]
    worse = copy.deepcopy(results)
    del worse["models"]["calibrated"]
    assert [f.word for f in leaderboard.findings(worse)[:5]] == [
        "l2 encoder",
        *["missed", "missed", "met", "missed"],
    ]
    assert "met by no method" in leaderboard.findings(worse)[0].text


def test_overlapping_intervals_are_no_clear_lead(results):
    results = copy.deepcopy(results)
    results["models"]["twin"] = results["models"]["calibrated"] | {"label": "twin"}
    first = leaderboard.findings(results)[0]
    assert first.status == "unclear" and "do not tell it from twin." in first.text


def test_memorisation_is_stated(results):
    found = leaderboard.memorised(results)
    assert found.word == "memorised" and f"({MINUS}33." in found.text
    results = copy.deepcopy(results)
    for seed in results["models"]["original"]["seeds"].values():
        seed["audits"]["forget_error"]["value"] = seed["utility"]["holdout_error"]["value"]
    assert leaderboard.memorised(results).status == "unclear"
    results["models"]["original"]["seeds"]["1"]["audits"]["forget_error"]["value"] = None
    assert leaderboard.memorised(results).word == "–"
    del results["audits"]["forget_error"]
    assert leaderboard.memorised(results).word == "–"


def test_markdown_is_complete(results):
    text = leaderboard.markdown(results)
    for part in (
        "Forget 250 of 2,500 training images.",
        "6 x 6 trigger",
        "    python -m unlearn_jax.compare --config=configs/compare.py",
        "2026-01-02T03:04:05Z on 2 CPU devices",
        "retain 2,250",
        "Seeds: 1, 2, 3",
        "0.5: no better than chance",
        "95 % Student t interval",
    ):
        assert part in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(MODELS)
    assert {line.count("|") for line in table} == {2 + 4 + len(AUDITS) + 1}


def test_hostile_names_are_shown_not_obeyed(tmp_path, results):
    hostile = '</style></svg><script>alert(1)</script>|"><img src=http://evil/ onerror=x>$\\x$\n# x'
    results = copy.deepcopy(results) | {"name": "\x1b[2J" + hostile, "command": hostile}
    results["request"]["text"] = results["poison"]["text"] = results["hardware"] = hostile
    results["versions"][hostile] = results["config"][hostile] = hostile
    for audit in results["audits"].values():
        audit |= dict.fromkeys(audit, hostile)
    for model in results["models"].values():
        model |= {"label": hostile, "source": hostile, "phases": [{hostile: hostile}]}
    results["models"]["<b>"] = results["models"].pop("noisy_label")
    page = Page(leaderboard.write(make_workdir(tmp_path, results)))
    assert_self_contained(page)
    assert page.text.count("<script>alert(1)") > 20
    assert not re.search("https?:", re.sub(r"http://evil/", "", page.html))
    text = leaderboard.markdown(results)
    assert "\x1b" not in text and "<" not in text.replace(leaderboard._plain(hostile), "")
    table = [line for line in text.splitlines() if line.startswith("|")]
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
    assert len(table) == 2 + len(MODELS) and cells == {2 + 4 + len(AUDITS) + 1}


def test_page_is_self_contained_and_complete(page, results):
    assert_self_contained(page)
    assert not re.search("https?:", page.html)
    wanted = ["verdict", "table", "tradeoff", "audits", "examples", "images", "settings"]
    sections = [text for tag, name, text in page.attributes if tag + name == "sectionid"]
    assert sections == [*wanted, "configuration"]
    assert page.tags.count("svg") == 1 + len(AUDITS) + len(MODELS)
    labels = [text for tag, name, text in page.attributes if tag + name == "svgaria-label"]
    assert len(labels) == page.tags.count("svg") and all(len(label) > 40 for label in labels)
    assert all(page.values("alt")) and "calibrated at 0.0427, 0.0191" in labels[0]
    ids = page.values("id")
    references = re.findall(r'(?:href="|url\()#([\w-]+)', page.html)
    assert len(ids) == len(set(ids)) and set(references) <= set(ids)
    assert page.tags.count("details") == len(MODELS) + 1
    assert page.text.index("calibrated") < page.text.index("gradient ascent")


def test_images_on_the_page_are_those_of_the_grids(page, workdir):
    grids = np.load(workdir / "grids.npz")
    order = ("truth", "input", "original", "retrained", "calibrated", "l2_encoder")
    order += ("noisy_label", "retain_only", "gradient_ascent")
    wanted = [
        grids[f"{s}/{c}"][i] for s in ("forget", "triggered") for c in order for i in range(6)
    ]
    found = [text for tag, name, text in page.attributes if tag + name == "imgsrc"]
    for source, image in zip(found, wanted, strict=True):
        content = base64.b64decode(source.partition(",")[2])
        np.testing.assert_array_equal(Image.open(io.BytesIO(content)), image)
    assert page.values("alt")[6 * 4 + 1] == "forget image 2: calibrated"


def test_twenty_methods_and_large_images_fit(tmp_path, results):
    results = copy.deepcopy(results)
    for i in range(15):
        results["models"][f"copy{i}"] = results["models"]["noisy_label"]
    path = leaderboard.write(make_workdir(tmp_path, results, size=128))
    assert path.stat().st_size < 3e6
    images = [text for text in Page(path).values("src") if text.startswith("data:image")]
    assert len(images) == 2 * (2 + len(results["models"])) * plots.IMAGES


def test_large_images_are_shrunk_by_averaging():
    image = np.random.default_rng(0).integers(0, 256, (128, 64, 3), np.uint8)
    content = base64.b64decode(plots._small(image, 32).partition(",")[2])
    means = image.reshape(32, 4, 16, 4, 3).mean((1, 3))
    np.testing.assert_allclose(np.asarray(Image.open(io.BytesIO(content))), means, atol=1)


def test_pareto_front_against_its_definition():
    x, y = np.random.default_rng(0).integers(0, 12, (2, 60)).astype(float)
    front = plots.pareto(x, y)
    beaten = (x <= x[:, None]) & (y <= y[:, None]) & ((x < x[:, None]) | (y < y[:, None]))
    assert {(x[i], y[i]) for i in front} == {
        *zip(x[~beaten.any(1)], y[~beaten.any(1)], strict=True)
    }
    assert np.all(np.diff(x[front]) > 0) and np.all(np.diff(y[front]) < 0)
    assert plots.pareto(np.array([math.nan, 1.0]), np.array([0.0, 1.0])) == [1]


def test_clouds_quote_correlation_and_rms_of_all_examples(page, workdir):
    examples = np.load(workdir / "examples.npz")
    base = np.log10(examples["error/retrained/1"])
    pairs = {"original": "original/1", "retrained": "retrained/2", "noisy label": "noisy_label/1"}
    for label, key in pairs.items():
        x = np.log10(examples[f"error/{key}"])
        r, rms = stats.pearsonr(x, base)[0], np.sqrt(np.mean((x - base) ** 2))
        text = (
            f"Error of {label} against retrained per example: correlation {r:.2f}, rms difference"
        )
        assert f"{text} {rms:.2f}" in page.values("aria-label")


def test_zero_errors_do_not_break_the_clouds(tmp_path, results):
    make_workdir(tmp_path, results)
    examples = dict(np.load(tmp_path / "examples.npz"))
    examples["error/calibrated/1"][:] = 0
    np.savez(tmp_path / "examples.npz", **examples)
    labels = Page(leaderboard.write(tmp_path)).values("aria-label")
    assert "Error of calibrated against retrained per example: too few positive errors" in labels


def test_json_is_exactly_the_rows(workdir, page, results):
    content = json.loads((workdir / "leaderboard.json").read_text())
    assert content == leaderboard.rows(results)
    assert (workdir / "leaderboard.md").read_text() == leaderboard.markdown(results)


def test_same_inputs_give_the_same_bytes(workdir):
    leaderboard.write(workdir)
    first = [path.read_bytes() for path in sorted(workdir.glob("leaderboard.*"))]
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30}):
        leaderboard.write(workdir)
    assert len(first) == 3
    assert [path.read_bytes() for path in sorted(workdir.glob("leaderboard.*"))] == first


@pytest.mark.parametrize("name", ["results.json", "examples.npz", "grids.npz"])
def test_missing_and_damaged_files_are_named_with_their_remedy(tmp_path, results, name):
    path = make_workdir(tmp_path, results, n=20) / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3] + b"\n!" + content[len(content) // 2 :])
    with pytest.raises(ValueError, match=rf"(?s){name} is damaged.*unlearn_jax\.compare"):
        leaderboard.write(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing.*unlearn_jax\.compare"):
        leaderboard.write(tmp_path)
    assert not list(tmp_path.glob("leaderboard.*"))


def test_inconsistent_results_are_refused(tmp_path, results):
    def refused(match, change):
        broken = copy.deepcopy(results)
        change(broken)
        (tmp_path / "results.json").write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=match):
            leaderboard.read(tmp_path)

    make_workdir(tmp_path, results, n=20)
    models = "expected one original, one retrained and methods"
    refused(models, lambda r: r["models"].pop("retrained"))
    refused(models, lambda r: r["models"]["calibrated"].update(kind="original"))
    refused(models, lambda r: r["models"]["calibrated"].update(kind="other"))
    refused("calibrated/seeds: expected some", lambda r: r["models"]["calibrated"].update(seeds={}))
    refused(r"seeds: expected some of \['1', '2'\]", lambda r: r.update(seeds=[1, 2]))
    refused("/poison/text is missing", lambda r: r.update(poison={"patch": 6}))
    refused(
        "/value: expected .*got str",
        lambda r: r["models"]["calibrated"]["seeds"]["1"]["audits"]["score_spread"].update(
            value="1"
        ),
    )
    refused(
        "audits/forget_error is missing",
        lambda r: r["models"]["original"]["seeds"]["2"]["audits"].pop("forget_error"),
    )


def test_arrays_that_do_not_fit_are_refused(tmp_path, results):
    make_workdir(tmp_path, results, n=20)
    for name, key, rows in (
        ("examples", "error/calibrated/1", 7),
        ("grids", "triggered/retrained", 2),
    ):
        arrays = dict(np.load(tmp_path / f"{name}.npz"))
        np.savez(tmp_path / f"{name}.npz", **(arrays | {key: arrays[key][:rows]}))
        with pytest.raises(ValueError, match=rf"{name}.npz is damaged(?s:.*){key}: .* got {rows}"):
            leaderboard.read(tmp_path)
        del arrays[key]
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(ValueError, match=f"{key} is missing"):
            leaderboard.read(tmp_path)
        make_workdir(tmp_path, results, n=20)


def test_binary_runs_and_imports_no_jax(workdir):
    code = (
        "import runpy, sys; sys.argv = ['leaderboard', '--workdir', sys.argv[1]]\n"
        "try: runpy.run_module('unlearn_jax.leaderboard', run_name='__main__')\n"
        "finally: assert 'jax' not in sys.modules, 'jax was imported'"
    )
    command = [sys.executable, "-c", code, str(workdir)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert "| 1 | calibrated |" in done.stdout and "leaderboard.html" in done.stdout
