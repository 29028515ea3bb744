"""The leaderboard: a safe and complete page."""

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

from tests.helpers.made_results import AUDITS, MODELS, make_results, make_workdir
from tests.helpers.pages import Page, assert_self_contained
from unlearn_jax.report import leaderboard
from unlearn_jax.report import leaderboard_plots as plots


@pytest.fixture(scope="module")
def results():
    return make_results()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, results):
    return make_workdir(tmp_path_factory.mktemp("comparison"), results)


@pytest.fixture(scope="module")
def page(workdir):
    return Page(leaderboard.write(workdir))


def test_nothing_to_rank_is_said(tmp_path, results):
    results = copy.deepcopy(results)
    for model in results["models"].values():
        for row in model.get("panel", {}).get("witnesses", {}).values():
            row |= {"has_power": False, "reason": "they do not differ"}
        if "panel" in model:
            nothing = {"value": None, "reason": "no witness has power"}
            model["panel"]["headline"] |= {"worst_excess": nothing, "worst": ""}
    assert leaderboard.findings(results)[0].word == "nobody"
    page = Page(leaderboard.write(make_workdir(tmp_path, results)))
    assert "nothing can be ranked" in page.text and page.text.count("Left out:") == len(AUDITS)


def test_findings_judge_the_first(results):
    found = {f.question: f for f in leaderboard.findings(results)}
    first = found["Who leaves the least?"]
    assert (first.status, first.word) == ("good", "calibrated")
    assert "below those of all others" in first.text and "met by calibrated." in first.text
    assert [f.word for f in found.values()] == [
        "calibrated", "not refuted", "calibrated", *["met"] * 5, "yes"
    ]  # fmt: skip
    worse = copy.deepcopy(results)
    del worse["models"]["calibrated"]
    assert [f.word for f in leaderboard.findings(worse)[:8]] == [
        "l2 encoder", "refuted", "retraining", *["missed", "missed", "missed", "met", "missed"]
    ]  # fmt: skip
    assert "met by no method" in leaderboard.findings(worse)[0].text


def test_overlapping_intervals_are_no_clear_lead(results):
    results = copy.deepcopy(results)
    results["models"]["twin"] = results["models"]["calibrated"] | {"label": "twin"}
    first = leaderboard.findings(results)[0]
    assert first.status == "unclear" and "do not tell it from twin." in first.text


def test_the_cheapest_that_holds_is_advised_unless_starting_over_is_as_good(results):
    results = copy.deepcopy(results)
    best = results["models"]["calibrated"]
    found = leaderboard.advised(results)
    assert (found.status, found.word) == ("good", "calibrated") and "starts over" not in found.text

    def beside(shift, cost=1.0):
        """The same from scratch, with another loss on unseen images and cost."""
        fresh = copy.deepcopy(best) | {"label": "from scratch"}
        fresh["phases"] = [{**best["phases"][0], "shrink": {"alpha": 1.0}}]
        loss = fresh["panel"]["damage"]["unseen_loss"]
        loss |= {key: loss[key] + shift for key in ("value", "ci_low", "ci_high")}
        for seed in fresh["seeds"].values():
            seed["cost"]["flops_fraction"] *= cost
        found = leaderboard.advised(results | {"models": results["models"] | {"fresh": fresh}})
        return found.status, found.word, found.text

    assert beside(-0.5)[:2] == ("unclear", "from scratch")
    assert "nothing that starts from the original is better" in beside(-0.5)[2]
    assert beside(1e-6)[:2] == ("unclear", "from scratch") and "take that" in beside(1e-6)[2]
    assert beside(0.5)[:2] == ("good", "calibrated")
    assert "Starting over for no more is worse" in beside(0.5)[2]
    assert "Starting over" not in beside(0.5, cost=2)[2]
    assert "leaves no more than the goals allow" in found.text
    more = copy.deepcopy(best) | {"label": "leaves more"}  # and is better on unseen images
    more["panel"]["damage"]["unseen_loss"]["value"] -= 0.5
    more["panel"]["headline"]["hidden_excess"]["ci_high"] = 0.2
    results["models"]["more"] = more
    assert leaderboard.advised(results).word == "calibrated"


def test_memorisation_is_stated(results):
    found = leaderboard.memorised(results)
    assert (found.status, found.word) == ("note", "yes") and "AUROC of 0.90" in found.text
    results = copy.deepcopy(results)
    results["models"]["calibrated"]["panel"]["gate"] |= {"value": 0.52, "passed": False}
    assert leaderboard.memorised(results).status == "unclear"


def test_markdown_is_complete(results):
    text = leaderboard.markdown(results)
    for part in (
        "Forget 250 of 2,500 training images.",
        "6 x 6 trigger",
        "    python -m unlearn_jax.compare --config=configs/compare.py",
        "2026-01-02T03:04:05Z on 2 CPU devices",
        "retain 2,250",
        "Seeds: 1, 2, 3",
        "membership (recall; AUROC)",
        "95 % bootstrap intervals",
    ):
        assert part in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(MODELS)
    assert {line.count("|") for line in table} == {2 + 6 + len(AUDITS) + 1}


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
    assert len(table) == 2 + len(MODELS) and cells == {2 + 6 + len(AUDITS) + 1}


def test_page_is_self_contained_and_complete(page, results):
    assert_self_contained(page)
    assert not re.search("https?:", page.html)
    wanted = ["findings", "table", "tradeoff", "audits", "examples", "images", "settings"]
    sections = [text for tag, name, text in page.attributes if tag + name == "sectionid"]
    assert sections == [*wanted, "configuration"]
    assert page.tags.count("svg") == 1 + len(AUDITS) + len(MODELS)
    labels = [text for tag, name, text in page.attributes if tag + name == "svgaria-label"]
    assert len(labels) == page.tags.count("svg") and all(len(label) > 40 for label in labels)
    assert all(page.values("alt")) and "calibrated at 0.03, 0.0111" in labels[0]
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


@pytest.mark.long
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
        lambda r: r["models"]["calibrated"]["seeds"]["1"]["audits"]["resurfacing"].update(
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
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert "| 1 | calibrated |" in done.stdout and "leaderboard.html" in done.stdout
