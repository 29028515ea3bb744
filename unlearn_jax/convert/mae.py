"""Checkpoints of facebookresearch/mae: mae_visualize_vit_{base,large,huge}.pth and their like."""

import math
import re
from collections.abc import Mapping
from typing import Any

from unlearn_jax.convert import vitmae
from unlearn_jax.convert.family import Family, Published, Shapes
from unlearn_jax.models.mae import MAE, PRESETS
from unlearn_jax.registry import UserError

_NEEDED = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight")
_NEEDED_TO_DECODE = ("mask_token", "decoder_pos_embed", "decoder_blocks.0.norm1.weight")


def _read(shapes: Shapes) -> dict[str, Any]:
    """Read the sizes of an MAE off its tensors.

    Raises:
      UserError: it is not an MAE; it has no decoder.
    """
    if missing := [name for name in _NEEDED if name not in shapes]:
        raise UserError(
            f"convert: an MAE checkpoint has the tensors {', '.join(_NEEDED)}; there is no "
            f"{', '.join(missing)}. Is this file of another model?"
        )
    if missing := [name for name in _NEEDED_TO_DECODE if name not in shapes]:
        raise UserError(
            f"convert: this MAE checkpoint has no {', '.join(missing)}: like mae_pretrain_*.pth "
            "it holds the encoder only, and cannot generate. Take one of the mae_visualize_*.pth "
            "files, which have the decoder."
        )
    patches, patch = shapes["pos_embed"][1] - 1, shapes["patch_embed.proj.weight"][-1]
    side = math.isqrt(patches)
    if side**2 != patches:
        raise UserError(
            "convert: pos_embed of an MAE has a row for the class token and one for each patch of "
            f"a square; got {patches + 1} rows, and {patches} is not a square number."
        )
    return {
        "image_size": side * patch,
        "patch": patch,
        "dim": shapes["cls_token"][-1],
        "depth": _depth(shapes, "blocks"),
        "decoder_dim": shapes["mask_token"][-1],
        "decoder_depth": _depth(shapes, "decoder_blocks"),
    }


def _depth(shapes: Shapes, stack: str) -> int:
    return sum(bool(re.fullmatch(rf"{stack}\.\d+\.norm1\.weight", name)) for name in shapes)


def _published() -> list[Published]:
    """List the published sizes, and the files of them whose name tells `norm_pix_loss`."""
    found = []
    for size, preset in PRESETS.items():
        told = {"image_size": 224, "patch": 16, "decoder_dim": 512, "decoder_depth": 8} | preset
        heads = told.pop("heads")
        known = {"heads": heads, "decoder_heads": 16, "epsilon": 1e-6, "mask_ratio": 0.75}
        found.append(Published(f"ViT-{size} of facebookresearch/mae", told, known))
        # Of the same shapes: one predicts colours, the other normalised patches.
        for file, on in (("mae_visualize", False), ("mae_pretrain", True)):
            names = rf"{file}_vit_{size}.*"
            found.append(Published(f"{file}_vit_{size}", told, {"norm_pix_loss": on}, names))
    return found


def said(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Read fields in the arguments of the release's main_pretrain.py, which its files keep."""
    found = {
        name: arguments[key]
        for key, name in (("norm_pix_loss", "norm_pix_loss"), ("mask_ratio", "mask_ratio"),
                          ("input_size", "image_size"))
        if key in arguments
    }  # fmt: skip
    sizes = re.fullmatch(
        r"mae_vit_(base|large|huge)_patch(\d+)(_dec512d8b)?", str(arguments.get("model"))
    )
    if sizes:
        found |= {**PRESETS[sizes[1]], "patch": int(sizes[2]), "epsilon": 1e-6}
        found |= {"decoder_dim": 512, "decoder_depth": 8, "decoder_heads": 16}
    return found


FAMILY = Family(
    about="MAE of facebookresearch/mae",
    build=MAE,
    read=_read,
    needs=_NEEDED,
    unsaid={
        "heads": "N", "decoder_heads": "N", "epsilon": "1e-6", "norm_pix_loss": "false",
    },
    names=(
        (r"encoder/(cls_token|pos_embed|norm)", r"\1"),
        (r"encoder/patch_embed", r"patch_embed.proj"),
        (r"encoder/blocks/block(\d+)/(norm\d)", r"blocks.\1.\2"),
        (r"encoder/blocks/block(\d+)/(attn|mlp)/(\w+)", r"blocks.\1.\2.\3"),
        (r"decoder/(mask_token)", r"\1"),
        (r"decoder/(embed|pos_embed|norm|pred)", r"decoder_\1"),
        (r"decoder/blocks/block(\d+)/(norm\d)", r"decoder_blocks.\1.\2"),
        (r"decoder/blocks/block(\d+)/(attn|mlp)/(\w+)", r"decoder_blocks.\1.\2.\3"),
    ),
    example="mae_visualize_vit_large.pth",
    verified="transformers 5.23: encoder, loss",
    published=_published(),
    wrapper="model",
    dialect=vitmae.DIALECT,
    resized=vitmae.resized,
)  # fmt: skip
