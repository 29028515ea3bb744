"""Published MAGE models, such as `mage-vitb-1600.pth`: 433 tensors, with the tokenizer."""

import re
from typing import Any

import numpy as np

from unlearn_jax.convert import vqgan
from unlearn_jax.convert.family import Family, Published, Shapes
from unlearn_jax.models.mage import MAGE
from unlearn_jax.registry import UserError

_POSITION_IDS = "token_emb.position_ids"
_NAMES = (
    *((f"vqgan/{regex}", f"vqgan.{name}") for regex, name in vqgan.NAMES),
    (r"unused/(cls_token|mask_token|pos_embed|decoder_pos_embed)", r"\1"),
    (r"unused/patch_embed", "patch_embed.proj"),
    (r"unused/decoder_pred", "decoder_pred"),
    (r"encoder/token_emb/(\w+)", r"token_emb.\1"),
    (r"encoder/blocks/block(\d+)/(norm\d)", r"blocks.\1.\2"),
    (r"encoder/blocks/block(\d+)/(attn|mlp)/(\w+)", r"blocks.\1.\2.\3"),
    (r"encoder/norm", "norm"),
    (r"decoder/embed", "decoder_embed"),
    (r"decoder/pos_embed_learned", "decoder_pos_embed_learned"),
    (r"decoder/blocks/block(\d+)/(norm\d)", r"decoder_blocks.\1.\2"),
    (r"decoder/blocks/block(\d+)/(attn|mlp)/(\w+)", r"decoder_blocks.\1.\2.\3"),
    (r"decoder/norm", "decoder_norm"),
    (r"decoder/mlm/(fc|ln)", r"mlm_layer.\1"),
    (r"decoder/mlm", "mlm_layer"),
)


def _read(shapes: Shapes) -> dict[str, Any]:
    """Read the sizes of a MAGE off its tensors.

    Raises:
      UserError: it is none.
    """
    tokenizer = vqgan.fields(shapes, "vqgan.")
    for name in ("token_emb.word_embeddings.weight", "decoder_pos_embed_learned"):
        if name not in shapes:
            raise UserError(f"convert: expected a tensor {name!r}, as in every MAGE model.")
    vocabulary, dim = shapes["token_emb.word_embeddings.weight"]
    _, length, decoder_dim = shapes["decoder_pos_embed_learned"]
    side = round((length - 1) ** 0.5)
    if side**2 != length - 1:
        raise UserError(f"convert: expected a square number of tokens + 1, got {length}.")
    return {
        "image_size": side * 2 ** (len(tokenizer["ch_mult"]) - 1),
        "dim": dim,
        "depth": _depth(shapes, "blocks"),
        "decoder_dim": decoder_dim,
        "decoder_depth": _depth(shapes, "decoder_blocks"),
        "class_slots": vocabulary - tokenizer["codebook"] - 1,
        "tokenizer": tokenizer,
    }


def _depth(shapes: Shapes, stack: str) -> int:
    block = re.compile(rf"{stack}\.(\d+)\..*")
    return len({found[1] for name in shapes if (found := block.fullmatch(name))})


def _buffers(model: MAGE) -> dict[str, np.ndarray]:
    return {_POSITION_IDS: np.arange(model.vqgan.num_tokens + 1, dtype=np.int64)[None]}


def _size(name: str, dim: int, depth: int, heads: int) -> Published:
    told = {"image_size": 256, "dim": dim, "depth": depth, "decoder_dim": dim, "decoder_depth": 8}
    return Published(f"MAGE ViT-{name}", told, {"heads": heads, "decoder_heads": 16})


FAMILY = Family(
    about="MAGE, its tokenizer in it",
    build=MAGE,
    read=_read,
    needs=("token_emb.word_embeddings.weight", "decoder_pos_embed_learned",
           "vqgan.quantize.embedding.weight", "cls_token", "pos_embed"),
    unsaid={"heads": "N", "decoder_heads": "N"},
    names=_NAMES,
    example="mage-vitb-1600.pth",
    verified="the tensors only; no package has it (docs/parity.md)",
    published=(_size("B", 768, 12, 12), _size("L", 1024, 24, 16)),
    wrapper="model",
    dropped=(re.escape(_POSITION_IDS),),
    buffers=_buffers,
)  # fmt: skip
