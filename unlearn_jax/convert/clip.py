"""Checkpoints of CLIP with open_clip's (and OpenAI's) names: the image encoder only."""

import math
from typing import Any

from unlearn_jax.convert.family import Family, Published, Shapes
from unlearn_jax.evaluate.towers.clip_tower import Clip
from unlearn_jax.registry import UserError

_BLOCK, _TORCH = r"block(\d+)", r"visual.transformer.resblocks.\1"


def _read(shapes: Shapes) -> dict[str, Any]:
    """Read the sizes of a tower off its tensors.

    Heads are not in the shapes, nor is the GELU: OpenAI's checkpoints want quick_gelu=True.

    Raises:
      UserError: the tensors are not those of CLIP with a vision transformer.
    """
    conv, position, proj = "visual.conv1.weight", "visual.positional_embedding", "visual.proj"
    fc = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    if missing := [name for name in (conv, position, proj, fc) if name not in shapes]:
        raise UserError(
            f"convert clip: expected tensors {missing}, not found. Is it CLIP with open_clip's "
            "names, and its image encoder a vision transformer?"
        )
    width, _, patch, _ = shapes[conv]
    blocks = {name.split(".")[3] for name in shapes if name.startswith("visual.transformer.resb")}
    return {
        "image_size": math.isqrt(shapes[position][0] - 1) * patch,
        "patch": patch,
        "width": width,
        "layers": len(blocks),
        "mlp_width": shapes[fc][0],
        "embed_dim": shapes[proj][1],
    }


_VIT_H = {"image_size": 224, "patch": 14, "width": 1280, "layers": 32, "embed_dim": 1024}


FAMILY = Family(
    about="CLIP with open_clip's names: the image encoder",
    build=Clip,
    read=_read,
    needs=("visual.conv1.weight", "visual.positional_embedding", "visual.proj"),
    unsaid={"heads": "N", "quick_gelu": "true|false"},
    example="open_clip_model.safetensors",
    verified="transformers 5.23: embedding",
    published=(
        Published("ViT-H-14 laion2b of open_clip", _VIT_H, {"heads": 16, "quick_gelu": False}),
        Published("ViT-B of CLIP", {"width": 768, "layers": 12}, {"heads": 12}),
        Published("ViT-L of CLIP", {"width": 1024, "layers": 24}, {"heads": 16}),
    ),
    names=(
        (r"patch_embed", "visual.conv1"),
        (r"class_embedding", "visual.class_embedding"),
        (r"position_embedding", "visual.positional_embedding"),
        (r"norm_pre", "visual.ln_pre"),
        (r"norm_post", "visual.ln_post"),
        (r"proj/kernel", "visual.proj"),
        (rf"{_BLOCK}/attn/qkv/kernel", rf"{_TORCH}.attn.in_proj_weight"),
        (rf"{_BLOCK}/attn/qkv/bias", rf"{_TORCH}.attn.in_proj_bias"),
        (rf"{_BLOCK}/attn/proj", rf"{_TORCH}.attn.out_proj"),
        (rf"{_BLOCK}/norm(\d)", rf"{_TORCH}.ln_\2"),
        (rf"{_BLOCK}/fc1", rf"{_TORCH}.mlp.c_fc"),
        (rf"{_BLOCK}/fc2", rf"{_TORCH}.mlp.c_proj"),
    ),
    layouts=((r"proj/kernel", "same"),),  # there it is multiplied from the right
    # The text encoder and what compares the two: cosines of images do not need them.
    dropped=(
        r"(transformer|token_embedding|ln_final)\..*",
        r"positional_embedding|text_projection|logit_scale|logit_bias",
        r"attn_mask|input_resolution|context_length|vocab_size",
    ),
)
