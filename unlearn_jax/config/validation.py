"""Problems of a config, all at once and before anything is loaded."""

import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from unlearn_jax import methods as objectives
from unlearn_jax import models, registry
from unlearn_jax.config import FREE, certified, chosen_methods, default, method, phase, ranges
from unlearn_jax.config.ranges import get
from unlearn_jax.data import holdout, preprocess, sampling, slices, sources
from unlearn_jax.data import select as requests
from unlearn_jax.data.sizes import shown, sides
from unlearn_jax.data.transforms import TASKS
from unlearn_jax.methods import combine
from unlearn_jax.methods import optimizer as optim
from unlearn_jax.methods.goals import GOALS
from unlearn_jax.methods.shrink import BY, TOWARDS
from unlearn_jax.models import Model
from unlearn_jax.registry import UserError, brief, unknown

STOP_METRICS = ("", "displacement", "forget_over_holdout")
ROWS = ("train", "retain", "remaining")
TEACHERS = ("original", "before")


def validate(config: ConfigDict) -> None:
    """Check everything that can be known without data or devices.

    Raises:
      UserError: listing every problem at once.
    """
    free = ("model", "phases", "stages", "methods", "image_size")
    problems = _differences(config, default(), free=free)
    problems += ranges.not_finite(config.to_dict())
    if not problems:
        problems += _values(config)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise UserError(f"The config has {len(problems)} problem(s):\n{listed}")


def _differences(
    found: Any, expected: Any, path: str = "config", free: Sequence[str] = ()
) -> list[str]:
    """List unknown and missing keys and wrong types, against the defaults."""
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
        elif isinstance(value, str) and "://" in value:
            problems.append(
                f"{path}.{key}: expected a path, got the URL {value!r}; mount the bucket, as "
                "launch/README.md says"
            )
    return problems


def _same_type(value: Any, like: Any) -> bool:
    if isinstance(like, bool) or isinstance(value, bool):
        return isinstance(like, bool) and isinstance(value, bool)
    if isinstance(like, float):
        return isinstance(value, int | float)
    return isinstance(value, list | tuple if isinstance(like, tuple) else type(like))


def _values(config: ConfigDict) -> list[str]:
    """List every value that is not what its key allows, part by part."""
    parts = (ranges.problems, _choices, _named, _stages, _methods, _phases)
    problems = [problem for part in parts for problem in _of(part, config)]
    return problems or _of(certified.problems, config) or _of(slices.problems, config)


def _of(part: Callable[[ConfigDict], list[str]], config: ConfigDict) -> list[str]:
    """List the problems of a part; one that cannot be looked at has one."""
    try:
        return part(config)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        return [f"config: a value is of another type than its key allows; {brief(error)}"]


def _choices(config: ConfigDict) -> list[str]:
    problems = []
    for path, names in {
        "data.resize": preprocess.RESIZE,
        "data.augment.name": preprocess.AUGMENT,
        "request.kind": ("classes", "random", "ids", "predicate"),
        "request.pick": sampling.PICK,
        "request.copies": requests.COPIES,
        "retain.kind": requests.KINDS,
        "retain.pick": sampling.PICK,
        "task.name": TASKS,
        "task.train": ("", *TASKS),
        "stage": tuple(config.stages.keys()),
    }.items():
        if get(config, path) not in names:
            problems.append(f"config.{path}: {unknown(get(config, path), names)}")
    on = tuple(config.audit.resurfacing.on)
    if not set(on) <= {"retain", "unseen"}:
        problems.append(
            f"config.audit.resurfacing.on: expected 'retain', 'unseen' or both, got {on}"
        )
    return problems


def _named(config: ConfigDict) -> list[str]:
    """List problems of what may be one's own: the model with its fields, the kind of data."""
    problems = []
    for path, lookup in (("model.name", models.find), ("data.kind", sources.find)):
        try:
            lookup(get(config, path))
        except ValueError as error:
            problems.append(f"config.{path}: {error}")
    for name in config.audit.own:
        try:
            registry.find({}, name, "audit")
        except ValueError as error:
            problems.append(f"config.audit.own: {error}")
    model = _model(config)
    if not model or not dataclasses.is_dataclass(model):
        return problems
    fields = {field.name for field in dataclasses.fields(model)}
    others = sorted(set(config.model.keys()) - fields - {"name"})
    problems += [f"config.model.{key}: {unknown(key, fields)}" for key in others]
    if not others:
        try:
            size = getattr(models.of(config), "image_size", config.data.image_size)
            if sides(size, "model.image_size") != sides(config.data.image_size):
                problems.append(
                    f"config.model.image_size: expected config.data.image_size, "
                    f"{shown(config.data.image_size)}, got {shown(size)}; leave it out, or set both"
                )
        except (TypeError, ValueError) as error:
            problems.append(f"config.model: {error}")
    return problems


def _stages(config: ConfigDict) -> list[str]:
    problems = []
    for name, stage in config.stages.items():
        path = f"config.stages.{name}"
        wrong = _differences(stage, default().stages.original, path)
        problems += wrong
        if wrong:
            continue
        if stage.rows not in ROWS:
            problems.append(f"{path}.rows: {unknown(stage.rows, ROWS)}")
        problems += _phases_of(config, f"{path}.phases", stage.phases)
        for used in (used for used in stage.phases if used in config.phases):
            spec, where = config.phases[used], f"config.phases.{used}"
            slices, objective = spec.get("accumulate") or config.accumulate, spec.get("objective")
            if slices != 1 and objective in objectives.BATCH_COUPLED | objectives.DRAWING:
                problems.append(
                    f"{where}.accumulate: expected 1, for {objective!r} looks at a whole batch or "
                    f"draws noise for it, got {slices!r}"
                )
            if stage.scratch:
                problems += _needs_original(where, spec, name)
                problems += _not_by_slices(where, spec) if config.data.slices.count else []
            elif stage.rows == "retain":
                problems += _needs_sets(where, spec, config)
    return problems


def _phases_of(config: ConfigDict, path: str, phases: Sequence[str]) -> list[str]:
    if not phases:
        return [f"{path}: expected at least one phase, got {phases!r}"]
    known = config.phases.keys()
    return [f"{path}: {unknown(used, known)}" for used in phases if used not in known]


def _methods(config: ConfigDict) -> list[str]:
    known, chosen = config.compare.methods.keys(), chosen_methods(config)
    problems = [f"config.compare.only: {unknown(n, known)}" for n in chosen if n not in known]
    for name, spec in config.compare.methods.items():
        path = f"config.compare.methods.{name}"
        wrong = _differences(spec, method("", ()), path)
        problems += wrong or _phases_of(config, f"{path}.phases", spec.phases)
    return problems


def _phases(config: ConfigDict) -> list[str]:
    problems, model = [], _model(config)
    runs = (*config.stages.values(), *(config.compare.methods[m] for m in chosen_methods(config)
                                       if m in config.compare.methods))  # fmt: skip
    used = {name for of in runs for name in of.get("phases", ())}
    for name, spec in config.phases.items():
        path = f"config.phases.{name}"
        if model and spec.get("objective") == "tokenizer" and not model.tokenizer_loss:
            problems.append(f"{path}.objective: {config.model.name!r} has no tokenizer")
        asks = name in used and spec.get("objective_kw", {}).get("direction")
        if model and asks and not model.error:
            problems.append(
                f"{path}.objective_kw.direction: the loss of {config.model.name!r} is not that of "
                "what it decodes; set it to 0"
            )
        if spec.get("cache_tokens"):
            problems += _cannot_cache(f"{path}.cache_tokens", config, spec)
        wrong = _differences(spec, phase(), path, free=FREE)
        problems += wrong or _phase_values(path, spec)
    return problems


def _needs_original(path: str, spec: ConfigDict, stage: str) -> list[str]:
    """List what a phase of a stage from scratch asks for although there is no original."""
    asked = {
        "stop.metric": (spec.get("stop", {}).get("metric"), ""),
        "saliency": (0 < spec.get("saliency", 0) < 1, 0),
        "shrink.alpha": (spec.get("shrink", {}).get("alpha"), 0),
        "rewind": (spec.get("rewind"), 0),
        "teacher": (spec.get("teacher") == "before", "original"),
        "goal": (spec.get("goal"), ""),
    }
    return [
        f"{path}.{key}: needs an original, which the stage {stage!r}, from scratch, does not have; "
        f"set it to {off!r}"
        for key, (wanted, off) in asked.items()
        if wanted
    ]


def _not_by_slices(path: str, spec: ConfigDict) -> list[str]:
    """List what a phase asks for that would depend on slices that are still to enter."""
    try:
        own = getattr(objectives.find(spec.get("objective")), "prepare", None)
    except ValueError:  # said elsewhere
        own = None
    asked = {"objective": own, "noise": any(spec.get("noise", {}).values())}
    return [
        f"{path}.{key}: may depend on all images, or on a secret, so not with data.slices.count; "
        "set that to 0"
        for key, wanted in asked.items()
        if wanted
    ]


def _needs_sets(path: str, spec: ConfigDict, config: ConfigDict) -> list[str]:
    """List what a phase asks of sets that the config says are not there."""
    problems = []
    if config.retain.kind == "none" and spec.get("retain_weight"):
        problems.append(
            f"{path}.retain_weight: there are no retain images (retain.kind='none'); set it to 0, "
            "or give others in their place with retain.kind='proxy'"
        )
    wants = spec.get("goal") or spec.get("stop", {}).get("metric") == "forget_over_holdout"
    if config.holdout.split == holdout.NO_HOLDOUT and wants:
        problems.append(
            f"{path}: its goal or stop.metric needs unseen images (holdout.split='none'); name a "
            "split of them, or stop at a displacement"
        )
    return problems


def _cannot_cache(path: str, config: ConfigDict, spec: ConfigDict) -> list[str]:
    model, found = config.model.name, _model(config)
    reasons = {
        f"{model!r} computes from images, not codes of them": bool(found and found.tokens),
        "the objective trains the tokenizer": spec.get("objective") != "tokenizer",
        "data.augment makes another view of an image in every epoch": not config.data.augment.name,
    }
    return [f"{path}: {reason}; set it to False" for reason, fine in reasons.items() if not fine]


def _phase_values(path: str, spec: ConfigDict) -> list[str]:
    problems = []
    try:
        known = objectives.options(spec.objective)
        problems += _options(f"{path}.objective_kw", spec.objective_kw, known)
    except ValueError as error:
        problems.append(f"{path}.objective: {error}")
    try:
        known = combine.options(spec.combine)
        problems += _options(f"{path}.combine_kw", spec.combine_kw, known)
    except ValueError as error:
        problems.append(f"{path}.combine: {error}")
    if spec.combine != "sum" and min(spec.retain_weight, spec.forget_weight) <= 0:
        problems.append(
            f"{path}.combine: {spec.combine!r} needs both gradients, so both weights above 0, got "
            f"retain_weight={spec.retain_weight}, forget_weight={spec.forget_weight}"
        )
    if not 0 <= spec.saliency <= 1:
        problems.append(f"{path}.saliency: expected between 0 and 1, got {spec.saliency}")
    if not 0 <= spec.shrink.alpha <= 1:
        problems.append(f"{path}.shrink.alpha: expected 0 to 1, got {spec.shrink.alpha}")
    if not 0 <= spec.rewind < 1:
        problems.append(f"{path}.rewind: expected 0 up to, but not 1, got {spec.rewind}")
    for key, value, names in (
        ("shrink.towards", spec.shrink.towards, TOWARDS),
        ("shrink.by", spec.shrink.by, BY),
        ("teacher", spec.teacher, TEACHERS),
    ):
        if value not in names:
            problems.append(f"{path}.{key}: {unknown(value, names)}")
    if spec.goal not in ("", *GOALS):
        problems.append(f"{path}.goal: {unknown(spec.goal, GOALS)}")
    if spec.objective == "calibrated" and not spec.goal:
        problems.append(f"{path}.goal: the objective 'calibrated' needs one of {GOALS}")
    if spec.objective_kw.get("direction", 0) and "views" not in spec.goal:
        problems.append(
            f"{path}.objective_kw.direction: made from views; set goal to 'views' or "
            f"'views+reference', got goal={spec.goal!r}"
        )
    for key in ("steps", "probe_every", "batch_size", "accumulate"):
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
            problems.append(f"{path}.optimizer.{key}: {unknown(optimizer[key], names)}")
    if optimizer.learning_rate <= 0:
        problems.append(
            f"{path}.optimizer.learning_rate: expected above 0, got {optimizer.learning_rate}"
        )
    for key in ("warmup_steps", "weight_decay", "clip_norm_l2"):
        if optimizer[key] < 0:
            problems.append(f"{path}.optimizer.{key}: expected at least 0, got {optimizer[key]}")
    for key in ("b1", "b2"):
        if not 0 <= optimizer[key] < 1:
            problems.append(f"{path}.optimizer.{key}: expected 0 <= x < 1, got {optimizer[key]}")
    for regex in optimizer.no_decay:
        try:
            re.compile(regex)
        except re.error as error:
            problems.append(f"{path}.optimizer.no_decay: {regex!r} is no regex: {error}")
    if spec.stop.metric not in STOP_METRICS:
        problems.append(f"{path}.stop.metric: {unknown(spec.stop.metric, STOP_METRICS)}")
    elif spec.stop.metric and (spec.stop.at_least <= 0 or spec.probe_every == 0):
        problems.append(
            f"{path}.stop: a stop rule needs at_least above 0 and probe_every of at least 1, "
            f"got at_least={spec.stop.at_least}, probe_every={spec.probe_every}"
        )
    return problems


def _options(path: str, found: ConfigDict, known: Mapping[str, Any]) -> list[str]:
    """List unknown options, missing ones that have no default value, and values of other types."""
    problems = [f"{path}.{k}: {unknown(k, known)}" for k in sorted(set(found.keys()) - set(known))]
    for key in sorted(set(found.keys()) & set(known)):
        value, like = found[key], known[key]
        if isinstance(like, bool | int | float | str) and not _same_type(value, like):
            problems.append(f"{path}.{key}: expected {type(like).__name__}, got {value!r}")
        elif isinstance(like, float) and value < 0:
            problems.append(f"{path}.{key}: expected at least 0, got {value!r}")
    required = {key for key, value in known.items() if value is inspect.Parameter.empty}
    return problems + [f"{path}.{k}: missing" for k in sorted(required - set(found.keys()))]


def _model(config: ConfigDict) -> type[Model] | None:
    """Find the class of the config's model; None if there is none of that name."""
    try:
        return models.find(config.model.name)
    except ValueError:
        return None
