"""Every method of removal on one seed of the bundled sample, with a backdoor.

python -m experiments.removal --config=quickstart_removal --workdir=runs/removal
python -m unlearn_jax.compare --config=quickstart_removal --workdir=runs/removal  # with intervals

A screen: its seeds are for choosing settings, and nothing that it shows is a result. Most methods
take a tenth of pretraining's examples; the lines say what each took.
"""

from ml_collections import ConfigDict

from unlearn_jax.config import method, phase

from . import quickstart

BATCH = 64
# An order, so that what matters most is there first.
FIRST = ("shrink45", "finetune", "early20", "undo30", "layers45", "rewind_shrink", "npo", "scrub")
FIRST += ("dampen2", "erase_diff", "calibrated", "shrink30", "distil30", "rewind45", "scratch10")
FIRST += ("shrink60", "early10", "layers30", "undo45", "distil45", "rewind30", "early0", "early45")
FIRST += ("dampen10", "dampen_only", "decouple", "scratch25", "scratch50")


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
    config.phases.calibrated.steps = round(0.1 * whole / config.phases.calibrated.batch_size)
    config.phases.retain.steps = round(0.1 * whole / config.batch_size)
    config.compare.methods, config.compare.only = methods(), FIRST
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
    for alpha in (0.3, 0.45):
        shrink = {"alpha": alpha}
        number = f"{100 * alpha:.0f}"
        made[f"layers{number}"] = repair(tenth, shrink=shrink | {"by": "layer"})
        # From what `calibrated` has made of the original, and from the original itself.
        made[f"undo{number}"] = repair(0.6 * tenth, objective="distil", teacher="before",
                                       shrink=shrink)  # fmt: skip
        made[f"distil{number}"] = repair(tenth, objective="distil", shrink=shrink)
        made[f"rewind{number}"] = repair(tenth, rewind=alpha)
    made |= {
        "suppress": ascent(0.4 * tenth, 0.1),
        "rewind_shrink": repair(tenth, rewind=0.5, shrink={"alpha": 0.3}),
        "npo": ascent(tenth, 0.02, objective="npo", objective_kw={"beta": 1.0}, goal=""),
        "scrub_max": repair(0.1 * tenth, objective="scrub", retain_weight=0.0, forget_weight=1.0),
        "scrub_min": repair(0.4 * tenth, objective="scrub"),
        "dampen10": repair(tenth, objective="dampening", objective_kw={"select": 10.0}),
        "dampen2": repair(tenth, objective="dampening", objective_kw={"select": 2.0}),
        "dampen_only": repair(0, objective="dampening", objective_kw={"select": 2.0}),
        "erase_diff": ascent(
            tenth, 1.0, objective="erase_diff", objective_kw={}, goal="",
            combine="epsilon_constrained",
            combine_kw={"control": "norm", "epsilon": 0.0, "beta": 0.1},
        ),
    }  # fmt: skip
    made["dampen_only"].optimizer.warmup_steps = 0
    made["scrub_max"].optimizer.update({"name": "sgd", "learning_rate": 1e-2, "clip_norm_l2": 1.0})
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
    for a in (30, 45):
        undo = "after UNDO, arXiv 2506.06278"
        made[f"layers{a}"] = method(f"Shrink by layer, α .{a}", [f"layers{a}"], ours)
        made[f"undo{a}"] = method(f"Ascent, shrink, distil, α .{a}", ["suppress", f"undo{a}"], undo)
        made[f"distil{a}"] = method(f"Shrink, distil the original, α .{a}", [f"distil{a}"], undo)
        made[f"rewind{a}"] = method(f"Rewind to {a} %", [f"rewind{a}"], ours)
    made["rewind_shrink"] = method("Rewind to 50 %, shrink, α .30", ["rewind_shrink"], ours)
    made["npo"] = method("Bounded ascent", ["npo"], "after NPO, arXiv 2404.05868")
    made["scrub"] = method("SCRUB", ["scrub_max", "scrub_min"] * 2, "arXiv 2302.10866")
    for name, label in (("10", "select 10"), ("2", "select 2"), ("_only", "select 2, no training")):
        made[f"dampen{name}"] = method(
            f"Synaptic dampening, {label}", [f"dampen{name}"], "arXiv 2308.07707"
        )
    made["erase_diff"] = method("EraseDiff", ["erase_diff"], "arXiv 2401.05779")
    made["calibrated"] = method("Calibrated", ["calibrated"], ours)
    made["decouple"] = method(
        "Ascent, then retain", ["decouple", "retain"], "Varshney & Torra, arXiv 2502.04260"
    )
    return made
