"""A whole request with images that are no squares, and a mask in a file for each of them."""

import json

import numpy as np
import pytest
from PIL import Image

import unlearn_jax as uj
from tests.helpers import tiny
from unlearn_jax.data.sources import open_source

pytestmark = pytest.mark.full
MAE = {"name": "mae", "patch": 8, "dim": 16, "depth": 1, "heads": 1, "decoder_dim": 16,
       "decoder_depth": 1, "decoder_heads": 1, "masking": "task"}  # fmt: skip


def config(root, model):
    """Write 120 training and 80 unseen images, 24 high and 40 wide, each with a box to fill."""
    source = open_source(kind="tfds", name="cifar10_sample", image_size=32)
    tests = source.splits["test"].start
    rows = np.concatenate([np.arange(120), np.arange(tests, tests + 80)])
    for k, pixels in enumerate(source.fetch(rows)):
        name = f"{'train' if k < 120 else 'test'}/cat/{k:03}.png"
        mask = np.zeros((24, 40), np.uint8)
        mask[k % 12 : k % 12 + 8, k % 24 : k % 24 + 16] = 255
        images = {
            "photos": Image.fromarray(pixels).resize((40, 24)),
            "masks": Image.fromarray(mask),
        }
        for folder, image in images.items():
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
            image.save(root / folder / name)
    cfg = tiny.get_config()
    cfg.data.update({"kind": "folder", "name": "", "path": str(root / "photos"),
                     "image_size": (24, 40)})  # fmt: skip
    cfg.task.update({"name": "masks", "path": str(root / "masks")})
    cfg.model, cfg.audit.shadows = model, 0
    return cfg


def test_from_training_to_the_report(tmp_path):
    cfg = config(tmp_path, MAE)
    uj.Request(cfg).pipeline(tmp_path / "run")
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert set(results["evaluation"]) == {"original", "unlearned", "retrained"}
    assert (tmp_path / "run/report.html").stat().st_size > 10_000
    with np.load(tmp_path / "run/grids.npz") as grids:
        shown = [name for name in grids.files if not name.endswith("/index")]
        assert {grids[name].shape[1:] for name in shown} == {(24, 40, 3)}
    relevant = json.loads((tmp_path / "run/original/config.json").read_text())["relevant"]
    assert len(relevant["masks"]) == 64 and "path" not in relevant["task"]
    model = uj.load_model(tmp_path / "run/unlearned")
    photo = np.asarray(Image.open(tmp_path / "photos/test/cat/120.png").resize((90, 50)))
    hole = np.zeros((50, 90), bool)
    hole[10:30, 20:50] = True
    made = model.complete(photo, hole)
    assert (made[~hole] == photo[~hole]).all() and (made[hole] != photo[hole]).any()
    with pytest.raises(ValueError, match="trained with masks from files, does not say"):
        model.complete(photo)
    # Another mask is another run: the workdir is not resumed with it.
    Image.fromarray(np.eye(24, 40, dtype=np.uint8) * 255).save(tmp_path / "masks/train/cat/000.png")
    with pytest.raises(ValueError, match="masks: '.*' -> '.*'"):
        uj.Request(cfg).train("original", tmp_path / "run/original")
