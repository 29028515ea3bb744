"""The page of an audit: its conclusion first, no green without evidence, no number without n."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.helpers.made_models import Images
from tests.helpers.made_request import make_results, make_workdir
from tests.helpers.pages import Page, assert_self_contained
from unlearn_jax.audit import AUDITS, conclusion, panel, witness
from unlearn_jax.registry import UserError
from unlearn_jax.report import audit_page, results_page

SETTINGS = {"confidence": 0.95, "resamples": 100, "seed": 0}
HEADS = {
    "refuted": "Refuted",
    "over": "Refuted",
    "not refuted": "Not refuted by these attacks",
    "not tested": "Not tested",
    "few": "Refuted",
    "none": "Not tested",
}


def few(images, k):
    """The models of a request for k images, of which the unlearned one remembers all."""

    def cut(model):
        return {key: v[:k] if key.endswith("/forget") else v for key, v in model.items()}

    seed = images.seed_of(1.0)
    return panel.Seed(*map(cut, seed[:3]), [cut(model) for model in seed.further])


@pytest.fixture(scope="module")
def audits():
    """What audit.json would say, of each kind."""
    images = Images(2)
    seeds = {
        "refuted": images.seed_of(0.4),
        "over": images.seed_of(-0.6, "loss"),
        "not refuted": images.seed_of(0.0),
        "not tested": images.seed_of(0.0)._replace(further=[]),
        "few": few(Images(5, n=400), 5),
    }
    more = {"format": audit_page.FORMAT, "models": [*audit_page.MODELS, "shadow1"], "earlier": []}
    more |= {"settings": {}}
    return {k: conclusion.judge(AUDITS, [s], **SETTINGS) | more for k, s in seeds.items()}


def config(**report):
    return {"stages": {"unlearned": {"phases": ["decouple", "end"]}}, "report": report}


@pytest.fixture(scope="module")
def made(audits, tmp_path_factory):
    """(kind, **keys of config.report) -> the page."""

    def make(kind, change=(), **report):
        results = make_results(audit=audits.get(kind)) | {"config": config(**report)} | dict(change)
        root = tmp_path_factory.mktemp("page")
        return Page(results_page.write(make_workdir(root, results, rows=2)))

    with pytest.MonkeyPatch.context() as patch:  # charts take most of the time
        for name in ("_overview", "_histograms", "_curves"):
            patch.setattr(results_page, name, lambda *args: [])
        yield make


@pytest.fixture(scope="module")
def pages(made):
    return {kind: made(kind) for kind in HEADS}


def text_of(html):
    text = re.sub(r"<style>.*?</style>|<[^>]*>", " ", html, flags=re.S)
    return re.sub(r"[\s\xa0]+", " ", text.replace("&nbsp;", " "))


def section(page, name):
    return re.search(rf'<section id="{name}">.*?</section>', page.html, re.S)[0]


class Cells(HTMLParser):
    """The cells of a page: (text, what says its unit: caption and header of the row)."""

    def __init__(self, html):
        super().__init__()
        self.cells, self.caption, self.row, self.at = [], "", "", None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        if tag in ("caption", "th", "td"):
            self.at, self.text = tag, ""
        elif tag == "table":
            self.caption = self.row = ""

    def handle_data(self, data):
        if self.at:
            self.text += data.replace("\xa0", " ")

    def handle_endtag(self, tag):
        if tag != self.at:
            return
        if tag == "td":
            self.cells.append((self.text.strip(), f"{self.caption} {self.row}"))
        elif tag == "th":
            self.row = self.text
        else:
            self.caption = self.text
        self.at = None


@pytest.mark.parametrize("kind", HEADS)
def test_the_page_opens_with_the_conclusion(pages, kind):
    html = pages[kind].html
    (head,) = re.findall(r"<h1 class=\"(\w+)\">(.*?)</h1>", html)
    colours = {"Refuted": "bad", "Not tested": "unclear"}
    assert head == (colours.get(HEADS[kind], "note"), HEADS[kind])
    assert html.index("<h1") < min(html.index(f"<{tag}") for tag in ("h2", "img", "table"))
    order = ("pictures", "threats", "untested", "next", "findings", "audits", "headline")
    places = [html.index(f'id="{name}"') for name in order]
    assert places == sorted(places)
    assert_self_contained(pages[kind])
    assert not re.search("https?:", html)


@pytest.mark.parametrize("kind", [k for k in HEADS if k != "not refuted"])
def test_nothing_is_green_without_evidence(pages, kind):
    classes = " ".join(pages[kind].values("class")).split()
    assert "good" not in classes and "✓" not in pages[kind].html.split("</style>")[1]


def test_green_is_for_good_news_only(made, audits):
    """Quality kept and a low price are; that no attack succeeded is no reason to be glad."""
    audit = json.loads(json.dumps(audits["not refuted"]))
    audit["damage"]["unseen_loss"] |= {"value": 0.0, "ci_low": -0.01, "ci_high": 0.01}
    html = made("not refuted", {"audit": audit}).html
    green = re.findall(r'class="[^"]*good[^"]*"><span aria-hidden="true">✓</span>(\w+)', html)
    assert green == ["kept", "cheaper"]
    assert len(re.findall(r'class="[^"]*good', html)) == 2


@pytest.mark.parametrize("kind", HEADS)
def test_each_number_has_unit_interval_and_n_and_each_dash_a_reason(pages, kind):
    known = {w.unit for w in AUDITS.values()} | {unit for _, unit in witness.WORDS.values()}
    known |= {"dB", "images in [-1, 1]", "RMS distance", "image"}
    html = section(pages[kind], "headline") + section(pages[kind], "metrics")
    html += section(pages[kind], "audits")
    cells = Cells(html).cells
    numbers = [cell for cell in cells if re.search(r"\[.*,.*\]|all alike", cell[0])]
    assert len(numbers) > 20
    for text, about in numbers:
        assert re.search(r"n = \d", text), text
        assert any(unit in about for unit in known), about
    for text, about in cells:
        assert text not in ("", "–") or about.strip().endswith("unlearned − retrained"), about
        assert re.search(r"–\s*\w{3}", text) if text.startswith("–") else True
    assert not re.search(r"(\d[\d.]*) \[\1, \1\]", text_of(pages[kind].html))


def test_what_was_not_measured_is_one_line_for_each_reason(audits):
    audit = json.loads(json.dumps(audits["refuted"]))
    for row in audit["witnesses"].values():
        row |= {"word": "not measured", "reason": "nobody <asked>"}
    found = audit_page.parts(audit)
    assert not found["measured"] and list(found["folded"]) == ["nobody <asked>"]
    assert len(found["folded"]["nobody <asked>"]) == len(audit["witnesses"])


def test_excesses_that_nobody_has_are_no_column(audits, tmp_path):
    """As of models that only functions show, without an original."""
    audit = json.loads(json.dumps(audits["not tested"]))
    for row in audit["witnesses"].values():
        if row["word"] != "not measured":
            row |= {"gap": None, "floor": None, "variants": {}, "reason": "no original"}
            row |= {"excess": {"value": None, "reason": "no original"}}
            row |= {"models": {"unlearned": row["models"]["unlearned"]}}
    audit |= {"gate": {"value": None, "reason": "no original"}, "damage": {}}
    audit["settings"] = {"confidence": 0.95, "models": {"unlearned": "--candidate=mine:model"}}
    (tmp_path / "audit.json").write_text(json.dumps(audit))
    page = Page(audit_page.write(tmp_path))
    assert_self_contained(page)
    assert page.text.count("--candidate=mine:model") == 3  # title, first line, settings
    assert "How much memory is left cannot be said: no original." in page.text
    assert "memory left</th>" not in page.html and "original</th>" not in page.html
    assert not [cell for cell, _ in Cells(page.html).cells if cell.startswith("–")]
    (tmp_path / "audit.json").write_text(json.dumps(audit | {"threats": 3}))
    with pytest.raises(UserError, match="/threats: expected dict"):
        audit_page.write(tmp_path)


def test_what_cannot_be_computed_says_so(made, audits):
    """As where original and retrained model are alike: NaN, which JSON does not know."""
    audit = json.loads(json.dumps(audits["refuted"]))
    unknown = {"value": None, "ci_low": None, "ci_high": None, "n": 200}
    for name in ("forget_error", "relearning"):
        audit["witnesses"][name] |= {"excess": unknown, "gap": unknown, "floor": None}
    audit["witnesses"]["backdoor"]["excess"] |= {"ci_low": None, "ci_high": None}
    audit["damage"]["unseen_loss"] = unknown
    page = made("refuted", {"audit": audit})
    cells = [text for text, _ in Cells(section(page, "audits")).cells]
    assert sum(text.startswith("– cannot be computed") for text in cells) == 3
    assert "was not compared with that of the model before" in page.text


def test_too_few_images_is_what_a_wide_interval_says(audits, pages):
    wide = [r for r in audits["refuted"]["witnesses"].values() if r["word"] == "too few images"]
    assert wide and all(r["excess"]["ci_high"] > 0.25 for r in wide)
    text = text_of(section(pages["refuted"], "audits"))
    assert text.count("too few images the excess may be up to") == len(wide)


def test_what_to_do_next_names_its_key(audits, pages):
    for kind, wanted in {
        "refuted": ("phases.decouple.steps, phases.end.steps", "unlearned.phases", "compare"),
        "over": ("phases.decouple.steps", "Forget for fewer steps"),
        "not refuted": ("audit.resurfacing.steps", "unlearn-jax receipt --purge"),
        "not tested": ("audit.shadows", "audit.rows"),
        "none": ("unlearn-jax audit", "holdout.fraction"),
    }.items():
        for text in wanted:
            assert text in text_of(section(pages[kind], "next")), (kind, text)
    bare = audit_page.steps(audits["refuted"], None)  # of an audit that has no config
    assert len(bare) == 3 and not any(key for _, key in bare)


def test_few_images_get_an_answer_each(audits, pages):
    tests = audits["few"]["images"]["tests"]
    answers = [text for text, _ in Cells(section(pages["few"], "answers")).cells]
    assert len(answers) == 5 * len(tests) and len(tests) == 2
    for i in range(5):
        for k, test in enumerate(tests.values()):
            p, holm = test["p_values"][i], test["p_holm"][i]
            word = "known" if holm <= 0.05 else "not known"
            wanted = f"{word} p = {p:.2g}, Holm {holm:.2g}, n = 400"
            assert re.sub(r"\s+", " ", answers[2 * i + k]) == wanted
    assert any(answer.startswith("known") for answer in answers)
    assert 'id="answers"' not in pages["refuted"].html


def test_the_best_known_images_are_shown_with_their_place(audits, pages):
    worst = audits["refuted"]["worst_images"]
    html = section(pages["refuted"], "worst")
    assert html.count("<figure>") == len(worst) == 10
    assert html.count("<img") == 3 * 2  # those that the grids have: input, unlearned and truth
    for of in worst:
        wanted = f"jane doe {of['index']}.png: {round(of['unseen_quantile'] * 200)} of 200 unseen"
        assert wanted in text_of(html)
    alts = pages["refuted"].values("alt")
    assert alts[0] == f"forget example {worst[0]['index']}: input"  # the row under the conclusion
    assert pages["not refuted"].values("alt")[0] != alts[0]
    assert alts[5].startswith("retain example") and alts[9].endswith("truth")


def test_pictures_and_names_can_be_left_out(made):
    page = made("refuted", pictures=False)
    assert "img" not in page.tags and "data:image" not in page.html
    assert "jane doe" in page.html and 'id="pictures"' not in page.html
    page = made("few", names=False)
    assert "jane" not in page.html and page.tags.count("img") > 10


def test_hostile_texts_are_shown_not_obeyed(made, audits):
    hostile = "</style><script>alert(1)</script><img src=http://evil/ onerror=x>"

    def poison(tree, key=""):
        if isinstance(tree, dict):
            return {k: poison(v, k) for k, v in tree.items()}
        leaves = [poison(leaf) for leaf in tree] if isinstance(tree, list) else tree
        return hostile if isinstance(tree, str) and key not in ("word", "witness") else leaves

    for kind in ("few", "not tested"):
        names = {str(of["index"]): hostile for of in audits[kind]["worst_images"]}
        page = made(kind, {"audit": poison(audits[kind]), "names": names})
        assert_self_contained(page)
        assert page.text.count("<script>alert(1)") > 50


def test_an_audit_of_another_version_is_no_evidence(made, tmp_path):
    page = made("none", {"audit": {"verdicts": {"ood": {"word": "unlearned"}}}})
    assert '<h1 class="unclear">Not tested' in page.html
    assert "of an earlier version" in page.text
    asked = {"past": {"requests": [], "claim": ""}, "copies": {"exact": None, "near": []}}
    asked |= {"limits": [{"audit": "audits", "enough": False, "text": "2 images"}]}
    page = made("none", asked)
    assert "there is no audit; 2 images" in page.text


def test_the_exit_code_is_3_unless_not_refuted(audits, capsys):
    conclusion.fail_unless("not_refuted", audits["not refuted"])
    for audit in (audits["refuted"], audits["not tested"], None):
        conclusion.fail_unless(None, audit)
        with pytest.raises(SystemExit) as stop:
            conclusion.fail_unless("not_refuted", audit)
        assert stop.value.code == 3
    assert capsys.readouterr().err.splitlines()[0] == "--fail_unless=not_refuted: refuted."


def test_grids_of_the_best_known_images_are_checked(tmp_path, audits):
    root = make_workdir(tmp_path, make_results(audit=audits["refuted"]), rows=1)
    grids = dict(np.load(root / "grids.npz"))
    del grids["worst/truth"]
    np.savez(root / "grids.npz", **grids)
    with pytest.raises(UserError, match="worst/truth is missing"):
        results_page.read(root)
