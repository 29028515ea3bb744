"""The MAE of transformers in PyTorch, under the published names."""

import re

import numpy as np
import torch
import transformers

PUBLISHED = {
    "decoder.decoder_layers": "decoder_blocks",
    "decoder.decoder_": "decoder_",
    "decoder.mask_token": "mask_token",
    "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "vit.embeddings.cls_token": "cls_token",
    "vit.layers": "blocks",
    "vit.layernorm.": "norm.",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.": "attn.",
    "o_proj": "proj",
}


def build(image_size, patch, mask_ratio, dim, depth, heads, decoder_dim, decoder_depth,
          decoder_heads):  # fmt: skip
    """ViTMAEForPreTraining with the sizes of a `models.MAE`, fields by their names there."""
    config = transformers.ViTMAEConfig(
        image_size=image_size, patch_size=patch, mask_ratio=mask_ratio, layer_norm_eps=1e-6,
        hidden_size=dim, num_hidden_layers=depth, num_attention_heads=heads,
        intermediate_size=4 * dim, decoder_intermediate_size=4 * decoder_dim,
        decoder_hidden_size=decoder_dim, decoder_num_hidden_layers=decoder_depth,
        decoder_num_attention_heads=decoder_heads,
    )  # fmt: skip
    return transformers.ViTMAEForPreTraining(config)


def published(tensors):
    """Numpy arrays by published name; q, k and v become one."""
    found = {}
    for name, tensor in tensors.items():
        for old, new in PUBLISHED.items():
            name = name.replace(old, new)
        found.setdefault(re.sub(r"[qkv]_proj", "qkv", name), []).append(tensor.detach().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def fill(net, state):
    """Copy tensors by published name into the network."""
    for name, value in net.state_dict().items():
        (target,) = published({name: torch.empty(1, device="cpu")})
        part = re.search(r"([qkv])_proj", name)
        value.copy_(state[target].chunk(3)["qkv".index(part[1])] if part else state[target])
