"""Rules that a config must meet for a certificate, and its bound's arguments. No JAX.

One phase of the stage is *noised* (`phase.noise`). Whatever comes before it is arbitrary, it begins
with a projection, and whatever comes after it may use the retain rows only.

**Guarantee**: a config without problems runs one of three mechanisms as `bounds` account them. What
no config can show is in `ASSUMPTIONS`, which every certificate carries.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

Section = ConfigDict | Mapping[str, Any]
CERTIFIERS = ("retrain", "reference")
ACCOUNTANTS = ("gdp", "reflection")  # "dobrushin" goes with model clipping
# Objectives that look neither at the original nor at other rows' forget flags.
OWN_LOSS = ("reconstruction", "tokenizer")
ASSUMPTIONS = (
    "radii, clip norms, noise, steps and all other settings were chosen without the forget set",
    "the centre of the balls never saw the forget set, nor data derived from it",
    "only the released parameters, or what is computed from them, are published: no optimizer "
    "state, no earlier checkpoint, no metrics, not the original",
    "the noise secret came from a sound random generator and is known to nobody",
    "float32 arithmetic and sampling behave as their real counterparts",
    "the files of the run are those that the run wrote",
)


def is_noised(phase: Section) -> bool:
    """Tell whether the phase adds noise."""
    return phase["noise"]["std"] > 0 or phase["noise"]["initial_std"] > 0


def position(config: Section) -> int | None:
    """Find the first noised phase of config.stage; None if no phase is noised."""
    names = config["stages"][config["stage"]]["phases"]
    found = [i for i, name in enumerate(names) if is_noised(config["phases"][name])]
    return found[0] if found else None


def mechanism(phase: Section) -> tuple[str, dict[str, Any]]:
    """Return (name, arguments) of a noised phase, as `certificate.account` takes them."""
    noise, optimizer = phase["noise"], phase["optimizer"]
    if noise["model_clip"] > 0:
        return "model_clipping", {
            "model_clip_norm": noise["model_clip"],
            "noise_std": noise["std"],
            "steps": phase["steps"],
            "init_radius": noise["radius"] or None,
            "init_noise_std": noise["initial_std"] or None,
        }
    if noise["std"] > 0:
        return "noisy_finetune", {
            "init_radius": noise["radius"],
            "steps": phase["steps"],
            "step_size": optimizer["learning_rate"],
            "clip_norm": optimizer["clip_norm_l2"],
            "noise_std": noise["std"],
            "weight_decay": optimizer["weight_decay"],
        }
    return "output_perturbation", {
        "init_radius": noise["radius"],
        "noise_std": noise["initial_std"],
    }


def problems(config: Section) -> list[str]:
    """List every problem of a config that is sound in all other respects."""
    wanted, found = config["certificate"], []
    if not 0 <= wanted["delta"] < 1:
        found.append(
            f"config.certificate.delta: expected within (0, 1), or 0 for no certificate, got "
            f"{wanted['delta']}"
        )
    for key, names in (("certifier", CERTIFIERS), ("accountant", ACCOUNTANTS)):
        if wanted[key] not in names:
            found.append(
                f"config.certificate.{key}: expected one of {sorted(names)}, got {wanted[key]!r}"
            )
    for name, phase in config["phases"].items():
        bad = [k for k, v in phase["noise"].items() if not 0 <= v < float("inf")]
        found += [
            f"config.phases.{name}.noise.{k}: expected finite and at least 0, got "
            f"{phase['noise'][k]}" for k in bad
        ]  # fmt: skip
    if found:
        return found
    somewhere = False
    for name, stage in config["stages"].items():
        noised = [p for p in stage["phases"] if is_noised(config["phases"][p])]
        somewhere |= bool(noised)
        if noised:
            found += _stage(config, f"config.stages.{name}", stage, noised)
    if wanted["delta"] and not somewhere:
        found.append(
            "config.certificate.delta: no stage has a noised phase, and without noise nothing is "
            "certified; set it to 0, or noise a phase"
        )
    return found


def _stage(config: Section, path: str, stage: Section, noised: list[str]) -> list[str]:
    if stage["scratch"]:
        return [f"{path}.phases: {noised[0]!r} is noised, but a model from scratch needs no noise"]
    found = []
    if not config["certificate"]["delta"]:
        found.append(
            f"config.certificate.delta: {noised[0]!r} is noised; say at which delta it is certified"
        )
    if stage["rows"] == "train":
        found.append(
            f"{path}.rows: expected 'retain' or 'remaining', got 'train', which has the forget rows"
        )
    if len(noised) > 1:
        found.append(f"{path}.phases: expected one noised phase, got {noised}")
    first = list(stage["phases"]).index(noised[0])
    for name in dict.fromkeys(list(stage["phases"])[first:]):
        phase, where = config["phases"][name], f"config.phases.{name}"
        found += _retain_only(where, phase)
        if name == noised[0]:
            found += _noise(where, phase, config["certificate"]["accountant"])
    return found


def _retain_only(path: str, phase: Section) -> list[str]:
    """List where the noised phase, or one after it, sees the forget set or the original."""
    why = "from the noised phase on, only retain rows and the model itself may be used"
    expected = {
        "forget_weight": (phase["forget_weight"], 0),
        "goal": (phase["goal"], ""),
        "stop.metric": (phase["stop"]["metric"], ""),
        "combine": (phase["combine"], "sum"),
        "rewind": (phase.get("rewind", 0), 0),
        "teacher": (phase.get("teacher", "original"), "original"),
    }
    found = [
        f"{path}.{key}: expected {good!r}, got {got!r}: {why}"
        for key, (got, good) in expected.items()
        if got != good
    ]
    if phase["objective"] not in OWN_LOSS:
        found.append(
            f"{path}.objective: expected one of {list(OWN_LOSS)}, got {phase['objective']!r}: {why}"
        )
    if phase["shrink"]["alpha"]:
        found.append(f"{path}.shrink.alpha: expected 0, got {phase['shrink']['alpha']}: {why}")
    if 0 < phase["saliency"] < 1:
        found.append(f"{path}.saliency: expected 0, got {phase['saliency']}: {why}")
    return found


def _noise(path: str, phase: Section, accountant: str) -> list[str]:
    noise, optimizer, name = phase["noise"], phase["optimizer"], mechanism(phase)[0]
    rules = []  # (key, expected, got, whether it is met)

    def expect(key, expected, got, met):
        rules.append((key, expected, got, met))

    if name == "output_perturbation":
        expect("steps", "0, what follows is a phase of its own", phase["steps"], not phase["steps"])
    else:
        expect("steps", "at least 1", phase["steps"], phase["steps"] >= 1)
        expect("noise.std", "above 0", noise["std"], noise["std"] > 0)
        expect("optimizer.name", "'sgd', which has no state", optimizer["name"],
               optimizer["name"] == "sgd")  # fmt: skip
        expect("optimizer.schedule", "'constant'", optimizer["schedule"],
               optimizer["schedule"] == "constant")  # fmt: skip
        expect("optimizer.warmup_steps", "0", optimizer["warmup_steps"],
               optimizer["warmup_steps"] == 0)  # fmt: skip
        expect("optimizer.no_decay", "(), decay contracts only what it pulls",
               tuple(optimizer["no_decay"]), not tuple(optimizer["no_decay"]))  # fmt: skip
        pull = optimizer["learning_rate"] * optimizer["weight_decay"]
        expect("optimizer.weight_decay", "learning_rate * weight_decay below 1", pull, pull < 1)
    if name == "noisy_finetune":
        clip = optimizer["clip_norm_l2"]
        expect("optimizer.clip_norm_l2", "above 0, what bounds a step", clip, clip > 0)
        expect("noise.initial_std", "0 with noise.std", noise["initial_std"],
               noise["initial_std"] == 0)  # fmt: skip
    if name != "model_clipping" or noise["initial_std"] > 0:
        expect("noise.radius", "above 0, of the projection before any noise", noise["radius"],
               noise["radius"] > 0)  # fmt: skip
    found = [
        f"{path}.{key}: expected {want}, got {got!r}" for key, want, got, met in rules if not met
    ]
    if accountant == "reflection" and name != "noisy_finetune":
        found.append(
            f"config.certificate.accountant: 'reflection' is for noisy fine-tuning, {path} is "
            f"{name}; set it to 'gdp'"
        )
    return found
