"""The report: offline, escaped, complete, deterministic; damaged files are named."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from tests.helpers.made_request import SETS, make_results, make_workdir
from tests.helpers.pages import Page, assert_self_contained
from unlearn_jax.registry import UserError
from unlearn_jax.report import results_page as report
from unlearn_jax.report.page import COLOURS, inline


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("request"), make_results())


@pytest.fixture(scope="module")
def page(workdir):
    return Page(report.write(workdir))


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
    wanted = ["pictures", "threats", "untested", "next", "findings", "audits", "headline"]
    wanted += ["images", "errors", "displacement", "certificate", "metrics"]
    wanted += ["curves", "cost", "phases", "configuration", "words"]
    assert [text for tag, name, text in page.attributes if tag + name == "sectionid"] == wanted
    assert page.tags.count("svg") == 1 + 3 + 2 + 3 + 2  # overview, histograms, curves of 3 stages
    for text in ("Forget 250 of 2,500", "displacement >= 0.2", "sha256:abababab", "2 CPU devices"):
        assert text in page.text
    assert "do not cover the variation between training runs" in page.text.replace("\n", " ")


def test_images_on_the_page_are_those_of_the_grids(page, workdir):
    grids = np.load(workdir / "grids.npz")
    columns = ("input", "original", "unlearned", "retrained", "truth")
    every = [("forget", 0), ("retain", 0), *((s, row) for s in SETS for row in range(8))]
    wanted = [grids[f"{s}/{c}"][row] for s, row in every for c in columns]
    for source, image in zip(page.values("src"), wanted, strict=True):
        content = base64.b64decode(source.partition(",")[2])
        np.testing.assert_array_equal(Image.open(io.BytesIO(content)), image)
    assert page.values("alt")[0] == f"forget example {grids['forget/index'][0]}: input"
    text = page.text.replace("\xa0", " ")
    assert "0.0990 [0.0970, 0.1010], n = 250" in text  # unlearned on forget
    assert "-0.0400 [-0.0428, -0.0372], n = 90" in text  # original, forget minus holdout
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
    assert page.tags.count("img") == (8 * 3 + 2) * 5 and page.text.count("<script>alert(1)") > 8
    assert "<script>$\\bad$" in page.text
    assert "\x1b" not in report.summary(results)


def test_without_a_retrained_model_the_page_says_so(tmp_path):
    page = Page(report.write(make_workdir(tmp_path, make_results(retrained=False), rows=2)))
    assert "There is no retrained model" in page.text and "retraining to compare with" in page.text
    assert page.tags.count("img") == (2 * 3 + 2) * 4
    assert "retrained" not in " ".join(page.values("alt", "aria-label"))


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
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert "Is it forgotten?" in done.stdout and "report.html" in done.stdout
    assert (workdir / "report.html").read_bytes() == first


@pytest.mark.parametrize("kind", ["link", "text", "pipe"])
def test_a_page_shows_no_file_from_elsewhere(tmp_path, kind):
    """Whoever hands over a folder does not get what else is on the disk, once the page is out."""
    secret, path = tmp_path / "secret.png", tmp_path / "tsne_1.png"
    Image.new("RGB", (2, 2)).save(secret)
    assert inline(secret).startswith("data:image/png;base64,iVBOR")
    {"link": lambda: path.symlink_to(secret), "pipe": lambda: os.mkfifo(path),
     "text": lambda: path.write_text("private")}[kind]()  # fmt: skip
    with pytest.raises((UserError, OSError), match="tsne_1.png"):
        inline(path)


@pytest.mark.parametrize("change", [{"confidence": 10**400}, {"limits": 3}, {"names": []}])
def test_whatever_a_page_cannot_show_is_named(tmp_path, change):
    workdir = make_workdir(tmp_path / "request", make_results() | change, rows=2)
    with pytest.raises(UserError, match="results.json: expected what evaluate writes"):
        report.write(workdir)
    assert not (workdir / "report.html").exists()
