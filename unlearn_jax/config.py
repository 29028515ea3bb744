"""Configs: the defaults, which are also the schema, and validation."""

import dataclasses
import difflib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from unlearn_jax import combine, objectives, optim
from unlearn_jax.models import MODELS, build

STOP_METRICS = ("", "displacement", "forget_over_holdout")
FREE = ("objective_kw", "combine_kw")  # of a phase: as the chosen function's options
ROWS = ("train", "retain", "remaining")
GOALS = ("", "views", "reference", "views+reference", "quantiles", "mean")
# Keys that change where or how fast a run goes, not what it computes.
NOT_HASHED = ("name", "stage", "init_from", "reference_from", "mesh", "sharding", "log_every")
NOT_HASHED += ("checkpoint", "evaluation", "audit", "compare")
# Keys that a model trained from scratch depends on only through the rows that they lead to.
NOT_HASHED_SCRATCH = ("request", "retain", "holdout", "poison", "probe_rows")
NOT_HASHED_DATA = ("data_dir", "cache", "num_threads", "prefetch")


def default() -> ConfigDict:
    """A config with every key there is. Configs start from it and fill in the rest."""
    return ConfigDict(
        {
            "name": "",  # title of the report
            "seed": 0,  # of everything random
            "stage": "original",  # what train.py runs: a key of `stages`
            "init_from": "",  # workdir of a finished run, where the stage's parameters come from
            "reference_from": "",  # the same of the reference model, if a goal wants one
            "batch_size": 128,  # rows per step over all devices
            "data": {
                "kind": "tfds",  # "tfds", "folder" or "arrays"
                "name": "",  # tfds: name of the dataset; "cifar10_sample" comes with the package
                "data_dir": "",  # tfds: where it was prepared
                "path": "",  # folder: class sub-folders; arrays: an .npz file
                "splits": ("train", "test"),
                "train_rows": 0,  # only so many, the same share of each class; 0: all
                "train_seed": 0,  # which ones
                "image_size": 32,
                "cache": True,  # decode once and keep the pixels in memory
                "num_threads": 1,  # more help only where images are decoded on every step
                "prefetch": 8,  # batches
            },
            "request": {
                "kind": "random",  # "classes", "random", "ids" or "predicate"
                "classes": (),  # classes: names or numbers
                "fraction": 0.1,  # random: of each class
                "seed": 0,  # random; and of the choice of holdout rows
                "file": "",  # ids: one per line or a CSV; predicate: rule.py
            },
            "retain": {
                "kind": "complement",  # "complement", "subset" or "proxy"
                "fraction": 0.5,  # subset: of each class
                "seed": 0,  # subset
                "data": {"kind": "", "name": "", "data_dir": "", "path": "", "splits": ("train",)},
            },
            "holdout": {
                "split": "test",  # "" reserves rows of the training split instead
                "fraction": 0.1,  # of each class, if reserved
            },
            "poison": {
                "fraction": 0.0,  # of the forget set that carries a backdoor, for the audit
                "seed": 0,
            },
            "task": {
                "name": "inpaint",  # "inpaint", "outpaint" or "random_mask"
                "hole": 0.5,  # inpaint: side of the hole / side of the image
                "visible": 0.5,  # outpaint: side of the visible centre / side of the image
                "ratio": 0.5,  # random_mask: share of the patches
                "patch": 4,  # random_mask: side of a patch, pixels
            },
            "model": {"name": "autoencoder"},  # and the model's own fields
            "stages": {
                # rows: what plays the retain part; scratch: whether it may start without init_from
                "original": {"rows": "train", "phases": ("pretrain",), "scratch": True},
                "unlearned": {"rows": "retain", "phases": ("decouple", "retain"), "scratch": False},
                "retrained": {"rows": "remaining", "phases": ("pretrain",), "scratch": True},
            },
            "phases": {},  # name -> phase(...)
            "probe_rows": 256,  # fixed forget and holdout rows each, measured while training
            "evaluation": {
                "retain_rows": 1000,  # a fixed random choice of that many; forget, holdout: all
                "grid_rows": 8,
                "confidence": 0.95,
                "resamples": 1000,  # of the bootstrap
            },
            "audit": {
                "rows": 2000,  # of each set, at most
                "shadows": 1,  # further retrained models, which some attacks compare with
                "batch_size": 64,  # of fine-tuning
                "learning_rate": 3e-4,  # of fine-tuning
                "finetune_steps": 50,  # on retain rows, before the backdoor is tried again
                "relearn": {
                    "images": 64,  # forget rows to learn again
                    "rows": 256,  # others, on which the error is measured
                    "steps": 40,
                    "every": 4,  # steps between measurements
                    "seeds": 2,
                },
            },
            "compare": {
                "seeds": (0, 1, 2),  # of the models; the request has its own
                "models": "",  # where trained models are kept for other requests; "": in workdir
                "methods": {},  # name -> method(...)
                "only": (),  # names of those to compare; (): all
            },
            "checkpoint": {"every": 200, "keep": 2},
            "log_every": 20,
            "mesh": {"data": -1, "fsdp": 1},
            "sharding": ((".*", "fsdp"),),  # (regex on a leaf's path, spec), see sharding.py
        },
        convert_dict=True,
    )


def phase(**values: Any) -> ConfigDict:
    """One phase: `phase(objective=…, steps=…, optimizer=dict(learning_rate=…), …)`."""
    spec = ConfigDict(
        {
            "objective": "reconstruction",
            "objective_kw": {},
            "goal": "",  # the loss that each forget row should end with, see goals.py
            "steps": 1,  # at most
            "batch_size": 0,  # rows per step over all devices; 0: the config's
            "retain_weight": 1.0,  # 0: retain rows are neither loaded nor computed
            "forget_weight": 0.0,  # 0: the same for forget rows
            "forget_fraction": 0.5,  # of each batch, if both weights are positive
            "combine": "sum",  # of the retain and the forget gradient, see combine.py
            "combine_kw": {},
            "saliency": 0.0,  # share of the parameters that may change, see saliency.py; 0: all
            "optimizer": {
                "name": "adam",
                "learning_rate": 1e-3,
                "schedule": "constant",
                "warmup_steps": 0,
                "weight_decay": 0.0,
                "clip_norm_l2": 0.0,
            },
            "probe_every": 50,  # steps between measurements on the probe rows; 0: never
            # The phase ends early once metric >= at_least, seen every probe_every steps.
            # displacement: mean RMS distance to the original's outputs, forget probe, masked part.
            # forget_over_holdout: mean forget loss / the original's mean holdout loss.
            "stop": {"metric": "", "at_least": 0.0},
        }
    )
    for name, value in values.items():
        if name in FREE:
            spec[name] = ConfigDict(value)
        elif isinstance(value, Mapping):
            spec[name].update(value)
        else:
            spec[name] = value
    return spec


def method(label: str, phases: Sequence[str], source: str = "") -> ConfigDict:
    """A method to compare: its label, the phases of the unlearned stage, and where it is from."""
    return ConfigDict({"label": label, "phases": tuple(phases), "source": source})


def chosen_methods(config: ConfigDict) -> list[str]:
    """The methods to compare; on a command line --config.compare.only=a,b arrives as one string."""
    only = [name for part in config.compare.only for name in part.split(",")]
    return only or list(config.compare.methods)


def validate(config: ConfigDict) -> None:
    """Checks everything that can be known without data or devices.

    Raises:
      ValueError: listing every problem at once.
    """
    problems = _differences(config, default(), free=("model", "phases", "stages", "methods"))
    if not problems:
        problems += _values(config)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ValueError(f"The config has {len(problems)} problem(s):\n{listed}")


def _differences(
    found: Any, expected: Any, path: str = "config", free: Sequence[str] = ()
) -> list[str]:
    """Unknown and missing keys and wrong types, against the defaults."""
    problems = []
    for key in sorted(set(found.keys()) - set(expected.keys())):
        near = difflib.get_close_matches(key, list(expected.keys()), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {sorted(expected.keys())}"
        problems.append(f"{path}.{key}: unknown key; {hint}")
    for key in sorted(set(expected.keys()) - set(found.keys())):
        problems.append(f"{path}.{key}: missing")
    for key in sorted(set(found.keys()) & set(expected.keys()) - set(free)):
        value, like = found[key], expected[key]
        if isinstance(like, ConfigDict) != isinstance(value, ConfigDict):
            problems.append(f"{path}.{key}: expected like {like!r}, got {value!r}")
        elif isinstance(like, ConfigDict):
            problems += _differences(value, like, f"{path}.{key}", free)
        elif not _same_type(value, like):
            problems.append(
                f"{path}.{key}: expected {type(like).__name__} like {like!r}, got {value!r}"
            )
    return problems


def _same_type(value: Any, like: Any) -> bool:
    if isinstance(like, bool) or isinstance(value, bool):
        return isinstance(like, bool) and isinstance(value, bool)
    if isinstance(like, float):
        return isinstance(value, int | float) and value == value
    return isinstance(value, list | tuple if isinstance(like, tuple) else type(like))


def _values(config: ConfigDict) -> list[str]:
    problems = []

    def expect(good: bool, path: str, expected: str, got: Any) -> None:
        if not good:
            problems.append(f"config.{path}: expected {expected}, got {got!r}")

    for path in (
        *("batch_size", "log_every", "checkpoint.every", "checkpoint.keep", "probe_rows"),
        *("data.image_size", "data.num_threads", "data.prefetch"),
        *("evaluation.retain_rows", "evaluation.grid_rows", "evaluation.resamples"),
        *("audit.rows", "audit.batch_size", "audit.relearn.images", "audit.relearn.rows"),
        *("audit.relearn.steps", "audit.relearn.every"),
    ):
        expect(_get(config, path) >= 1, path, "at least 1", _get(config, path))
    for path in (
        *("seed", "request.seed", "retain.seed", "poison.seed", "data.train_seed"),
        *("audit.shadows", "audit.finetune_steps", "audit.relearn.seeds"),
    ):
        expect(_get(config, path) >= 0, path, "at least 0", _get(config, path))
    expect(config.data.train_rows >= 0, "data.train_rows", "at least 0", config.data.train_rows)
    poisoned = config.poison.fraction
    expect(0 <= poisoned <= 1, "poison.fraction", "between 0 and 1", poisoned)
    confidence = config.evaluation.confidence
    expect(0 < confidence < 1, "evaluation.confidence", "between 0 and 1", confidence)
    for path, names in {
        "data.kind": ("tfds", "folder", "arrays"),
        "request.kind": ("classes", "random", "ids", "predicate"),
        "retain.kind": ("complement", "subset", "proxy"),
        "task.name": ("inpaint", "outpaint", "random_mask"),
        "stage": tuple(config.stages.keys()),
        "model.name": tuple(MODELS),
    }.items():
        if _get(config, path) not in names:
            problems.append(f"config.{path}: {_unknown(_get(config, path), names)}")

    if config.model.name in MODELS:
        fields = {f.name for f in dataclasses.fields(MODELS[config.model.name])}
        unknown = sorted(set(config.model.keys()) - fields - {"name"})
        problems += [f"config.model.{key}: {_unknown(key, fields)}" for key in unknown]
        if not unknown:
            try:
                build(**config.model.to_dict())
            except (TypeError, ValueError) as error:
                problems.append(f"config.model: {error}")

    for name, stage in config.stages.items():
        like = default().stages.original
        wrong = _differences(stage, like, f"config.stages.{name}")
        problems += wrong
        if wrong:
            continue
        if stage.rows not in ROWS:
            problems.append(f"config.stages.{name}.rows: {_unknown(stage.rows, ROWS)}")
        expect(bool(stage.phases), f"stages.{name}.phases", "at least one phase", stage.phases)
        for used in stage.phases:
            if used not in config.phases:
                unknown = _unknown(used, config.phases.keys())
                problems.append(f"config.stages.{name}.phases: {unknown}")
            elif stage.scratch and config.phases[used].get("stop", {}).get("metric"):
                problems.append(
                    f"config.phases.{used}.stop: measured against an original, which the stage "
                    f"{name!r}, from scratch, does not have; set stop.metric to ''"
                )
            elif stage.scratch and 0 < config.phases[used].get("saliency", 0) < 1:
                problems.append(
                    f"config.phases.{used}.saliency: measured at an original, which the stage "
                    f"{name!r}, from scratch, does not have; set it to 0"
                )
            elif stage.scratch and config.phases[used].get("goal"):
                problems.append(
                    f"config.phases.{used}.goal: made with an original, which the stage {name!r}, "
                    "from scratch, does not have; set it to ''"
                )
    known = config.compare.methods.keys()
    for name in chosen_methods(config):
        if name not in known:
            problems.append(f"config.compare.only: {_unknown(name, known)}")
    for name, chosen in config.compare.methods.items():
        wrong = _differences(chosen, method("", ()), f"config.compare.methods.{name}")
        problems += wrong
        for used in () if wrong else chosen.phases:
            if used not in config.phases:
                unknown = _unknown(used, config.phases.keys())
                problems.append(f"config.compare.methods.{name}.phases: {unknown}")
    for name, spec in config.phases.items():
        wrong = _differences(spec, phase(), f"config.phases.{name}", free=FREE)
        problems += wrong or _phase_values(f"config.phases.{name}", spec)
    return problems


def _phase_values(path: str, spec: ConfigDict) -> list[str]:
    problems = []
    try:
        known = objectives.options(spec.objective)
        problems += _options(f"{path}.objective_kw", spec.objective_kw, known)
    except ValueError as error:
        problems.append(f"{path}.objective: {error}")
    if spec.combine not in combine.COMBINE:
        problems.append(f"{path}.combine: {_unknown(spec.combine, combine.COMBINE)}")
    else:
        known = combine.options(spec.combine)
        problems += _options(f"{path}.combine_kw", spec.combine_kw, known)
    if spec.combine != "sum" and min(spec.retain_weight, spec.forget_weight) <= 0:
        problems.append(
            f"{path}.combine: {spec.combine!r} needs both gradients, so both weights above 0, got "
            f"retain_weight={spec.retain_weight}, forget_weight={spec.forget_weight}"
        )
    if not 0 <= spec.saliency <= 1:
        problems.append(f"{path}.saliency: expected between 0 and 1, got {spec.saliency}")
    if spec.goal not in GOALS:
        problems.append(f"{path}.goal: {_unknown(spec.goal, GOALS)}")
    if spec.objective == "calibrated" and not spec.goal:
        problems.append(f"{path}.goal: the objective 'calibrated' needs one of {GOALS[1:]}")
    if spec.objective_kw.get("direction", 0) and "views" not in spec.goal:
        problems.append(
            f"{path}.objective_kw.direction: made from views; set goal to 'views' or "
            f"'views+reference', got goal={spec.goal!r}"
        )
    for key in ("steps", "probe_every", "batch_size"):
        if spec[key] < 0:
            problems.append(f"{path}.{key}: expected at least 0, got {spec[key]}")
    if min(spec.retain_weight, spec.forget_weight) < 0:
        problems.append(
            f"{path}: expected weights of at least 0 (forget terms are ascended already), got "
            f"retain_weight={spec.retain_weight}, forget_weight={spec.forget_weight}"
        )
    if spec.retain_weight == 0 and spec.forget_weight == 0:
        problems.append(f"{path}: retain_weight and forget_weight are both 0: nothing to train")
    if not 0 < spec.forget_fraction < 1:
        problems.append(f"{path}.forget_fraction: expected 0 < f < 1, got {spec.forget_fraction}")
    optimizer = spec.optimizer
    for key, names in (("name", optim.OPTIMIZERS), ("schedule", optim.SCHEDULES)):
        if optimizer[key] not in names:
            problems.append(f"{path}.optimizer.{key}: {_unknown(optimizer[key], names)}")
    if optimizer.learning_rate <= 0:
        problems.append(
            f"{path}.optimizer.learning_rate: expected above 0, got {optimizer.learning_rate}"
        )
    for key in ("warmup_steps", "weight_decay", "clip_norm_l2"):
        if optimizer[key] < 0:
            problems.append(f"{path}.optimizer.{key}: expected at least 0, got {optimizer[key]}")
    if spec.stop.metric not in STOP_METRICS:
        problems.append(f"{path}.stop.metric: {_unknown(spec.stop.metric, STOP_METRICS)}")
    elif spec.stop.metric and (spec.stop.at_least <= 0 or spec.probe_every == 0):
        problems.append(
            f"{path}.stop: a stop rule needs at_least above 0 and probe_every of at least 1, "
            f"got at_least={spec.stop.at_least}, probe_every={spec.probe_every}"
        )
    return problems


def _options(path: str, found: ConfigDict, known: Mapping[str, Any]) -> list[str]:
    """Unknown options, and missing ones that have no default value."""
    problems = [f"{path}.{k}: {_unknown(k, known)}" for k in sorted(set(found.keys()) - set(known))]
    required = {key for key, value in known.items() if value is inspect.Parameter.empty}
    return problems + [f"{path}.{k}: missing" for k in sorted(required - set(found.keys()))]


def _get(config: ConfigDict, path: str) -> Any:
    for key in path.split("."):
        config = config[key]
    return config


def _unknown(value: Any, names: Any) -> str:
    near = difflib.get_close_matches(str(value), [str(n) for n in names], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {value!r}, expected one of {sorted(map(str, names))}{hint}"


def to_json(config: ConfigDict | Mapping[str, Any]) -> str:
    """The config as indented JSON with sorted keys (tuples become lists)."""
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    return json.dumps(values, indent=1, sort_keys=True)


def relevant(config: ConfigDict, **more: Any) -> dict[str, Any]:
    """What decides the numbers of `config.stage`: two runs that agree in it agree in the result.

    Args:
      config: the config.
      more: what it cannot know, such as a hash of the rows that the stage is trained on.
    """
    values = json.loads(to_json(config))
    stage = values["stages"][config.stage]
    ignored = NOT_HASHED + (NOT_HASHED_SCRATCH if stage["scratch"] else ())
    kept = {key: value for key, value in values.items() if key not in ignored}
    kept["data"] = {k: v for k, v in kept["data"].items() if k not in NOT_HASHED_DATA}
    kept["stages"] = {k: v for k, v in stage.items() if k != "rows" or not stage["scratch"]}
    kept["phases"] = {name: values["phases"][name] for name in stage["phases"]}
    return kept | more


def changes(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "config") -> list[str]:
    """Every difference between two nested dicts, as "config.a.b: 1 -> 2"."""
    lines = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += changes(a, b, f"{path}.{key}")
        elif a != b:
            lines.append(f"{path}.{key}: {a!r} -> {b!r}")
    return lines


def claim(workdir: Path, config: ConfigDict, **more: Any) -> None:
    """Writes workdir/config.json, or refuses a workdir that holds a run with other numbers.

    Raises:
      ValueError: listing what changed.
    """
    path = workdir / "config.json"
    facts = json.loads(json.dumps(relevant(config, **more)))
    if path.exists():
        changed = changes(json.loads(path.read_text())["relevant"], facts)
        if changed:
            listed = "\n".join(f"  {line}" for line in changed[:20])
            raise ValueError(
                f"{workdir} holds a run of another config:\n{listed}\nChoose another --workdir, or "
                "remove that one to start again."
            )
    workdir.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"config": config.to_dict(), "relevant": facts}, indent=1))
    partial.replace(path)
