"""The examples, in small: what they call, and what they leave."""

import importlib
import json
from pathlib import Path

import pytest
from PIL import Image

import unlearn_jax as uj
from tests.helpers.binaries import ROOT

pytestmark = pytest.mark.long
SMALL = {
    "data.train_rows": 300, "model": {"name": "autoencoder", "channels": (8, 16), "latent_dim": 16},
    "batch_size": 32, "phases.pretrain.steps": 6, "phases.repair.steps": 4,
    "audit.shadows": 0, "audit.resurfacing.steps": (1,), "evaluation.retain_rows": 40,
    "audit.relearn.images": 8, "audit.relearn.steps": 2, "audit.relearn.every": 1, "probe_rows": 16,
}  # fmt: skip


def example(name):
    return importlib.import_module(f"examples.{name}")


@pytest.mark.full
def test_quickstart(tmp_path, capsys):
    example("quickstart").main(tmp_path, SMALL)
    said = capsys.readouterr().out
    assert "Forget 30 of 300" in said and "Forget error: " in said and "report.html" in said
    assert Image.open(tmp_path / "forget.png").size[1] > 5 * 32
    assert (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.full
def test_the_notebook_is_the_quickstart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load = uj.load_config
    monkeypatch.setattr(uj, "load_config", lambda name, changes: load(name, SMALL | changes),
                        raising=False)  # fmt: skip
    cells = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text("utf-8"))["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)  # the project's own
    assert names["picture"].shape == (32, 32, 3)
    assert Path("runs/notebook/report.html").exists()


def test_own_model(tmp_path, capsys):
    module = example("own_model")
    changes = {k: v for k, v in SMALL.items() if k != "model"}
    module.main(tmp_path, changes | {"model": {"name": module.UNet, "width": 8}})
    assert "UNet(width=8)" in capsys.readouterr().out
    model = uj.load_model(tmp_path / "unlearned")
    assert type(model.model).__name__ == "UNet"
    said = json.loads((tmp_path / "unlearned" / "config.json").read_text())["config"]["model"]
    assert said == {"name": "examples.own_model:UNet", "width": 8}


def test_own_method(tmp_path):
    example("own_method").main(tmp_path, SMALL)
    record = json.loads((tmp_path / "unlearned" / "config.json").read_text())["config"]
    assert record["phases"]["mine"]["objective"] == "examples.own_method:grey_out"
    assert (tmp_path / "forget.png").exists()


@pytest.mark.full
def test_own_photos(tmp_path, capsys):
    changes = {k: v for k, v in SMALL.items() if k != "data.train_rows"}
    example("own_photos").main(tmp_path, changes)
    assert "3" in capsys.readouterr().out
    photo, made = (Image.open(tmp_path / f) for f in ("photos/discs/000.png", "unlearned.png"))
    assert photo.size == made.size == (32, 32)
    assert photo.getpixel((0, 0)) == made.getpixel((0, 0)) and photo.tobytes() != made.tobytes()


def test_audit_torch(tmp_path):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    found = example("audit_torch").main(tmp_path)
    assert found["conclusion"]["word"] == "refuted" and found["gate"]["passed"]
    refuted = [name for name, row in found["witnesses"].items() if row["word"] == "refuted"]
    assert {"membership_plain", "forget_error", "displacement"} <= {*refuted}


def test_audit_diffusers(tmp_path):
    pytest.importorskip("diffusers")
    pytest.importorskip("torch").set_num_threads(1)
    found = example("audit_diffusers").main(tmp_path)
    assert found["conclusion"]["word"] == "not tested" and found["settings"]["loss"][:3] == "the"
    assert found["witnesses"]["membership_noise"]["p_value"] > 0.01
