"""transformers' ViTMAEForPreTraining: its names, its config.json, and tables for other sizes."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from unlearn_jax.convert.family import Dialect
from unlearn_jax.convert.reading import Tensors
from unlearn_jax.models.mae import MAE
from unlearn_jax.registry import UserError

_TABLES = ("pos_embed", "decoder_pos_embed")
_PARTS = ("query", "key", "value")  # of one matrix in the release, three here
# (name in a file of transformers, name of the release). Inside a layer, and outside of them.
_LAYER = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_STACKS = {"vit.encoder.layer": "blocks", "decoder.decoder_encoder.layer": "decoder_blocks"}
_OUTSIDE = {
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "vit.layernorm": "norm",
    "decoder.mask_token": "mask_token",
    **{f"decoder.decoder_{x}": f"decoder_{x}" for x in ("embed", "pos_embed", "norm", "pred")},
}
# What a model in memory calls them since transformers 5, and a torch.save of its state dict.
_IN_MEMORY = (
    (r"^vit\.layers\.", "vit.encoder.layer."),
    (r"^decoder\.decoder_layers\.", "decoder.decoder_encoder.layer."),
    (r"\.attention\.([qkv])_proj\.",
     lambda m: f".attention.attention.{ {p[0]: p for p in _PARTS}[m[1]] }."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)  # fmt: skip
_FIELDS = {
    "image_size": "image_size",
    "patch_size": "patch",
    "hidden_size": "dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "decoder_hidden_size": "decoder_dim",
    "decoder_num_hidden_layers": "decoder_depth",
    "decoder_num_attention_heads": "decoder_heads",
    "layer_norm_eps": "epsilon",
    "mask_ratio": "mask_ratio",
    "norm_pix_loss": "norm_pix_loss",
}


def rename(tensors: Tensors) -> Tensors:
    """Give tensors the names of the release; its matrix of q, k and v is joined of three.

    What has no place keeps its name.
    """
    found: dict[str, list[str]] = {}
    for name in tensors.shapes:
        new, part = _released(name)
        found.setdefault(new, [""] * (1 if part is None else 3))[part or 0] = name
    found = {new: names for new, names in found.items() if all(names)} | {
        name: [name] for names in found.values() if not all(names) for name in names if name
    }

    def shape(names):
        rows, *rest = tensors.shapes[names[0]] or (0,)
        return (rows * len(names), *rest) if tensors.shapes[names[0]] else ()

    def read(name):
        parts = [np.asarray(tensors.read(part)) for part in found[name]]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    return tensors.replaced(
        {new: shape(names) for new, names in found.items()},
        {new: tensors.dtypes[names[0]] for new, names in found.items()},
        read,
    )


def _released(name: str) -> tuple[str, int | None]:
    """Return (name in the release, which part of q, k, v it is) of a tensor of transformers."""
    for regex, template in _IN_MEMORY:
        name = re.sub(regex, template, name)
    base, _, leaf = name.rpartition(".")
    for stack, released in _STACKS.items():
        if found := re.fullmatch(rf"{re.escape(stack)}\.(\d+)\.(.+)", base):
            number, inside = found.groups()
            if inside.startswith("attention.attention."):
                part = inside.rpartition(".")[2]
                if part in _PARTS:
                    return f"{released}.{number}.attn.qkv.{leaf}", _PARTS.index(part)
            elif inside in _LAYER:
                return f"{released}.{number}.{_LAYER[inside]}.{leaf}", None
    if name in _OUTSIDE:
        return _OUTSIDE[name], None
    return f"{_OUTSIDE.get(base, base)}.{leaf}", None


def in_transformers(
    tensors: Iterable[tuple[str, np.ndarray]],
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, array) as transformers' files have them, of a model's with the release's."""
    outside = {new: old for old, new in _OUTSIDE.items()}
    inside = {new: old for old, new in _LAYER.items()}
    stacks = {new: old for old, new in _STACKS.items()}
    for name, array in tensors:
        if found := re.fullmatch(r"((?:decoder_)?blocks)\.(\d+)\.(.+)\.(\w+)", name):
            stack, number, part, leaf = found.groups()
            layer = f"{stacks[stack]}.{number}"
            if part == "attn.qkv":
                for piece, values in zip(_PARTS, np.split(array, 3), strict=True):
                    yield f"{layer}.attention.attention.{piece}.{leaf}", values
            else:
                yield f"{layer}.{inside[part]}.{leaf}", array
        elif name in outside:
            yield outside[name], array
        else:
            base, _, leaf = name.rpartition(".")
            yield f"{outside[base]}.{leaf}", array


def said(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read the fields of an MAE in a config.json of ViTMAE.

    Raises:
      UserError: it asks for what the model here cannot be.
    """
    fixed = {"hidden_act": "gelu", "qkv_bias": True, "num_channels": 3}
    for width in ("hidden_size", "decoder_hidden_size"):
        inner = width.replace("hidden", "intermediate")
        if width in config:
            fixed[inner] = 4 * config[width]
    if wrong := [k for k, v in fixed.items() if config.get(k, v) != v]:
        raise UserError(
            f"config.json has {wrong[0]}={config[wrong[0]]}, which is not supported: an MAE here "
            f"has {fixed[wrong[0]]}."
        )
    found = {name: config[key] for key, name in _FIELDS.items() if key in config}
    for name in ("image_size", "patch"):
        if isinstance(found.get(name), list | tuple):
            if len({*found[name]}) != 1:
                raise UserError(f"config.json has {name}={found[name]}; expected a square.")
            found[name] = found[name][0]
    return found


def config(model: MAE) -> dict[str, Any]:
    """Write the config.json of a model."""
    return {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        **{key: getattr(model, name) for key, name in _FIELDS.items()},
        "intermediate_size": 4 * model.dim,
        "decoder_intermediate_size": 4 * model.decoder_dim,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "num_channels": 3,
        "dtype": "float32",
    }


def resized(tensors: Tensors, model: MAE) -> Tensors:
    """Interpolate the position tables for the model's image size, bicubically.

    As transformers' `interpolate_pos_encoding` does with the encoder's table. (It interpolates the
    decoder's along the sequence, without regard to rows; here both are grids.)
    """
    side = model.image_size // model.patch
    shapes = {
        name: (1, 1 + side**2, shape[-1]) if name in _TABLES else shape
        for name, shape in tensors.shapes.items()
    }

    def read(name):
        table = np.asarray(tensors.read(name))
        if name not in _TABLES:
            return table
        old = math.isqrt(table.shape[1] - 1)
        grid = table[0, 1:].astype(np.float32).reshape(old, old, -1)
        grid = np.einsum("ip,jq,pqd->ijd", *[_cubic(side, old)] * 2, grid, optimize=True)
        return np.concatenate([table[:, :1], grid.reshape(1, side**2, -1)], 1, dtype=np.float32)

    return tensors.replaced(shapes, tensors.dtypes, read)


def _cubic(new: int, old: int) -> np.ndarray:
    """Make the matrix [new, old] of cubic convolution (Keys 1981) with a = -0.75, as in PyTorch."""
    place = (np.arange(new) + 0.5) * old / new - 0.5
    matrix, a = np.zeros((new, old)), -0.75
    for tap in range(-1, 3):
        at = np.floor(place) + tap
        x = np.abs(place - at)
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        column = np.clip(at, 0, old - 1).astype(int)
        np.add.at(matrix, (np.arange(new), column), np.where(x <= 1, near, far))
    return matrix.astype(np.float32)


DIALECT = Dialect(
    library="transformers",
    about="ViTMAEForPreTraining of transformers: a `save_pretrained` folder",
    verified="transformers 5.23, which loads the folder: encoder, loss",
    needs=("vit.embeddings.cls_token", "vit.embeddings.patch_embeddings.projection.weight"),
    rename=rename,
    export=in_transformers,
    config=config,
)
