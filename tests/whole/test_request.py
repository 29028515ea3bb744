"""What a user can get wrong in a request, and requests with little at hand."""

import json
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from tests.helpers import binaries, tiny
from unlearn_jax import checkpoint, cli, models, pipeline, train
from unlearn_jax import request as setup
from unlearn_jax.audit import limits
from unlearn_jax.audit import run as audits
from unlearn_jax.config import phase
from unlearn_jax.data import splits


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import sys\n\n\ndef get_config():\n    sys.exit(0)\n", "mine.py, line 5: SystemExit: 0"),
        ("import sys\nsys.exit()\n", "mine.py, line 2: SystemExit"),
        ("def get_config():\n    return 1 / 0\n", "line 2: ZeroDivisionError: division by zero"),
        ("def get_config(:\n", "line 1: SyntaxError"),
        ("import nothing_of_that_name\n", "line 1: ModuleNotFoundError"),
    ],
)
def test_a_config_that_exits_or_fails_is_one_line(tmp_path, content, message):
    (tmp_path / "mine.py").write_text(content)
    flags = f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}"
    out, err = binaries.run("unlearn_jax.pipeline", *flags, code=1)
    assert not out, out
    assert message in err and "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_commas_on_a_command_line_make_tuples_of_every_key():
    cfg = ConfigDict(
        {"stages": {"unlearned": {"phases": ("decouple,retain",)}}, "data": {"splits": ("a,b",)},
         "request": {"classes": ("cat, dog",)}, "seeds": (1, 2), "name": "a,b"}
    )  # fmt: skip
    given = {"stages.unlearned.phases": ("decouple,retain",), "data.splits": ("a, b",),
             "request.classes": ("cat, dog",), "seeds": (1, 2), "name": "a,b"}  # fmt: skip
    cli.split_at_commas(cfg, given)
    assert cfg.stages.unlearned.phases == ("decouple", "retain")
    assert cfg.data.splits == ("a", "b") and cfg.seeds == (1, 2) and cfg.name == "a,b"
    assert cfg.request.classes == ("cat, dog",)  # the data know whether that is one name


def test_a_dry_run_writes_the_page_and_trains_nothing(tmp_path):
    out, err = binaries.run(
        "unlearn_jax.pipeline", binaries.TINY, f"--workdir={tmp_path / 'run'}", "--dry_run",
        "--config.request.kind=classes", "--config.request.classes=cat,2",
        "--config.stages.unlearned.phases=decouple,retain",
    )  # fmt: skip
    assert "class cat: class 'cat', label 3, 250 images" in err
    assert "class 2: class 'bird', label 2, 250 images" in err
    assert "Forget 500 of 2,500" in out and "resurfacing" not in out
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["request.html"]


@pytest.mark.long
def test_audit_says_that_a_model_is_missing_before_it_trains_any(tiny_original, tmp_path):
    cfg = tiny.get_config()
    shutil.copytree(tiny_original[0], tmp_path / "original")
    with pytest.raises(ValueError, match="Expected a trained model in .*unlearned"):
        audits.run(cfg, tmp_path)
    assert not (tmp_path / "shadow1").exists()


def test_limits_count_what_is_there():
    cfg = tiny.get_config()
    cfg.audit.rows, cfg.poison.fraction = 2000, 0.2
    _, split = setup.load(cfg)
    found = {limit.audit: limit for limit in limits.of_request(cfg, split)}
    assert len(split.forget) == 250 and len(split.poisoned) == 50
    enough = {name for name, limit in found.items() if limit.enough}
    assert {"true positives at 1 % false positives", "resurfacing", "backdoor"} <= enough
    cfg.audit.rows, cfg.audit.resurfacing.steps = 60, ()
    less = {limit.audit: limit for limit in limits.of_request(cfg, split)}
    assert "40 more of audit holdout" in less["true positives at 1 % false positives"].text
    assert "audit.resurfacing.steps" in less["resurfacing"].text
    without = {limit.audit: limit for limit in limits.of_request(cfg, split, ["original"])}
    assert found["retrained model"].enough and not without["retrained model"].enough


@pytest.fixture
def elsewhere(tmp_path):
    """(config, model) of somebody with a model, 12 images to forget, and nothing else."""
    rng = np.random.default_rng(0)
    for i in range(12):
        (tmp_path / "mine").mkdir(exist_ok=True)
        image = rng.integers(0, 255, (32, 32, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / "mine" / f"{i}.png")
    cfg = tiny.get_config()
    cfg.data.update({"kind": "folder", "path": str(tmp_path / "mine"), "splits": ("train",)})
    cfg.request.update({"kind": "classes", "classes": ("mine",)})
    cfg.retain.kind, cfg.holdout.split = "none", "none"
    cfg.phases = {
        "pretrain": cfg.phases.pretrain,
        "away": phase(
            objective="gradient_ascent", objective_kw={"forget_cap": 1.0}, retain_weight=0.0,
            forget_weight=1.0, steps=4, probe_every=2,
            optimizer={"name": "sgd", "learning_rate": 0.01, "clip_norm_l2": 1.0},
        ),
    }  # fmt: skip
    cfg.stages.unlearned.phases = ("away",)
    params = models.build(**cfg.model.to_dict()).init(jax.random.key(0))
    past = {"requests": [], "claim": "the owner"}
    checkpoint.save_params(tmp_path / "model", params, served=past)
    cfg.init_from = str(tmp_path / "model")
    return cfg, tmp_path


@pytest.mark.long
def test_only_the_forget_set_at_hand(elsewhere):
    cfg, root = elsewhere
    results = pipeline.run(cfg, root / "run")
    assert list(results["evaluation"]["unlearned"]) == ["forget"]
    assert results["audit"] is None and "retrained" not in results["evaluation"]
    lacking = {limit["audit"] for limit in results["limits"] if not limit["enough"]}
    assert {"audits", "evaluation on retain images", "retrained model"} <= lacking
    page = (root / "run" / "report.html").read_text()
    for words in ("no yardstick", "was not compared with that of the model before", "by the owner"):
        assert words in page
    split = splits.load(root / "run" / "unlearned" / "split.json")
    assert len(split.forget) == 12 and not len(split.retain) and not len(split.audit)


@pytest.mark.long
def test_what_is_not_there_is_said_before_anything_starts(elsewhere):
    cfg, root = elsewhere
    cfg.phases.away.retain_weight = 1.0
    cfg.phases.away.stop.update({"metric": "forget_over_holdout", "at_least": 1.0})
    with pytest.raises(ValueError, match="(?s)there are no retain images.*needs unseen images"):
        pipeline.run(cfg, root / "run")
    cfg.phases.away.retain_weight = 0.0
    cfg.phases.away.stop.metric = ""
    cfg.retain.kind = "complement"
    with pytest.raises(ValueError, match='retain set is empty: .*"proxy".*"none"'):
        pipeline.run(cfg, root / "run")
    assert not (root / "run").exists()


def test_a_holdout_reserved_from_the_folder_of_a_model_from_elsewhere_is_refused(elsewhere):
    cfg, root = elsewhere
    cfg.update({"stage": "unlearned"})
    cfg.holdout.split = ""
    with pytest.raises(ValueError, match="may have been trained on the holdout images"):
        train.run(cfg, root / "run")


@pytest.mark.long
def test_proxy_data_for_a_model_trained_here(tiny_original, tmp_path):
    """The data set of the model is the same one, whatever stands in for the images it keeps."""
    cfg = tiny.get_config()
    rng = np.random.default_rng(1)
    (tmp_path / "others").mkdir()
    for i in range(20):
        image = rng.integers(0, 255, (32, 32, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / "others" / f"{i}.png")
    cfg.update({"stage": "unlearned", "init_from": str(tiny_original[0])})
    cfg.retain.kind = "proxy"
    cfg.retain.data.update({"kind": "folder", "path": str(tmp_path / "others")})
    train.run(cfg, tmp_path / "unlearned")
    split = splits.load(tmp_path / "unlearned" / "split.json")
    assert len(split.retain) == 20 and split.retain.min() >= split.manifest["dataset"]["n"]
    record = json.loads((tmp_path / "unlearned" / "split.json").read_text())
    assert record["proxy"]["name"] == "others"
