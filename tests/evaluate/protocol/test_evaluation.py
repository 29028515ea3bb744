"""The published evaluation, with a small autoencoder and the classifier that is at hand."""

import csv
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import linalg

from tests.helpers import tiny
from unlearn_jax import checkpoint, models
from unlearn_jax.evaluate.metrics import streaming as statistics
from unlearn_jax.evaluate.protocol import evaluation as protocol
from unlearn_jax.evaluate.protocol import tables
from unlearn_jax.evaluate.towers import extractor as towers
from unlearn_jax.evaluate.towers import preprocessing
from unlearn_jax.report import protocol_page

pytestmark = pytest.mark.long

FORGET, RETAIN = ("cat", "dog"), ("ship", "frog", "truck")


def config(**protocol_):
    cfg = tiny.get_config()
    cfg.request.kind, cfg.request.classes = "classes", FORGET
    settings = {"retain_classes": RETAIN, "per_class": 7, "inpaint": (8,), "outpaint": (4,)}
    settings |= {"batch_size": 8, "shard_size": 5, "grid_rows": 2}
    compat = protocol_.pop("compat", {})
    cfg.protocol.update(settings | protocol_)
    cfg.protocol.compat.update(compat)
    return cfg


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root, model = tmp_path_factory.mktemp("models"), models.build(**config().model.to_dict())
    for seed, name in enumerate(("original", "unlearned")):
        checkpoint.save_params(root / name, model.init(jax.random.key(seed)))
    return {name: root / name for name in ("original", "unlearned")}


@pytest.fixture(scope="module")
def run(checkpoints, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, protocol.run(config(), checkpoints, workdir)


def without_settings(results):
    return {key: value for key, value in results.items() if key not in ("created", "config")}


def test_rows_are_what_one_computes_from_the_files(run):
    workdir, results = run
    assert [(r["model"], r["task"], r["size"]) for r in results["rows"]] == [
        (model, task, size)
        for model in ("original", "unlearned")
        for task, size in (("inpaint", 8), ("outpaint", 4))
    ]
    assert results["sets"] == {"retain": {"n": 21, "classes": 3}, "forget": {"n": 14, "classes": 2}}
    small, row = towers.small(), results["rows"][3]
    folder = workdir / "protocol/images/unlearned/outpaint_4/forget"
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    assert len(names) == 14
    cfg = config()
    source = protocol.Request(cfg).source
    rows = [source.ids.index(name.removesuffix(".png")) for name in names]
    assert {source.class_names[source.labels[row]] for row in rows} == set(FORGET)
    made = [np.asarray(Image.open(folder / name)) for name in names]

    def features(images):
        pixels = np.stack([preprocessing.prepare(image, small.recipe) for image in images])
        found = small.tower.features(
            small.params, preprocessing.to_tower(jnp.asarray(pixels), small.recipe)
        )
        return np.float64(found["pool"]), np.float64(found["logits"])

    (a, logits), (b, _) = features(made), features(list(source.fetch(np.array(rows))))
    s_a, s_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    distance = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s_a) + np.trace(s_b)
    distance -= 2 * np.trace(linalg.sqrtm(s_a @ s_b).real)
    found = row["forget"]
    assert set(found) == {f"cifar10_classifier_{k}" for k in ("frechet", "score", "cosine")}
    assert found["cifar10_classifier_frechet"]["value"] == pytest.approx(distance, rel=1e-3)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert found["cifar10_classifier_cosine"]["mean"] == pytest.approx(cosine.mean(), rel=1e-5)
    assert found["cifar10_classifier_cosine"]["n"] == 14
    assert 1 <= found["cifar10_classifier_score"]["mean"] <= 10
    assert np.isfinite(logits).all()


def test_images_are_completed_where_the_published_mask_says(run):
    workdir, _ = run
    grids = np.load(workdir / "protocol/grids.npz", allow_pickle=False)
    assert grids["forget/index"].shape == (2,)
    for task, hole in (("inpaint_8", slice(8, 24)), ("outpaint_4", slice(4, 28))):
        shown = grids[f"forget/{task}/input"]
        hidden = np.zeros((32, 32), bool)
        hidden[hole, hole] = True
        hidden = hidden if task == "inpaint_8" else ~hidden
        assert (shown[:, hidden] == 128).all()
        np.testing.assert_array_equal(shown[:, ~hidden], grids["forget/truth"][:, ~hidden])


def test_the_table_and_the_page_show_the_rows(run):
    workdir, results = run
    with (workdir / "protocol/rows.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 4 and lines[1]["task"] == "outpaint" and lines[1]["retain_n"] == "21"
    value = results["rows"][1]["forget"]["cifar10_classifier_frechet"]["value"]
    assert float(lines[1]["forget_cifar10_classifier_frechet"]) == value
    score = results["rows"][1]["retain"]["cifar10_classifier_score"]
    assert float(lines[1]["retain_cifar10_classifier_score_std"]) == score["std"]
    text = tables.text(results)
    assert f"{value:.4g}" in text and "retain, n = 21" in text
    page = protocol_page.write(workdir).read_text()
    assert (
        f"{value:.4g}" in page and "unlearned" in page and page.count("<img") == 2 * 2 * 2 * 4 + 1
    )
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)
    (workdir / "protocol/results.json").rename(workdir / "protocol/kept.json")
    try:
        with pytest.raises(FileNotFoundError, match="unlearn_jax.evaluate"):
            protocol_page.write(workdir)
        (workdir / "protocol/results.json").write_text(json.dumps({"name": 3}))
        with pytest.raises(ValueError, match="rows is missing"):
            protocol_page.write(workdir)
    finally:
        (workdir / "protocol/kept.json").rename(workdir / "protocol/results.json")


def test_an_interrupted_run_ends_with_the_same_results(run, checkpoints, tmp_path, monkeypatch):
    _, whole = run
    calls, stops, update = [], [3, 6], statistics.update

    def failing(gathered, plan, outputs, positions, valid):
        calls.append(int(valid.sum()))
        if len(calls) in stops:
            raise OSError("stop")
        return update(gathered, plan, outputs, positions, valid)

    monkeypatch.setattr(statistics, "update", failing)
    for _ in range(2):
        with pytest.raises(OSError, match="stop"):
            protocol.run(config(shard_size=16), checkpoints, tmp_path)
    found = protocol.run(config(shard_size=16), checkpoints, tmp_path)
    # 21 and 14 images in batches of 8, for four rows. The second stop comes after what was saved
    # of the first, and costs one batch.
    assert calls == [8, 8, 5, 5, 8, 6, 8, 6, *3 * [8, 8, 5, 8, 6]]
    assert without_settings(found) == without_settings(whole)
    assert not list(tmp_path.rglob("measured/**/*.npz"))
    stops.clear()
    calls.clear()
    protocol.run(config(shard_size=16), checkpoints, tmp_path)
    assert calls == []
    changed = next((tmp_path / "protocol/images/original/inpaint_8/retain").rglob("*.png"))
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(changed)
    protocol.run(config(shard_size=16), checkpoints, tmp_path)
    assert calls == [8, 8, 5]  # of the row with the changed file, and of no other


def test_images_in_bfloat16_are_recorded_and_not_mixed(run, checkpoints, tmp_path):
    workdir, whole = run
    cfg = config(dtype="bfloat16")
    with pytest.raises(ValueError, match=r"completed otherwise:\n.*images.dtype: .*bfloat16"):
        protocol.run(cfg, checkpoints, workdir)
    half = protocol.run(cfg, checkpoints, tmp_path)
    assert half["config"]["protocol"]["dtype"] == "bfloat16"
    pairs = [(half, whole), (half["rows"][0]["forget"], whole["rows"][0]["forget"])]
    assert all(a != b for a, b in pairs)
    files = [next((folder / "protocol/images").rglob("*.png")) for folder in (workdir, tmp_path)]
    a, b = (np.asarray(Image.open(file)).astype(int) for file in files)
    assert 1 <= abs(a - b).max() <= 8
    with pytest.raises(ValueError, match="protocol.dtype: expected .*bfloat16.*, got 'float16'"):
        protocol.run(config(dtype="float16"), checkpoints, tmp_path)


def test_what_was_done_otherwise_is_recorded(checkpoints, tmp_path):
    compat = {"is_split_order": "class_grouped", "image_format": "jpeg_75_compat"}
    compat |= {"fid_reference": "resaved_gt"}
    one = {"original": checkpoints["original"]}
    found = protocol.run(config(compat=compat, outpaint=(), per_class=3), one, tmp_path)
    assert {key: found["compat"][key] for key in compat} == compat
    assert found["rows"][0]["forget"]["cifar10_classifier_score"]["split_order"] == "class_grouped"
    assert next((tmp_path / "protocol/images").rglob("*.jpg"))


@pytest.mark.parametrize(
    ("changes", "names", "message"),
    [
        ({"metrics": ("fid",)}, "a", "python -m unlearn_jax.convert --family=inception"),
        ({"metrics": ("fd",)}, "a", r"1 problem\(s\).*\n.*\n?.*got 'fd'"),
        ({"inpaint": (16,), "per_class": -1}, "a", r"2 problem\(s\)[^$]*got \(16,\)"),
        ({"metrics": ("cifar10_classifier", "kid")}, "a", '"fid" beside "kid"'),
        ({"compat": {"fid_reference": "x"}}, "a", "compat.fid_reference: expected one of"),
        ({"inpaint": (), "outpaint": ()}, "a", "one size or more"),
        ({"retain_classes": ("cat", "ship")}, "a", "cannot be both forget and retain"),
        ({"retain_classes": ("shp",)}, "a", "Did you mean 'ship'"),
        ({"split": "validation"}, "a", "no split 'validation'"),
        ({}, "a b", "names of letters, digits and _"),
        ({}, "", "names of letters, digits and _"),
    ],
)
def test_mistakes_are_refused_before_anything_is_done(
    changes, names, message, checkpoints, tmp_path
):
    chosen = {name: checkpoints["original"] for name in [names] if name}
    with pytest.raises(ValueError, match=message):
        protocol.run(config(**changes), chosen, tmp_path)
    assert not (tmp_path / "protocol").exists()


def test_a_checkpoint_without_a_workdir_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected NAME=WORKDIR.*got \['original=\.'\]"):
        protocol.run(config(), {"original": Path()}, tmp_path)


def test_a_tower_that_is_not_there_is_refused_with_the_whole_command(checkpoints, tmp_path):
    cfg = config(metrics=("fid",))
    cfg.protocol.towers.fid = str(tmp_path / "fid")
    command = f"--checkpoint=pt_inception-2015-12-05-6726825d.pth --out={tmp_path / 'fid'}"
    with pytest.raises(ValueError, match=re.escape(command)):
        protocol.run(cfg, checkpoints, tmp_path)


def test_a_request_without_classes_is_refused(checkpoints, tmp_path):
    cfg = config()
    cfg.request.update({"kind": "random", "classes": ()})
    with pytest.raises(ValueError, match="Expected the forgotten ones in config.request.classes"):
        protocol.run(cfg, checkpoints, tmp_path)


def test_kept_classes_are_those_of_the_retain_set_or_all_others():
    cfg = config(retain_classes=(), per_class=2)
    rows = protocol._evaluation_rows(cfg, protocol.Request(cfg))
    assert len(rows["retain"]) == 2 * 8 and len(rows["forget"]) == 2 * 2
    cfg.retain.update({"kind": "classes", "classes": ("ship",)})
    assert len(protocol._evaluation_rows(cfg, protocol.Request(cfg))["retain"]) == 2
