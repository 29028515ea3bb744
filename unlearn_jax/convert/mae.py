"""Checkpoints of facebookresearch/mae: mae_visualize_vit_{base,large,huge}.pth and their like."""

import math
import re
from collections.abc import Mapping
from typing import Any

from unlearn_jax.convert.family import Family, Shapes
from unlearn_jax.models.mae import MAE
from unlearn_jax.registry import UserError

_HEADS = {768: 12, 1024: 16, 1280: 16}
_NEEDED = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight")
_NEEDED_TO_DECODE = ("mask_token", "decoder_pos_embed", "decoder_blocks.0.norm1.weight")


def model(shapes: Shapes, fields: Mapping[str, Any]) -> MAE:
    """Build the MAE of a checkpoint, from the shapes of its tensors; `fields` win.

    Shapes do not tell the heads, which are those of the published model of the same width, nor
    `norm_pix_loss`, which is off for the files called mae_visualize_*.

    Raises:
      UserError: it is not an MAE; it has no decoder; the heads are not known.
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
    dim, decoder_dim = shapes["cls_token"][-1], shapes["mask_token"][-1]
    patches, patch = shapes["pos_embed"][1] - 1, shapes["patch_embed.proj.weight"][-1]
    side = math.isqrt(patches)
    if side**2 != patches:
        raise UserError(
            "convert: pos_embed of an MAE has a row for the class token and one for each patch of "
            f"a square; got {patches + 1} rows, and {patches} is not a square number."
        )
    inferred = {
        "image_size": side * patch,
        "patch": patch,
        "dim": dim,
        "depth": _depth(shapes, "blocks"),
        "heads": _HEADS.get(dim, None if dim % 64 else dim // 64),
        "decoder_dim": decoder_dim,
        "decoder_depth": _depth(shapes, "decoder_blocks"),
        "decoder_heads": 16 if decoder_dim == 512 else None,
    }
    inferred |= fields
    if unknown := [name for name, value in inferred.items() if value is None]:
        raise UserError(
            f"convert: the shapes of an MAE of widths {dim} and {decoder_dim} do not tell "
            f"{' and '.join(unknown)}; say how many, as fields of the model."
        )
    return MAE(**inferred)


def _depth(shapes: Shapes, stack: str) -> int:
    return sum(bool(re.fullmatch(rf"{stack}\.\d+\.norm1\.weight", name)) for name in shapes)


FAMILY = Family(
    model=model,
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
    wrapper="model",
)
