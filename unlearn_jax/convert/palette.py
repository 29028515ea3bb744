"""How Palette's checkpoints are named: a flat state dict, `16_Network.pth` and the like."""

import re
from typing import Any

from unlearn_jax.convert.family import Family, Published, Shapes
from unlearn_jax.models.palette import Palette
from unlearn_jax.registry import UserError

_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "emb": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
}
_BLOCKS = {
    r"encoder/input(\d+)": r"input_blocks.\1.0",
    r"encoder/middle(\d+)": r"middle_block.\1",
    r"decoder/output(\d+)": r"output_blocks.\1.0",
    r"decoder/output(\d+)_up": r"output_blocks.\1.1",
    r"decoder/output(\d+)_attn_up": r"output_blocks.\1.2",
}
_NAMES = [
    (r"schedule/(\w+)", r"\1"),
    (r"encoder/cond_embed/dense(\d)", r"denoise_fn.cond_embed.\1"),
    (r"encoder/input0", r"denoise_fn.input_blocks.0.0"),
    (r"encoder/middle1/(norm|qkv|proj_out)", r"denoise_fn.middle_block.1.\1"),
    (r"\w+/(in|out)put(\d+)_attn/(norm|qkv|proj_out)", r"denoise_fn.\1put_blocks.\2.1.\3"),
    (r"decoder/out_norm", r"denoise_fn.out.0"),
    (r"decoder/out_conv", r"denoise_fn.out.2"),
    *(
        (f"{block}/{part}", f"denoise_fn.{name}.{layer}")
        for block, name in _BLOCKS.items()
        for part, layer in _PARTS.items()
    ),
]


def _read(shapes: Shapes) -> dict[str, Any]:
    """Read the sizes of a Palette off its tensors.

    The size of the images and the channels of a head leave no trace in a checkpoint. Nor do the
    groups of the norms, which are 32 in all of the release's code.

    Raises:
      UserError: the tensors are not those of a Palette U-Net.
    """

    def count(pattern):
        return sum(re.fullmatch(pattern, name) is not None for name in shapes)

    blocks = count(r"denoise_fn\.output_blocks\.\d+\.0\.out_layers\.3\.weight")
    levels = 1 + count(r"denoise_fn\.output_blocks\.\d+\.[12]\.out_layers\.3\.weight")
    run, rest = divmod(blocks, levels)  # a level has res_blocks + 1 on the way up
    names = [f"denoise_fn.input_blocks.{1 + run * i}.0.out_layers.3.weight" for i in range(levels)]
    missing = {"gammas", "denoise_fn.cond_embed.0.weight", *names} - set(shapes)
    if missing or rest:
        raise UserError(
            f"Expected the tensors of a Palette U-Net, got {len(shapes)} tensors, among them "
            f"{sorted(shapes)[:3]}, and not {sorted(missing)}; {blocks} output blocks at {levels} "
            "resolutions. Is it the right --family?"
        )
    inner = shapes["denoise_fn.cond_embed.0.weight"][1]
    return {
        "inner": inner,
        "mults": tuple(shapes[name][0] // inner for name in names),
        "res_blocks": run - 1,
        "attn_res": tuple(
            2**i
            for i in range(levels)
            if f"denoise_fn.input_blocks.{1 + run * i}.1.qkv.weight" in shapes
        ),
        "timesteps": shapes["gammas"][0],
    }


_PUBLISHED = {"inner": 64, "mults": (1, 2, 4, 8), "res_blocks": 2, "timesteps": 2000}
_PUBLISHED |= {"attn_res": ()}

FAMILY = Family(
    about="Palette: Janspiry/Palette-Image-to-Image-Diffusion-Models",
    build=Palette,
    read=_read,
    needs=("gammas", "denoise_fn.cond_embed.0.weight", "denoise_fn.input_blocks.0.0.weight"),
    unsaid={"image_size": "PIXELS", "head_channels": "N"},
    any_sides=True,
    names=_NAMES,
    example="16_Network.pth",
    verified="the tensors only; no package has it (docs/parity.md)",
    published=(
        Published("Palette of the release", _PUBLISHED, {"image_size": 256, "head_channels": 32}),
    ),
    layouts=[(r"\w+/(middle1|\w+_attn)/(qkv|proj_out)/kernel", "conv1d")],
    # A copy of the U-Net as it was before, which the release's own runs leave in their files.
    dropped=[r"teacher_denoise_fn\..*"],
)
