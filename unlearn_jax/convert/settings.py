"""What is said about a checkpoint beside its tensors: arguments in the file, configs beside it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlearn_jax import files
from unlearn_jax.convert import mae, vitmae
from unlearn_jax.convert.reading import Tensors
from unlearn_jax.registry import UserError, brief

Said = dict[str, dict[str, Any]]  # fields by where they are said
_LARGEST = 2**20  # bytes of a config


def said(family: str, tensors: Tensors, file: Path) -> Said:
    """Collect the fields of the model that are said in a file and beside it.

    In the file: the arguments of facebookresearch's training scripts. Beside it: config.json and
    preprocessor_config.json of transformers, open_clip_config.json, a config of Palette, and
    FILE.json, such as 16_Network.json, with the fields of the model here as they are.

    Args:
      family: of the checkpoint.
      tensors: of the file.
      file: of the weights.

    Raises:
      UserError: a config that belongs to the file cannot be read, or asks for something else.
    """
    found: Said = {}
    for name, arguments in tensors.arguments.items():
        if family in ("mae", "mage"):
            found[f"{name} in the file"] = _PRETRAINING[family](arguments)
    name = re.sub(r"(\.(index\.json|safetensors|pth|pt|ckpt|bin|tar))+$", "", file.name)
    own = file.with_name(f"{name}.json")
    if own.is_file() and own.name != "config.json":
        values = _read(own)
        if not _networks(values):
            found[own.name] = values
    for path in sorted(file.parent.glob("*.json")):
        with files.of_others(path, "a config of the weights beside it"):
            if not path.name.endswith(".index.json") and (fields := _beside(family, path)):
                found[path.name] = fields
    return {origin: fields for origin, fields in found.items() if fields}


def _beside(family: str, path: Path) -> dict[str, Any]:
    """Read the fields that a config of a library says, {} if it is of something else."""
    if family == "mae" and path.name == "config.json":
        values = _read(path)
        return vitmae.said(values) if values.get("model_type") == "vit_mae" else {}
    if family == "mae" and path.name == "preprocessor_config.json":
        values = _read(path)
        names = {"image_mean": "mean", "image_std": "std"}
        return {ours: tuple(values[name]) for name, ours in names.items() if name in values}
    if family == "clip" and path.name == "open_clip_config.json":
        return _open_clip(_read(path))
    if family == "palette" and (networks := _networks(_read(path, strict=False))):
        return _palette(networks)
    return {}


def _read(path: Path, strict: bool = True) -> dict[str, Any]:
    """Read a config; // begins a comment in Palette's."""
    try:
        content = files.regular(path, _LARGEST).read_bytes()
        return files.parse(re.sub(rb'^((?:[^"\n]|"[^"\n]*")*?)//.*$', rb"\1", content, flags=re.M))
    except (ValueError, OSError) as error:
        if strict:
            raise UserError(f"{path} beside the weights cannot be read: {brief(error)}.") from error
        return {}


def _pretraining(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Read the sizes of MAGE in the arguments of its main_pretrain.py."""
    sizes = {"base": (12, 16), "large": (16, 16)}
    named = re.fullmatch(r"mage_vit_(base|large)_patch16", str(arguments.get("model")))
    return dict(zip(("heads", "decoder_heads"), sizes[named[1]], strict=True)) if named else {}


_PRETRAINING = {"mae": mae.said, "mage": _pretraining}


def _open_clip(values: Mapping[str, Any]) -> dict[str, Any]:
    model, images = values.get("model_cfg", {}), values.get("preprocess_cfg", {})
    vision = model.get("vision_cfg", {})
    found = {"quick_gelu": bool(model.get("quick_gelu", False))}
    if "width" in vision:  # 64 is open_clip's default
        found["heads"] = vision["width"] // vision.get("head_width", 64)
    return found | {name: tuple(images[name]) for name in ("mean", "std") if name in images}


def _networks(values: Mapping[str, Any]) -> list[Any]:
    try:
        return values["model"]["which_networks"]
    except (KeyError, TypeError):
        return []


def _palette(networks: list[Any]) -> dict[str, Any]:
    """Read the U-Net of a config of Janspiry's release."""
    names = {
        "image_size": "image_size", "num_head_channels": "head_channels", "dropout": "dropout",
        "inner_channel": "inner", "channel_mults": "mults", "res_blocks": "res_blocks",
        "attn_res": "attn_res",
    }  # fmt: skip
    try:
        unet = networks[0]["args"]["unet"]
        found = {ours: unet[name] for name, ours in names.items() if name in unet}
    except (KeyError, TypeError, IndexError):
        return {}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}
