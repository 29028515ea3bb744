"""One request after another on a folder of photos, against the same images in one request."""

import shutil

import numpy as np
import pytest
from PIL import Image

from tests.helpers import tiny
from unlearn_jax import checkpoint, config, data, pipeline, train
from unlearn_jax import request as setup
from unlearn_jax.data import lineage, open_source, served, splits
from unlearn_jax.evaluate import results
from unlearn_jax.report import preview as request

pytestmark = pytest.mark.long

CLASSES = ("ant", "bee", "cow")
ASKED = (
    ["ant/1.png", "bee/4.png"],
    ["bee/7.png", "cow/2.png", "cow/30.png"],
    ["ant/20.png", "cow/50.png"],
)


def make_folder(root):
    """60 images of CIFAR-10 for each class in train/, 24 in test/."""
    sample = open_source(kind="tfds", name="cifar10_sample", image_size=32)
    images = iter(sample.fetch(np.arange(len(CLASSES) * 84)))
    for split, n in (("train", 60), ("test", 24)):
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(next(images)).save(folder / f"{i}.png")
    return root


def make_config(folder, asked):
    cfg = tiny.get_config()
    cfg.data.update({"kind": "folder", "path": str(folder)})
    listed = folder.parent / f"{len(asked)}-{asked[0].replace('/', '-')}.txt"
    listed.write_text("".join(f"train/{name}\n" for name in asked))
    cfg.request.update({"kind": "ids", "file": str(listed)})
    cfg.audit.update({"relearn": {"steps": 0}, "resurfacing": {"steps": ()}})
    return cfg


def models(cfg, workdir, *stages):
    """Train and evaluate them as a pipeline does."""
    for stage in stages:
        of = cfg.copy_and_resolve_references()
        of.stage, of.init_from = stage, ""
        if stage == "unlearned":
            of.init_from = cfg.init_from or str(workdir / "original")
        if stage == "retrained":
            of.request.served = cfg.init_from
        train.run(of, workdir / stage)
    results.run(cfg, workdir)


def ids(source, rows):
    return {source.ids[row] for row in rows.tolist()}


@pytest.fixture(scope="module")
def sequence(tmp_path_factory):
    """(folder, workdirs of three requests in sequence, workdir of one request for all).

    The last is a whole pipeline, the others are one without audits.
    """
    root = tmp_path_factory.mktemp("sequence")
    folder = make_folder(root / "photos")
    shutil.copytree(folder, root / "once" / "photos")
    before, runs = "", []
    for k, asked in enumerate(ASKED):
        cfg = make_config(folder, asked)
        cfg.init_from = before
        runs.append(root / f"request{k}")
        if asked is ASKED[-1]:
            pipeline.run(cfg, runs[-1])
        else:
            models(cfg, runs[-1], *(() if before else ("original",)), "unlearned", "retrained")
        before = str(runs[-1] / "unlearned")
    together = make_config(root / "once" / "photos", [name for asked in ASKED for name in asked])
    models(together, root / "together", "original", "unlearned", "retrained")
    return folder, runs, root / "together"


def test_three_requests_leave_the_sets_and_the_yardstick_of_one(sequence):
    _, runs, together = sequence
    last, one = (splits.load(run / "unlearned" / "split.json") for run in (runs[-1], together))
    np.testing.assert_array_equal(last.remaining, one.remaining)
    np.testing.assert_array_equal(last.retain, one.retain)
    assert len(np.setdiff1d(one.train, last.train)) == 5 and len(one.forget) == 7
    # The same rows, seed and steps: retraining after three requests is retraining after one.
    a, b = (checkpoint.read_meta(run / "retrained") for run in (runs[-1], together))
    assert a["checksums"] == b["checksums"]


def test_no_model_after_a_request_has_its_images_in_any_set(sequence):
    _, runs, _ = sequence
    for k, run in enumerate(runs):
        found = {path.parent.name: splits.load(path) for path in run.glob("*/split.json")}
        assert {"unlearned", "retrained", *(("shadow1",) if run == runs[-1] else ())} <= set(found)
        for split in found.values():
            earlier = [f"train/{name}" for asked in ASKED[:k] for name in asked]
            gone = set(np.concatenate([[], *split.served]).tolist())
            assert len(gone) == len(earlier) and len(split.manifest["served"]) == k
            for name in splits.SETS:
                assert not gone & set(getattr(split, name).tolist())


def test_every_model_carries_what_it_has_forgotten(sequence):
    _, runs, _ = sequence
    for k, run in enumerate(runs):
        entries = checkpoint.read_meta(run / "unlearned")["served"]["requests"]
        listed = [[f"train/{name}" for name in sorted(asked)] for asked in ASKED[: k + 1]]
        assert [sorted(of["ids"]) for of in entries] == listed
        assert all(len(of["pixels"]) == len(of["ids"]) for of in entries)
        earlier = checkpoint.read_meta(run / "retrained")["served"]["requests"]
        assert [of["hash"] for of in earlier] == [of["hash"] for of in entries]


def test_the_audit_measures_the_earlier_sets_and_the_report_lists_them(sequence):
    import json

    _, runs, _ = sequence
    found = json.loads((runs[-1] / "audit.json").read_text())
    assert [of["n"] for of in found["earlier"]] == [2, 3]
    page = (runs[-1] / "report.html").read_text()
    assert page.count("Are the images of an earlier request still forgotten?") == 2
    assert page.count("photos: the ids listed in") >= 2


def test_a_new_original_on_that_folder_has_never_seen_them(sequence):
    folder, runs, _ = sequence
    gone = {f"train/{name}" for asked in ASKED for name in asked}
    assert (folder.parent / served.FILE).exists()
    cfg = make_config(folder, ["cow/9.png"])
    workdir = runs[0].parent / "new"
    train.run(cfg, workdir)
    source, split = setup.load(cfg)
    trained = splits.load(workdir / "split.json")
    assert ids(source, trained.train).isdisjoint(gone) and len(trained.train) == 180 - 7
    # Renamed, it is known by its pixels.
    data._open_once.cache_clear()
    (folder / "train" / "ant" / "1.png").rename(folder / "train" / "bee" / "renamed.png")
    try:
        source, split = setup.load(cfg)
        assert "train/bee/renamed.png" not in ids(source, split.train)
    finally:
        (folder / "train" / "bee" / "renamed.png").rename(folder / "train" / "ant" / "1.png")
        data._open_once.cache_clear()


def test_a_finished_request_given_again_changes_nothing(sequence):
    _, runs, _ = sequence
    cfg = make_config(sequence[0], ASKED[2])
    cfg.init_from = str(runs[1] / "unlearned")
    before = {p: p.read_bytes() for p in runs[2].rglob("checkpoints/*/meta/*")}
    listed = (sequence[0].parent / served.FILE).read_bytes()
    pipeline.run(cfg, runs[2])
    assert before == {p: p.read_bytes() for p in runs[2].rglob("checkpoints/*/meta/*")}
    assert (sequence[0].parent / served.FILE).read_bytes() == listed


def test_the_same_images_asked_for_again_are_refused_in_words(sequence):
    cfg = make_config(sequence[0], ASKED[0])
    with pytest.raises(ValueError, match="2 images were forgotten by earlier requests already"):
        setup.load(cfg)


def test_a_model_that_does_not_say_what_it_served_needs_a_claim(sequence, tmp_path):
    folder, runs, _ = sequence
    cfg = make_config(folder, ["cow/9.png"])
    cfg.update({"stage": "unlearned", "init_from": str(tmp_path / "elsewhere")})
    like = setup.Request(from_scratch(cfg))
    params, _ = checkpoint.load_params(runs[0] / "original", like.like())
    checkpoint.save_params(tmp_path / "elsewhere", params)
    with pytest.raises(ValueError, match='does not say which requests it has served.*"none"'):
        setup.past_of(cfg)
    cfg.request.served = "none"
    assert setup.past_of(cfg) == ([], 'config.request.served="none"')
    checkpoint.save_params(tmp_path / "told", params, served={"requests": [], "claim": "me"})
    cfg.init_from, cfg.request.served = str(tmp_path / "told"), ""
    assert setup.past_of(cfg).claim == "me"
    cfg.init_from, cfg.request.served = str(runs[0] / "unlearned"), "none"
    with pytest.raises(ValueError, match="has served 1 request"):
        setup.past_of(cfg)


def from_scratch(cfg):
    plain = cfg.copy_and_resolve_references()
    plain.update({"stage": "original", "init_from": ""})
    return plain


def test_the_page_before_it_happens_shows_pictures_copies_and_limits(sequence, tmp_path):
    folder, runs, _ = sequence
    data._open_once.cache_clear()
    copy = folder / "test" / "cow" / "copy.png"
    shutil.copy(folder / "train" / "cow" / "9.png", copy)
    try:
        cfg = make_config(folder, ["cow/9.png"])
        cfg.init_from = str(runs[-1] / "unlearned")
        facts = request.run(cfg, tmp_path)
    finally:
        copy.unlink()
        data._open_once.cache_clear()
    page = (tmp_path / request.FILE).read_text()
    assert (
        "test/cow/copy.png" in facts["refused"] and facts["exact"] == 1 and len(facts["past"]) == 3
    )
    assert "train/cow/9.png" in page and "test/cow/copy.png" in page and "data:image/png" in page
    lacking = {of.audit for of in facts["limits"] if not of.enough}
    assert {"membership inference", "backdoor"} <= lacking
    assert "cow/9.png" not in request.text(facts)  # names are on the page
    assert facts["work"][2]["steps"] == 2 * config.default().audit.shadows * 24
    assert not (tmp_path / "checkpoints").exists()


# What an adversary tried.


def test_a_model_that_was_trained_on_what_another_request_forgot_is_refused(sequence):
    """Forgetting A, then B from the original again: A was said to be forgotten, and was not."""
    folder, runs, _ = sequence
    cfg = make_config(folder, ["cow/9.png"])
    cfg.update({"stage": "unlearned", "init_from": str(runs[0] / "original")})
    with pytest.raises(ValueError, match="trained on 2 images that another request has forgotten"):
        train.run(cfg, runs[0].parent / "again")
    # A second model may be asked to forget the same images, and they are not in its other sets.
    everything = [name for asked in ASKED for name in asked]
    cfg = make_config(folder, ["cow/9.png", *everything])
    cfg.update({"stage": "unlearned", "init_from": str(runs[0] / "original")})
    split = train.Request(cfg).split
    assert len(split.forget) == 8 and not split.served and len(split.manifest["apart"]) == 3
    lineage.check_model(split, runs[0] / "original")
    assert len(split.remaining) == 180 - 8


def test_copies_made_after_a_request_are_left_out_and_swapped_names_fool_nobody(sequence):
    folder, _, _ = sequence
    a, b, copy = (folder / "train" / name for name in ("ant/1.png", "ant/2.png", "cow/copy.png"))
    cfg = make_config(folder, ["cow/9.png"])
    setup.load(cfg)  # hashes are known from before
    shutil.copy(a, copy)
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second), b.write_bytes(first)
    data._open_once.cache_clear()
    try:
        source, split = setup.load(cfg)
        trained = ids(source, split.train)
        assert not {"train/cow/copy.png", "train/ant/2.png"} & trained
        assert "train/ant/1.png" in trained
    finally:
        a.write_bytes(first), b.write_bytes(second), copy.unlink()
        data._open_once.cache_clear()


def test_a_new_original_beside_old_runs_has_the_past_of_today(sequence):
    folder, runs, _ = sequence
    (runs[0] / "original3").mkdir()
    cfg = make_config(folder, ASKED[0])
    with pytest.raises(ValueError, match="forgotten by earlier requests already"):
        train.run(cfg, runs[0] / "original3")


def test_a_model_trained_here_without_its_split_is_not_from_elsewhere(sequence, tmp_path):
    folder, runs, _ = sequence
    shutil.copytree(runs[-1] / "unlearned", tmp_path / "model")
    (tmp_path / "model" / "split.json").unlink()
    cfg = make_config(folder, ["cow/9.png"])
    cfg.update({"stage": "unlearned", "init_from": str(tmp_path / "model")})
    with pytest.raises(
        ValueError, match="split.json is missing: the model was trained with this package"
    ):
        train.run(cfg, tmp_path / "run")


def test_the_page_has_the_hash_that_training_has(sequence, tmp_path):
    folder, runs, _ = sequence
    cfg = make_config(folder, ASKED[2])
    cfg.init_from = str(runs[1] / "unlearned")
    facts = request.run(cfg, runs[2])
    assert facts["hash"] == splits.load(runs[2] / "unlearned" / "split.json").manifest["hash"]


def test_a_stage_by_hand_without_the_past_of_its_request_is_refused(sequence):
    folder, runs, _ = sequence
    cfg = make_config(folder, ASKED[1])
    cfg.stage = "retrained"
    listed = folder.parent / served.FILE
    content = listed.read_bytes()
    listed.unlink()  # else the data remember it
    try:
        with pytest.raises(ValueError, match=r"leave out the images of 1 .* of 0.*request.served"):
            train.run(cfg, runs[1] / "by_hand")
        cfg.request.served = str(runs[0] / "unlearned")
        _, split = setup.load(cfg, runs[1] / "by_hand", siblings=True)
    finally:
        listed.write_bytes(content)
    assert split.manifest["hash"] == splits.load(runs[1] / "unlearned/split.json").manifest["hash"]
