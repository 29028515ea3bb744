"""Published MAGE models, such as `mage-vitb-1600.pth`: 433 tensors, with the tokenizer."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from unlearn_jax.convert import vqgan
from unlearn_jax.convert.family import Family, Shapes
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


def _model(shapes: Shapes, given: Mapping[str, Any]) -> MAGE:
    """Build the MAGE of a checkpoint, from the shapes of its tensors; `fields` win.

    Heads cannot be seen: the encoder's have 64 channels, the decoder has 16, as published.
    """
    tokenizer = vqgan.fields(shapes, "vqgan.") | dict(given.get("tokenizer", {}))
    for name in ("token_emb.word_embeddings.weight", "decoder_pos_embed_learned"):
        if name not in shapes:
            raise UserError(f"convert: expected a tensor {name!r}, as in every MAGE model.")
    vocabulary, dim = shapes["token_emb.word_embeddings.weight"]
    _, length, decoder_dim = shapes["decoder_pos_embed_learned"]
    side = round((length - 1) ** 0.5)
    if side**2 != length - 1:
        raise UserError(f"convert: expected a square number of tokens + 1, got {length}.")
    found = {
        "image_size": side * 2 ** (len(tokenizer["ch_mult"]) - 1),
        "dim": dim,
        "depth": _depth(shapes, "blocks"),
        "heads": max(dim // 64, 1),
        "decoder_dim": decoder_dim,
        "decoder_depth": _depth(shapes, "decoder_blocks"),
        "class_slots": vocabulary - tokenizer["codebook"] - 1,
    }
    return MAGE(**{**found, **given, "tokenizer": tokenizer})


def _depth(shapes: Shapes, stack: str) -> int:
    block = re.compile(rf"{stack}\.(\d+)\..*")
    return len({found[1] for name in shapes if (found := block.fullmatch(name))})


def _buffers(model: MAGE) -> dict[str, np.ndarray]:
    return {_POSITION_IDS: np.arange(model.vqgan.num_tokens + 1, dtype=np.int64)[None]}


FAMILY = Family(
    model=_model,
    names=_NAMES,
    wrapper="model",
    dropped=(re.escape(_POSITION_IDS),),
    buffers=_buffers,
)
