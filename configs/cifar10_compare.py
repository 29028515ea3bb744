"""Every method on 10,000 images of CIFAR-10, beside retraining.

python -m unlearn_jax.compare --config=configs/cifar10_compare.py --workdir=runs/random \
    --config.data.data_dir=DIR --config.poison.fraction=0.25

forgets a random tenth, of which a quarter carries a backdoor; with

    --config.request.kind=classes --config.request.classes=cat

every cat. DIR is a tfds data directory where cifar10 was prepared. --config.compare.models=DIR
keeps the models that several requests can share.
"""

from ml_collections import ConfigDict

from unlearn_jax.config import method, phase

from . import quickstart

EPOCHS = 40
FEW = {"forget_fraction": 12 / 64}  # rows of a batch
# Up to the mean loss of unseen images, and not beyond.
ASCENT = {"objective": "calibrated", "objective_kw": {"distance": "hinge"}, "goal": "mean"} | FEW


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.name = "cifar10_compare"
    config.request.copies = "keep"
    config.data.name = "cifar10"
    config.data.train_rows = 10_000
    config.request.seed = 0
    config.model = {"name": "autoencoder", "channels": (16, 32, 64), "latent_dim": 512}
    config.phases.pretrain.steps = EPOCHS * 10_000 // config.batch_size
    config.phases.pretrain.probe_every = 500
    config.probe_rows = 200
    config.checkpoint.every, config.checkpoint.keep = 500, 8  # of the original, to rewind to
    config.log_every = 100
    config.audit.rows = 1000
    config.compare.seeds = (1, 2, 3)
    config.phases.update(phases())
    config.compare.methods = methods()
    config.stages.unlearned.phases = ("shrink",)
    config.stages.reference = {"rows": "retain", "phases": ("reference",), "scratch": True}
    return config


def joint(
    objective: str, forget_weight: float, steps: int = 300, learning_rate: float = 3e-4, **more
) -> ConfigDict:
    """Make a phase on both sets.

    Its batches have 32 images, since many small steps repair more than few large ones.
    """
    optimizer = {"learning_rate": learning_rate, "schedule": "cosine", "warmup_steps": 10}
    return phase(
        objective=objective,
        forget_weight=forget_weight,
        steps=steps,
        batch_size=32,
        probe_every=0,
        optimizer=optimizer,
        **more,
    )


def calibrated(
    goal: str, steps: int = 1000, learning_rate: float = 2.7e-4, **options
) -> ConfigDict:
    return joint(
        "calibrated",
        0.05,
        steps,
        learning_rate,
        goal=goal,
        forget_fraction=0.375,
        objective_kw=options,
    )


def ascent(until: float) -> ConfigDict:
    return phase(
        objective="gradient_ascent",
        retain_weight=0.0,
        forget_weight=1.0,
        steps=100,
        optimizer={"name": "sgd", "learning_rate": 0.01, "clip_norm_l2": 1.0},
        probe_every=1,
        stop={"metric": "forget_over_holdout", "at_least": until},
    )


def repair(alpha: float, share: float, by: str = "", **more) -> ConfigDict:
    """Make a phase that starts alpha of the way to a fresh network.

    It takes that share of pretraining's examples.
    """
    return phase(
        shrink={"alpha": alpha, "by": by},
        steps=round(share * EPOCHS * 10_000 / 64),
        batch_size=64,
        probe_every=0,
        optimizer={"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 10},
        **more,
    )


def phases() -> dict[str, ConfigDict]:
    return {
        "shrink": repair(0.6, 0.1),
        "shrink_less": repair(0.45, 0.1),
        "shrink_longer": repair(0.6, 0.25),
        "shrink_layers": repair(0.45, 0.1, "layer"),
        "short_retrain": repair(1.0, 0.1),
        "retrain_quarter": repair(1.0, 0.25),
        "retrain_half": repair(1.0, 0.5),
        "forget_early": repair(0.2, 0.05, forget_weight=0.1, **ASCENT),
        "retain_end": repair(0.0, 0.05),
        "suppress": repair(0.0, 0.04, forget_weight=0.1, **ASCENT),
        "undo": repair(0.3, 0.06, objective="distil", teacher="before"),
        "rewind": repair(0.3, 0.1, rewind=0.5),
        "npo": repair(0.0, 0.1, objective="npo", forget_weight=0.02, **FEW),
        "scrub_away": phase(
            objective="scrub",
            retain_weight=0.0,
            forget_weight=1.0,
            steps=60,
            batch_size=64,
            probe_every=0,
            optimizer={"name": "sgd", "learning_rate": 0.01, "clip_norm_l2": 1.0},
        ),
        "scrub_back": repair(0.0, 0.04, objective="scrub"),
        "dampening": repair(0.0, 0.1, objective="dampening", objective_kw={"select": 2.0}),
        "erase_diff": repair(
            0.0,
            0.1,
            objective="erase_diff",
            forget_weight=1.0,
            combine="epsilon_constrained",
            combine_kw={"control": "norm", "epsilon": 0.0, "beta": 0.1},
            **FEW,
        ),
        "calibrated": calibrated("views", overshoot=0.17, direction=0.25),
        "calibrated_twice": calibrated("views", 2000, 2e-4, overshoot=0.1, direction=0.25),
        "calibrated_reference": calibrated("reference", 850, overshoot=0.17),
        "reference": phase(
            steps=70, optimizer={"learning_rate": 1e-3, "schedule": "cosine"}, probe_every=0
        ),
        "calibrated_quantiles": calibrated("quantiles", overshoot=0.17),
        "calibrated_hinge": calibrated("mean", distance="hinge"),
        # The two ends of the paper's two phases: repaired until the quality is back, and not.
        "ascent": ascent(4.0),
        "repair": joint("reconstruction", 0.0, 1000, 5e-4),
        "ascent_far": ascent(20.0),
        "repair_little": joint("reconstruction", 0.0, 100),
        "finetune": joint("reconstruction", 0.0, 500, 1e-3),
        "gradient_difference": joint(
            "gradient_difference", 0.3, 500, objective_kw={"forget_cap": 0.2}
        ),
        "max_loss": joint("max_loss", 0.1),
        "noisy_label": joint("noisy_label", 0.25, 1000),
        "retain_label": joint("retain_label", 0.25, 1000),
        "random_encoder": joint("random_encoder", 0.25, 1000),
        "l2_encoder": joint("l2_encoder", 0.25, 1000),
        "orthogonal": joint("gradient_difference", 0.1, combine="orthogonal"),
        "epsilon_constrained": joint(
            "gradient_difference", 1.0, combine="epsilon_constrained", combine_kw={"epsilon": 0.18}
        ),
        "salun": joint("noisy_label", 0.25, 1000, saliency=0.5),
    }


def methods() -> dict[str, ConfigDict]:
    li, ours = "Li et al., ICLR 2024", "unlearn_jax"
    ash = "after Ash & Adams, NeurIPS 2020"
    return {
        "shrink": method("Shrink and repair", ["shrink"], ash),
        "shrink_less": method("Shrink less and repair", ["shrink_less"], ash),
        "shrink_longer": method("Shrink and repair for longer", ["shrink_longer"], ash),
        "shrink_layers": method("Shrink by layer and repair", ["shrink_layers"], ours),
        "short_retrain": method("Short training from scratch", ["short_retrain"]),
        "retrain_quarter": method("Training from scratch, a quarter", ["retrain_quarter"]),
        "retrain_half": method("Training from scratch, half", ["retrain_half"]),
        "forget_early": method("Forget early, then retain", ["forget_early", "retain_end"], ours),
        "undo": method("Ascent, shrink, distil", ["suppress", "undo"], "UNDO, arXiv 2506.06278"),
        "rewind": method("Rewind, shrink and repair", ["rewind"], ours),
        "npo": method("Bounded ascent", ["npo"], "after NPO, arXiv 2404.05868"),
        "scrub": method("SCRUB", ["scrub_away", "scrub_back"] * 2, "arXiv 2302.10866"),
        "dampening": method("Synaptic dampening, then retain", ["dampening"], "arXiv 2308.07707"),
        "erase_diff": method("EraseDiff", ["erase_diff"], "arXiv 2401.05779"),
        "calibrated": method("Calibrated", ["calibrated"], ours),
        "calibrated_twice": method("Calibrated, twice the steps", ["calibrated_twice"], ours),
        "calibrated_reference": method(
            "Calibrated, goals from a reference model", ["calibrated_reference"], ours
        ),
        "calibrated_quantiles": method(
            "Calibrated, holdout quantiles", ["calibrated_quantiles"], ours
        ),
        "calibrated_hinge": method("Calibrated, hinge", ["calibrated_hinge"], ours),
        "gradient_ascent": method(
            "Ascent, then retain", ["ascent", "repair"], "Varshney & Torra, arXiv 2502.04260"
        ),
        "gradient_ascent_little_repair": method(
            "Ascent, little retain",
            ["ascent_far", "repair_little"],
            "Varshney & Torra, arXiv 2502.04260",
        ),
        "retain_finetuning": method("Retain fine-tuning", ["finetune"]),
        "gradient_difference": method(
            "Gradient difference", ["gradient_difference"], "Liu et al. 2022"
        ),
        "max_loss": method("Max Loss", ["max_loss"], li),
        "noisy_label": method("Noisy Label", ["noisy_label"], li),
        "retain_label": method("Retain Label", ["retain_label"], li),
        "random_encoder": method("Random Encoder", ["random_encoder"], li),
        "l2_encoder": method("L2 to encoded noise", ["l2_encoder"], li),
        "orthogonal": method(
            "Orthogonal gradients", ["orthogonal"], "gradient surgery, after arXiv 2506.04712"
        ),
        "epsilon_constrained": method(
            "ε-constrained", ["epsilon_constrained"], "Feng et al., ICLR 2025"
        ),
        "salun": method("SalUn, Noisy Label", ["salun"], "Fan et al., ICLR 2024"),
    }
