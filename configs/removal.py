"""Where there is something to forget: small models that have memorised, of all four kinds.

    python -m experiments.removal --config=configs/removal.py:mae --workdir=runs/removal_mae \
        --config.data.data_dir=DIR
    python -m unlearn_jax.compare --config=configs/removal.py:mae --workdir=runs/removal_mae \
        --config.data.data_dir=DIR

After the colon: autoencoder (10,000 images, trained with flips), mae, mae_flips (random masks),
mage, palette. DIR is a tfds data directory where cifar10 was prepared. The first lines that it
prints are of the original and the retrained model, and whether membership is found in the original
with an AUROC of .75 or more: below, the request shows nothing.
Trained models are kept in --config.compare.models.

Expected minutes a model on two idle CPU cores: autoencoder 4, mae 3, mae_flips 6, mage 9,
palette 20. None has been run at this size yet.
"""

from ml_collections import ConfigDict

from unlearn_jax.config import method, phase

from . import cifar10_compare, cifar10_mae, cifar10_mage, cifar10_palette

FLIPS = {"name": "random_resized_crop", "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": True}
SHARES = (0.1, 0.25)


def get_config(model: str = "autoencoder") -> ConfigDict:
    """Return the regime of a model, with the methods that may remove there."""
    regimes = {
        "autoencoder": _autoencoder,
        "mae": _mae,
        "mae_flips": _mae_flips,
        "mage": _mage,
        "palette": _palette,
    }
    config = regimes[model]()
    config.name = f"removal_{model}"
    config.data.name = "cifar10"
    config.request.copies, config.request.remember = "keep", False
    # All of it, decoders too, where memory is as well; a tokenizer has no gradient, and stays.
    config.model.trainable = (r"(?!vqgan/).*",)
    config.checkpoint.keep = 12  # of the original, to rewind to
    config.checkpoint.every = max(1, config.phases.pretrain.steps // 10)
    config.compare.seeds = (1, 2, 3)
    config.audit.shadows = 1
    config.phases.update(_phases(config))
    config.compare.methods = _methods(palette=model == "palette")
    config.stages.unlearned.phases = ("shrink45_10",)
    return config


def _train(config: ConfigDict, rows: int, fraction: float, epochs: int) -> ConfigDict:
    config.data.train_rows, config.request.fraction = rows, fraction
    size = config.phases.pretrain.batch_size or config.batch_size
    config.phases.pretrain.steps = epochs * rows // size
    config.phases.pretrain.probe_every = 0
    return config


def _autoencoder() -> ConfigDict:
    config = _train(cifar10_compare.get_config(), 10_000, 0.1, 60)
    config.data.augment = FLIPS
    # Outputs made beforehand do not fit random views.
    config.phases.calibrated.objective_kw.direction = 0.0
    config.poison.fraction = 0.25
    return config


def _mae() -> ConfigDict:
    config = _train(cifar10_mae.get_config(), 5000, 0.2, 60)
    config.poison.fraction = 0.125
    return config


def _mae_flips() -> ConfigDict:
    config = _train(cifar10_mae.get_config(), 5000, 0.2, 120)
    config.model.masking = "random"
    config.data.augment = FLIPS
    config.poison.fraction = 0.125
    return config


def _mage() -> ConfigDict:
    config = cifar10_mage.get_config()
    config.phases.pretrain.cache_tokens = True
    config = _train(config, 500, 0.4, 300)
    config.poison.fraction = 0.3
    return config


def _palette() -> ConfigDict:
    config = _train(cifar10_palette.get_config(), 200, 0.4, 500)
    config.poison.fraction = 0.3
    return config


def _phases(config: ConfigDict) -> dict[str, ConfigDict]:
    """Make repairs of a tenth and a quarter of pretraining, otherwise as it is."""
    before, made = config.phases.pretrain, {}

    def repair(share: float, **more) -> ConfigDict:
        kept = {key: before[key] for key in ("batch_size", "optimizer", "cache_tokens")}
        steps = max(1, round(share * before.steps))
        spec = phase(**kept, steps=steps, probe_every=0, **more)
        spec.optimizer.warmup_steps = min(10, steps - 1)
        return spec

    for share in SHARES:
        end = f"_{100 * share:.0f}"
        for alpha in (0.3, 0.45, 0.6, 1.0):
            made[f"shrink{100 * alpha:.0f}{end}"] = repair(share, shrink={"alpha": alpha})
        made[f"erase_diff{end}"] = repair(
            share,
            objective="erase_diff",
            forget_weight=1.0,
            combine="epsilon_constrained",
            combine_kw={"control": "norm", "epsilon": 0.0, "beta": 0.1},
        )
        made[f"finetune{end}"] = repair(share)
    return made


def _methods(palette: bool) -> dict[str, ConfigDict]:
    ash, made = "after Ash & Adams, NeurIPS 2020", {}
    for share in SHARES:
        end, cost = f"_{100 * share:.0f}", f"{100 * share:.0f} %"
        for alpha in (30, 45, 60):
            name = f"shrink{alpha}{end}"
            made[name] = method(f"Shrink, α .{alpha}, {cost}", [name], ash)
        made[f"scratch{end}"] = method(f"From scratch, {cost}", [f"shrink100{end}"])
        made[f"finetune{end}"] = method(f"Retain fine-tuning, {cost}", [f"finetune{end}"])
        if palette:
            made[f"erase_diff{end}"] = method(
                f"EraseDiff, {cost}", [f"erase_diff{end}"], "Wu et al., arXiv 2401.05779"
            )
    if not palette:  # its goals are of a loss that hardly varies with the image
        made["calibrated"] = method("Calibrated", ["calibrated"], "unlearn_jax")
    return made
