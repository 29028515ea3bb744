"""The published tokenizer of MAGE, `vqgan_jax_strongaug.ckpt`: 168 tensors."""

import re
from typing import Any

from unlearn_jax.convert.family import Family, Published, Shapes
from unlearn_jax.models.vqgan import VQGAN
from unlearn_jax.registry import UserError

NAMES = (
    (r"(encoder|decoder)/(conv_in|conv_out|norm_out)", r"\1.\2"),
    (r"(encoder|decoder)/mid_block(\d+)/(\w+)", r"\1.mid.block_\2.\3"),
    (r"encoder/down(\d+)_block(\d+)/(\w+)", r"encoder.down.\1.block.\2.\3"),
    (r"decoder/up(\d+)_block(\d+)/(\w+)", r"decoder.up.\1.block.\2.\3"),
    (r"decoder/up(\d+)_upsample", r"decoder.up.\1.upsample.conv"),
    (r"quantize", r"quantize.embedding"),
)
"""Names of a tokenizer on its own; inside MAGE both sides have a prefix."""


def fields(shapes: Shapes, prefix: str = "") -> dict[str, Any]:
    """Read off the sizes of the tokenizer whose tensors have this prefix: fields of `VQGAN`.

    The size of images and the number of groups cannot be seen, and are left out.

    Raises:
      UserError: a tensor that tells a size is missing.
    """

    def shape(name):
        if prefix + name not in shapes:
            raise UserError(
                f"convert: expected a tensor {prefix + name!r}, as in every MAGE tokenizer; the "
                f"checkpoint has {len(shapes)} others. Is it of another family?"
            )
        return shapes[prefix + name]

    block = re.compile(re.escape(prefix) + r"encoder\.down\.(\d+)\.block\.(\d+)\.conv1\.weight")
    places = [
        tuple(map(int, found.groups())) for name in shapes if (found := block.fullmatch(name))
    ]
    shape("encoder.down.0.block.0.conv1.weight")  # so that there are places
    ch = shape("encoder.conv_in.weight")[0]
    codebook, z_dim = shape("quantize.embedding.weight")
    levels, res_blocks = (max(numbers) + 1 for numbers in zip(*places, strict=True))
    mult = [shape(f"encoder.down.{i}.block.0.conv1.weight")[0] / ch for i in range(levels)]
    if any(m != int(m) for m in mult):
        raise UserError(f"convert: channels of the levels are {mult} times those of conv_in.")
    return {
        "ch": ch,
        "ch_mult": tuple(map(int, mult)),
        "res_blocks": res_blocks,
        "z_dim": z_dim,
        "codebook": codebook,
    }


_PUBLISHED = {"ch": 128, "ch_mult": (1, 1, 2, 2, 4), "res_blocks": 2, "z_dim": 256}

FAMILY = Family(
    about="MAGE's tokenizer alone",
    build=VQGAN,
    read=fields,
    needs=("quantize.embedding.weight", "encoder.conv_in.weight",
           "encoder.down.0.block.0.conv1.weight", "decoder.conv_out.weight"),
    unsaid={"image_size": "PIXELS"},
    names=NAMES,
    example="vqgan_jax_strongaug.ckpt",
    verified="the tensors only; no package has it (docs/parity.md)",
    published=(Published("tokenizer of MAGE", _PUBLISHED, {"image_size": 256}),),
    wrapper="state_dict",
)  # fmt: skip
