"""Every method of removal on one seed of the bundled sample, with a backdoor.

python -m experiments.removal --config=quickstart_removal --workdir=runs/removal

A screen: its seeds are for choosing settings, and nothing that it shows is a result. Most methods
take a tenth of pretraining's examples; the lines say what each took.
"""

from ml_collections import ConfigDict

from unlearn_jax.config import method, phase

from . import quickstart

BATCH = 64


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.name = "quickstart_removal"
    config.seed, config.data.train_seed, config.request.seed = 0, 100, 100
    config.request.copies, config.request.remember = "keep", False
    config.poison.fraction = 0.25
    # Smaller than the quickstart, so that many methods take minutes: 200 of 1,000 images go.
    config.data.train_rows, config.request.fraction, config.batch_size = 1000, 0.2, BATCH
    config.model = {"name": "autoencoder", "channels": (16, 32, 64), "latent_dim": 256}
    config.phases.pretrain.steps, config.audit.batch_size = 640, 32
    config.compare.seeds = (0,)
    config.checkpoint.every, config.checkpoint.keep = 64, 12  # to rewind to
    config.audit.resurfacing.steps, config.audit.resurfacing.on = (200,), ("retain",)
    whole = config.phases.pretrain.steps * config.batch_size
    config.phases.update(phases(whole))
    config.compare.methods = methods()
    config.stages.unlearned.phases = ("shrink45",)
    return config


def repair(examples: float, **more) -> ConfigDict:
    """Make a phase on retained images."""
    optimizer = {"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 10}
    steps = round(examples / BATCH)
    return phase(steps=steps, batch_size=BATCH, probe_every=0, optimizer=optimizer, **more)


def ascent(examples: float, weight: float, **more) -> ConfigDict:
    """Make a phase on both, 12 of 64 rows to forget: each up to the mean loss of unseen images."""
    kind = {"objective": "calibrated", "objective_kw": {"distance": "hinge"}, "goal": "mean"}
    kind |= {"forget_weight": weight, "forget_fraction": 12 / BATCH}
    made = repair(examples, **(kind | more))
    made.optimizer.schedule = "constant"
    return made


def phases(whole: int) -> dict[str, ConfigDict]:
    tenth = 0.1 * whole
    made = {
        "shrink30": repair(tenth, shrink={"alpha": 0.3}),
        "shrink45": repair(tenth, shrink={"alpha": 0.45}),
        "shrink60": repair(tenth, shrink={"alpha": 0.6}),
        "scratch10": repair(tenth, shrink={"alpha": 1.0}),
        "scratch25": repair(0.25 * whole, shrink={"alpha": 1.0}),
        "scratch50": repair(0.5 * whole, shrink={"alpha": 1.0}),
        "finetune": repair(tenth),
        "early0": ascent(0.6 * tenth, 0.2),
        "early10": ascent(0.6 * tenth, 0.2, shrink={"alpha": 0.1}),
        "early20": ascent(0.5 * tenth, 0.1, shrink={"alpha": 0.2}),
        "early45": ascent(0.5 * tenth, 0.1, shrink={"alpha": 0.45}),
        "end40": repair(0.4 * tenth),
        "end50": repair(0.5 * tenth),
    }
    return made


def methods() -> dict[str, ConfigDict]:
    ash, ours = "after Ash & Adams, NeurIPS 2020", "unlearn_jax"
    made = {f"shrink{a}": method(f"Shrink, α .{a}", [f"shrink{a}"], ash) for a in (30, 45, 60)}
    for share in (10, 25, 50):
        made[f"scratch{share}"] = method(f"From scratch, {share} %", [f"scratch{share}"])
    made["finetune"] = method("Retain fine-tuning", ["finetune"])
    for a, end in ((0, 40), (10, 40), (20, 50), (45, 50)):
        made[f"early{a}"] = method(
            f"Forget early, α .{a:02}, then retain only", [f"early{a}", f"end{end}"], ours
        )
    made["calibrated"] = method("Calibrated", ["calibrated"], ours)
    made["decouple"] = method(
        "Ascent, then retain", ["decouple", "retain"], "Varshney & Torra, arXiv 2502.04260"
    )
    return made
