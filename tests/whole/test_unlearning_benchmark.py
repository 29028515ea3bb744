"""`benchmarks.unlearning` at its smallest: its own check of losses, its sides and its table."""

import pytest

from benchmarks import autoencoder, unlearning
from benchmarks import models as training
from unlearn_jax import models

pytestmark = pytest.mark.full  # minutes: not for every change

SMALL = {
    "mae": {"image_size": 16, "patch": 4, "dim": 32, "depth": 2, "heads": 2, "decoder_dim": 32,
            "decoder_depth": 1, "decoder_heads": 2, "masking": "random"},
    "mage": {"image_size": 16, "dim": 32, "depth": 2, "heads": 2, "decoder_dim": 32,
             "decoder_depth": 1, "decoder_heads": 2, "class_slots": 80,
             "tokenizer": {"ch": 16, "ch_mult": (1, 2), "groups": 8, "codebook": 16, "z_dim": 8}},
    "palette": {"image_size": 16, "inner": 16, "mults": (1, 2), "res_blocks": 1, "groups": 8,
                "head_channels": 8, "timesteps": 5},
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL)
def test_it_compares_losses_then_measures_all_sides(name, monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    monkeypatch.setattr(autoencoder, "_ROUND_S", 0.01)
    monkeypatch.setattr(unlearning, "_ROUND_S", 0.01)
    model = models.build(name, **SMALL[name])
    found = unlearning.measure(name, model, size=8, seconds=0.1)
    cached = {"ours_cached", "clever_cached"} if name == "mage" else set()
    assert set(found) == {"ours", "published", "clever"} | cached
    assert all(speed > 0 for speed in found.values())


@pytest.mark.long
def test_a_loss_that_differs_is_noticed(monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    same = training.to_torch
    monkeypatch.setattr(training, "to_torch", lambda x, layout: 0.9 * same(x, layout))
    with pytest.raises(AssertionError, match="tolerance"):
        unlearning.measure("mae", models.build("mae", **SMALL["mae"]), size=8, seconds=0.1)


def test_table_of_ratios():
    speeds = {"ours": 3.0, "ours_cached": 5.0, "published": 2.0}
    speeds |= {"clever": 4.0, "clever_cached": 4.0}
    table = unlearning.table({"mage": speeds, "mae": {"ours": 1.0}})
    assert table.split("\n")[2:] == [
        "| mage | 3.00 | 2.00 | 4.00 | 1.50 | 0.75 |",
        "| mage, codes cached | 5.00 | 2.00 | 4.00 | 2.50 | 1.25 |",
        "| mae | 1.00 | – | – | – | – |",
    ]
