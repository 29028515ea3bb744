"""Which run a config stands for: what two configs must share to be of one run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from unlearn_jax import distributed, files
from unlearn_jax.config import default, phase
from unlearn_jax.registry import UserError

# Keys that change where or how fast a run goes, not what it computes.
NOT_HASHED = ("name", "stage", "init_from", "reference_from", "mesh", "sharding", "log_every")
NOT_HASHED += ("log", "accumulate", "checkpoint", "evaluation", "protocol", "audit", "compare")
NOT_HASHED += ("report",)
# Keys that a model trained from scratch depends on only through the rows that they lead to.
NOT_HASHED_SCRATCH = ("request", "retain", "holdout", "poison", "probe_rows", "certificate")
# Of the request; what they lead to, if anything, is in its split's hash.
_NOT_HASHED_REQUEST = ("served", "remember", "case", "due")
# Keys of `audit` that earlier versions had.
GONE = ("finetune_steps", "relearn.rows", "relearn.seeds")
RECORD = "the record of a run"
NOT_HASHED_DATA = ("data_dir", "cache", "num_threads", "prefetch")


def to_json(config: ConfigDict | Mapping[str, Any]) -> str:
    """Write the config as indented JSON with sorted keys (tuples become lists)."""
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    return json.dumps(values, indent=1, sort_keys=True)


def relevant(config: ConfigDict, **more: Any) -> dict[str, Any]:
    """Return the part of the config that determines the result of `config.stage`.

    Runs with equal parts are interchangeable.

    Args:
      config: the config.
      more: what it cannot know, such as a hash of the rows that the stage is trained on.
    """
    values = json.loads(to_json(config))
    stage = values["stages"][config.stage]
    ignored = NOT_HASHED + (NOT_HASHED_SCRATCH if stage["scratch"] else ())
    kept = {key: value for key, value in values.items() if key not in ignored}
    kept["data"] = {k: v for k, v in kept["data"].items() if k not in NOT_HASHED_DATA}
    if not kept["data"].get("exif"):  # as before there was the key
        kept["data"].pop("exif", None)
    if not kept["data"].get("slices", {}).get("count"):
        kept["data"].pop("slices", None)
    kept.get("task", {}).pop("path", None)  # what the masks there are is in `more`
    if not values.get("poison", {}).get("jitter"):
        kept.get("poison", {}).pop("jitter", None)
    kept["stages"] = {k: v for k, v in stage.items() if k != "rows" or not stage["scratch"]}
    kept["phases"] = {name: values["phases"][name] for name in stage["phases"]}
    for spec in kept["phases"].values():  # what is off, as before there was any
        if not any(spec["noise"].values()):
            del spec["noise"]
        if spec.get("cache_tokens") is False:
            del spec["cache_tokens"]
        if not spec.get("shrink", {}).get("alpha"):
            spec.pop("shrink", None)
        elif not spec["shrink"]["by"]:
            del spec["shrink"]["by"]
        for key, off in (("rewind", 0), ("teacher", "original")):
            if spec.get(key) == off:
                del spec[key]
        spec.pop("accumulate", None)
    if "request" in kept:
        kept["request"] = {k: v for k, v in kept["request"].items() if k not in _NOT_HASHED_REQUEST}
    if not values["certificate"]["delta"]:
        kept.pop("certificate", None)
    return kept | more


def changes(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "config") -> list[str]:
    """List every difference between two nested dicts, as "config.a.b: 1 -> 2"."""
    lines = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += changes(a, b, f"{path}.{key}")
        elif a != b:
            lines.append(f"{path}.{key}: {a!r} -> {b!r}")
    return lines


def filled(recorded: Mapping[str, Any]) -> ConfigDict:
    """Return the config of a record, with the defaults of keys that came with later versions.

    Args:
      recorded: a config as nested mappings, lists already made tuples.
    """
    config = default()
    for key, value in recorded.items():
        if key == "audit":
            value = _without(value, GONE)
        if key == "phases":
            config.phases = {name: phase(**spec) for name, spec in value.items()}
        elif isinstance(value, Mapping) and key not in ("model", "stages"):
            _fill(config[key] if key in config else ConfigDict(), value)
        else:
            config[key] = ConfigDict(value) if isinstance(value, Mapping) else value
    return config


def of_run(workdir: Path) -> tuple[ConfigDict, dict[str, Any]]:
    """Return (the config, what is `relevant` of it) of a run's config.json.

    Raises:
      UserError: there is none, or its two parts do not agree.
    """
    path = workdir / "config.json"
    with files.of_others(path, RECORD):
        recorded = files.read_json(path, RECORD)
        # What the config itself says: keys that came with later versions are left out.
        said, known = ConfigDict(tuples(recorded["config"])), dict(recorded["relevant"])
        more = {key: known[key] for key in ("rows", "init_from", "masks") if key in known}
        again = relevant(said, **more)
        if differ := changes(known, json.loads(json.dumps(again))):
            raise UserError("\n  ".join([f"{path}: its two parts differ:", *differ[:10]]))
        return filled(tuples(recorded["config"])), known


def tuples(values: Any) -> Any:
    """Turn JSON lists into the tuples that they were in the config."""
    if isinstance(values, Mapping):
        return {key: tuples(value) for key, value in values.items()}
    return tuple(tuples(value) for value in values) if isinstance(values, list) else values


def _without(section: Mapping[str, Any], gone: Sequence[str]) -> dict[str, Any]:
    """Leave out keys, of which "a.b" is one of a section of the section."""
    kept = {key: value for key, value in section.items() if key not in gone}
    inner = [path.split(".", 1) for path in gone if "." in path]
    for key in {first for first, _ in inner} & kept.keys():
        kept[key] = _without(kept[key], [rest for first, rest in inner if first == key])
    return kept


def _fill(defaults: ConfigDict, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(defaults.get(key), ConfigDict):
            _fill(defaults[key], value)
        else:
            defaults[key] = ConfigDict(value) if isinstance(value, Mapping) else value


def claim(workdir: Path, config: ConfigDict, **more: Any) -> dict[str, Any]:
    """Write workdir/config.json, or refuse a workdir that holds a run with other numbers.

    Return what is `relevant` of the config.

    Like split.json it is written once: a certificate has its hash.

    Raises:
      UserError: listing what changed.
    """
    path = workdir / "config.json"
    facts = json.loads(json.dumps(relevant(config, **more)))
    if path.exists():
        before = files.read_json(path, RECORD, schema={"relevant": dict})["relevant"]
        changed = changes(before, facts)
        if changed:
            listed = "\n".join(f"  {line}" for line in changed[:20])
            raise UserError(
                f"{workdir} holds a run of another config:\n{listed}\nChoose another --workdir, or "
                "remove that one to start again."
            )
    elif distributed.first():
        files.write_json(path, {"config": config.to_dict(), "relevant": facts})
    return facts
