"""Programs that a request calls, and how often: from the config and its data set's sizes."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from launch.aot import inventory, programs
from launch.aot.programs import Program
from unlearn_jax import config
from unlearn_jax.evaluate.protocol import evaluation as protocol
from unlearn_jax.methods import goals
from unlearn_jax.registry import UserError

DATASETS = {  # training images, images of the other split, classes
    "cifar10": (50_000, 10_000, 10),
    "cifar10_sample": (2_500, 500, 10),
    "imagenet2012": (1_281_167, 50_000, 1000),
    "places365_small": (1_803_460, 36_500, 365),
}


class Rows(NamedTuple):
    """How many images play which part; holdout: of each of its two halves."""

    train: int
    forget: int
    retain: int
    holdout: int
    evaluated: int


class Part(NamedTuple):
    """Calls of one program.

    Attributes:
      section: a stage, a method to compare, "audits", "evaluation" or "protocol".
      name: of the part.
      kind: "training" or "sampling".
      program: "step" or "sampler", as the scale table calls the nearest of its programs; or "".
      calls: so many.
      images: of one call.
      flops: of one call, over all chips, without what is computed again to save memory.
      argument_bytes: of one call, on each chip.
    """

    section: str
    name: str
    kind: str
    program: str
    calls: float
    images: int
    flops: float
    argument_bytes: float


def parse_rows(given: Sequence[str]) -> dict[str, int]:
    """Parse "train=…" to {"train": …}.

    Raises:
      UserError: not such a list.
    """
    try:
        found = {name: int(n) for name, n in (text.split("=") for text in given)}
    except ValueError:
        found = {"": 0}
    if not set(found) <= set(Rows._fields) or min(found.values(), default=1) < 0:
        raise UserError(f"Expected --rows as {'=…,'.join(Rows._fields)}=…; got {list(given)}.")
    return found


def count_rows(cfg: ConfigDict, given: dict[str, int]) -> Rows:
    """Count a request's images, as far as its config and the data set's published size tell.

    Raises:
      UserError: they do not, with what --rows has to give.
    """
    train, test, classes = DATASETS.get(cfg.data.name, (0, 0, 0))
    train = given.get("train", cfg.data.train_rows or train)
    each = train / classes if classes else 0.0
    forget, keep, hold = cfg.request, cfg.retain, cfg.holdout

    def of_classes(n: int, per_class: int) -> int:
        return round(n * min(each, per_class or each))

    def needed(name: str, found: float | None) -> int:
        if name not in given and not found:
            raise UserError(
                f"The config does not tell how many {name} images there are: data.name is "
                f"{cfg.data.name!r}, request.kind {forget.kind!r}, retain.kind {keep.kind!r}. "
                f"Give --rows={name}=…."
            )
        return given.get(name, round(found or 0))

    train = needed("train", train)
    forgotten = {
        "classes": of_classes(len(forget.classes), forget.per_class),
        "random": forget.fraction * train,
    }
    n_forget = needed("forget", forgotten.get(forget.kind))
    kept = {
        "complement": train - n_forget,
        "subset": keep.fraction * (train - n_forget),
        "classes": of_classes(len(keep.classes), keep.per_class),
        "other_classes": of_classes(classes - len({*keep.classes, *forget.classes}),
                                    keep.per_class),
        "none": 0,
    }  # fmt: skip
    n_retain = given["retain"] if "retain" in given else kept.get(keep.kind)
    n_retain = needed("retain", n_retain) if n_retain != 0 else 0
    share = len(forget.classes) / classes if forget.kind == "classes" and classes else 1.0
    pool = (test if hold.split else hold.fraction * train) * share
    holdout = 0 if hold.split == "none" else needed("holdout", pool / 2)
    per_class, others = cfg.protocol.per_class or test / max(classes, 1), classes
    retained = cfg.protocol.retain_classes or cfg.retain.classes * (keep.kind == "classes")
    others = len(retained) or classes - len(forget.classes)
    evaluated = round((len(forget.classes) + others) * per_class) * (forget.kind == "classes")
    return Rows(train, n_forget, n_retain, holdout, given.get("evaluated", evaluated))


def request(cfg: ConfigDict, chips: int, rows: Rows, without: Sequence[str] = ()) -> list[Part]:
    """List all parts of a request: of `compare` if the config has methods, else of `pipeline`.

    Args:
      cfg: a valid config.
      chips: so many.
      rows: of `count_rows`.
      without: sections to leave out.

    Raises:
      UserError: there is no such section.
    """
    asked = _Request(cfg, chips, rows, without)
    parts = list(asked.parts())
    if unknown := set(without) - asked.sections:
        known = ", ".join(sorted(asked.sections))
        raise UserError(f"Expected --without among {known}; got {sorted(unknown)}.")
    return parts


class _Request:
    def __init__(self, cfg: ConfigDict, chips: int, rows: Rows, without: Sequence[str]):
        devices = np.empty((chips, 1), object)
        devices[...] = jax.devices()[0]  # one device many times: it is only asked for shapes
        self.cfg, self.rows, self.mesh = cfg, rows, Mesh(devices, programs.AXES)
        self.made = inventory.programs_of(cfg, self.mesh)
        self.phases = inventory.with_methods(cfg)  # in a stage each
        self.known: dict[str, tuple[int, float, float]] = {}
        self.without, self.sections = without, set[str]()

    def cost(self, name: str) -> tuple[int, float, float]:
        """Compute (images, FLOPs, bytes of arguments on each chip) of a call of a program."""
        if name in self.known:
            return self.known[name]
        kind, _, what = name.partition(": ")
        made: Callable[..., Program] = self.made.get(name)
        if kind == "step":
            made = partial(programs.step, self.phases, self.mesh, phase=what, remat=False)
        elif kind == "goal":
            goal, _, outputs = what.partition(" ")
            views = tuple(range(7)) if outputs else ()  # at most
            made = partial(inventory.losses, self.cfg, self.mesh, goal, views)
        program = made()
        self.known[name] = program.batch, program.flops().total, program.argument_bytes()
        return self.known[name]

    def part(self, section: str, name: str, program: str, calls: float) -> Iterator[Part]:
        """Yield so many calls of a program, unless the section is left out."""
        self.sections.add(section)
        if calls and section not in self.without:
            training = program.startswith(("step", "saliency", "audit: relearning"))
            sampling = program.startswith(("completion", "audit", "probe"))
            nearest = "step" if program.startswith("step") else "sampler" if sampling else ""
            kind = "training" if training else "sampling"
            yield Part(section, name, kind, nearest, calls, *self.cost(program))

    def over(self, section: str, name: str, program: str, images: float) -> Iterator[Part]:
        """Yield as many calls of a program as show it that many images."""
        self.sections.add(section)
        if images and section not in self.without:
            yield from self.part(section, name, program, images / self.cost(program)[0])

    def parts(self) -> Iterator[Part]:
        """Yield all parts."""
        cfg, methods = self.cfg, config.chosen_methods(self.cfg)
        seeds = len(cfg.compare.seeds) if methods else 1
        shadows = 0 if methods else cfg.audit.shadows
        yield from self.stage("original", cfg.stages.original.phases, seeds)
        yield from self.stage("retrained", cfg.stages.retrained.phases, seeds + shadows)
        if not methods:
            yield from self.stage("unlearned", cfg.stages.unlearned.phases, 1)
            yield from self.audits(3 + shadows)
            yield from self.evaluation(3)
            yield from self.protocol(3)
            return
        of = {name: cfg.compare.methods[name].phases for name in methods}
        if any("reference" in cfg.phases[phase].goal for phases in of.values() for phase in phases):
            yield from self.stage("reference", cfg.stages.reference.phases, seeds)
        for name, phases in of.items():
            yield from self.stage(name, phases, seeds)
        yield from self.audits((2 + len(methods)) * seeds)

    def stage(self, section: str, names: Sequence[str], times: int) -> Iterator[Part]:
        """Yield a stage's phases, what is made before them, and what is measured on the way."""
        rows, fit = self.rows, min(goals.FIT_ROWS, self.rows.holdout)
        for name in names:
            phase = self.cfg.phases[name]
            if not phase.steps:
                continue
            if phase.goal:
                goal, images = f"goal: {phase.goal}", times * (fit + rows.forget)
                yield from self.over(section, "goals", goal, images)
                if phase.objective_kw.get("direction", 0) > 0:
                    images = times * rows.forget
                    yield from self.over(section, "outputs of views", f"{goal} outputs", images)
            if phase.cache_tokens:
                images = rows.forget * bool(phase.forget_weight)
                images += rows.retain * bool(phase.retain_weight)
                yield from self.over(section, "tokens", "tokens", times * images)
            if 0 < phase.saliency < 1:
                images = times * rows.forget
                yield from self.over(section, "saliency", "saliency: gradient", images)
            yield from self.part(section, name, f"step: {name}", times * phase.steps)
            probes = phase.steps // phase.probe_every if phase.probe_every else 0
            scratch = " from scratch" * (section in ("original", "retrained", "reference"))
            yield from self.part(section, f"{name}, probe", f"probe{scratch}", times * probes)

    def audits(self, models: int) -> Iterator[Part]:
        """Yield errors and losses of every model, a backdoor, and training in attacks."""
        cfg, rows = self.cfg, self.rows
        if not rows.holdout:
            return
        relearn, again = cfg.audit.relearn, cfg.audit.resurfacing
        most, forget = cfg.audit.rows, min(cfg.audit.rows, rows.forget)
        unseen = min(most, rows.holdout)
        audited = forget + min(most, rows.train - rows.forget) + unseen
        yield from self.over("audits", "errors", "audit: errors", models * audited)
        settings = len(again.learning_rates) * len(again.on)
        on_the_way = settings * len(again.steps) + 2 * (relearn.steps // relearn.every)
        copies = (19 + on_the_way) * (forget + unseen) + 8 * unseen  # noise, views, masks, rounded
        yield from self.over("audits", "losses", "audit: losses", models * copies)
        if cfg.poison.fraction:
            yield from self.over("audits", "backdoor", "completion", models * 2 * unseen)
        steps = settings * max((0, *again.steps)) + 2 * relearn.steps
        yield from self.part("audits", "training", "audit: relearning", models * steps)

    def evaluation(self, models: int) -> Iterator[Part]:
        """Yield the completion of the images of every set by every model."""
        rows = self.rows
        retain = min(self.cfg.evaluation.retain_rows, rows.train - rows.forget)
        images = models * (rows.forget + retain + rows.holdout)
        yield from self.over("evaluation", "completed images", "completion", images)

    def protocol(self, models: int) -> Iterator[Part]:
        """Yield the published evaluation: completed images, and what the towers make of them."""
        settings, images = self.cfg.protocol, self.rows.evaluated
        completed = models * len(protocol.tasks(settings)) * images
        name = "completion for the protocol"
        name = name if name in self.made else "completion"
        yield from self.over("protocol", "completed images", name, completed)
        for metric in settings.metrics if images else ():
            if metric != "kid":
                originals = images * (protocol.METRICS[metric] != ("score",))
                title, program = f"tower of {metric}", f"tower: {metric}"
                yield from self.over("protocol", title, program, completed + originals)
