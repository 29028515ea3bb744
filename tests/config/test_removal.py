"""The regimes of configs/removal.py: valid, resolved, and trained for two steps each."""

import pytest

from configs import quickstart_removal, removal
from tests.helpers.toy import FIELDS
from unlearn_jax import request, train
from unlearn_jax.config import chosen_methods
from unlearn_jax.config.validation import validate

REGIMES = ("autoencoder", "mae", "mae_flips", "mage", "palette")


def small(regime):
    cfg = removal.get_config(regime)
    cfg.data.name, cfg.data.image_size, cfg.data.train_rows = "cifar10_sample", 32, 100
    cfg.batch_size, cfg.probe_rows = 16, 8
    cfg.model = {"name": cfg.model.name, **FIELDS[cfg.model.name]} | (
        {"masking": cfg.model.masking} if "mae" in regime else {}
    )
    for spec in cfg.phases.values():
        spec.steps, spec.batch_size, spec.probe_every = min(spec.steps, 2), 16, 0
        spec.stop.metric = ""
    return cfg


@pytest.mark.long
@pytest.mark.parametrize("regime", REGIMES)
def test_every_regime_is_valid_and_has_a_backdoor_and_enough_to_forget(regime):
    cfg = removal.get_config(regime)
    validate(cfg)
    cfg.data.name = "cifar10_sample"  # what is there without a download
    cfg.data.train_rows = min(cfg.data.train_rows, 2000)
    split = request.Request(cfg).split
    assert len(split.poisoned) >= 20 and len(split.forget) >= 2 * len(split.poisoned)
    assert len(split.remaining) >= len(split.forget)
    tenth = cfg.phases["shrink45_10"].steps / cfg.phases.pretrain.steps
    assert tenth == pytest.approx(0.1, rel=0.05)


def test_the_screen_is_valid_and_every_method_says_its_cost_in_examples():
    cfg = quickstart_removal.get_config()
    validate(cfg)
    whole = cfg.phases.pretrain.steps * cfg.batch_size
    for name in chosen_methods(cfg):
        if name in ("calibrated", "decouple") or name.startswith("scratch"):
            continue
        used = [cfg.phases[phase] for phase in cfg.compare.methods[name].phases]
        assert sum(spec.steps * spec.batch_size for spec in used) <= 0.11 * whole, name


@pytest.mark.full
@pytest.mark.parametrize("regime", REGIMES)
def test_every_kind_of_method_of_every_regime_runs(regime, tmp_path):
    cfg = small(regime)
    train.run(cfg, tmp_path / "original")
    cfg.stage, cfg.init_from = "unlearned", str(tmp_path / "original")
    kinds = {"shrink45_10", "finetune_10", "erase_diff_10", "calibrated"}
    for name in kinds & set(chosen_methods(cfg)):
        cfg.stages.unlearned.phases = cfg.compare.methods[name].phases
        assert train.run(cfg, tmp_path / name)["done"]
