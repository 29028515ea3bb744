"""Outputs of a converted model beside those of PyTorch, where a package has the same architecture.

The reference gets the tensors of the file, not ours, so that a mistake in names or layouts shows.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from unlearn_jax.convert.reading import Tensors

_IMAGES = 2

# (regex on the published name, the package's name); "{}" stands for each of q, k and v.
_VIT_BLOCK = (
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.qkv\.", ".attention.{}_proj."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
)
_MAE = (
    (r"^cls_token$", "vit.embeddings.cls_token"),
    (r"^pos_embed$", "vit.embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "vit.embeddings.patch_embeddings.projection."),
    (r"^norm\.", "vit.layernorm."),
    (r"^blocks\.", "vit.layers."),
    (r"^decoder_blocks\.", "decoder.decoder_layers."),
    (r"^(mask_token|decoder_\w+)(\.|$)", r"decoder.\1\2"),
    *_VIT_BLOCK,
)
_CLIP = (
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.attn\.in_proj_", ".self_attn.{}_proj."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
_RESNET = (
    (r"^conv1\.", "resnet.embedder.embedder.convolution."),
    (r"^bn1\.", "resnet.embedder.embedder.normalization."),
    (r"^fc\.", "classifier.1."),
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
)


Pairs = dict[str, tuple[np.ndarray, np.ndarray]]
Rules = Sequence[tuple[str, str | Callable[[re.Match], str]]]


def renamed(source: Tensors, rules: Rules) -> dict[str, np.ndarray]:
    """Rename a file's tensors to a package's names; each rule applies once, q, k, v are parted."""
    found = {}
    for name in source.shapes:
        value, new = np.asarray(source.read(name)).astype(np.float32), name
        for regex, template in rules:
            new = re.sub(regex, template, new)
        if "{}" in new:
            for part, array in zip("qkv", np.split(value, 3), strict=True):
                found[new.format(part)] = array
        else:
            found[new] = value
    return found


def outputs(family: str, model: Any, params: Any, source: Tensors, path: Path) -> dict[str, Any]:
    """Compare outputs: {"reference": which package or why none, "outputs": {name: difference}}.

    A difference is the largest absolute one over the largest absolute value of the reference, on
    two random images. A folder of transformers is loaded by transformers, with its own config.json.
    """
    if family not in REFERENCES:
        why = f"no package has the architecture of {family}; see docs/parity.md for its tests"
        return {"reference": why, "outputs": {}}
    try:
        import torch
        import transformers
    except ImportError as error:
        why = f"not compared: {error.name} is not installed (pip install 'unlearn_jax[parity]')"
        return {"reference": why, "outputs": {}}
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with torch.no_grad():
        pairs = REFERENCES[family](model, params, source, path)
    return {
        "reference": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "outputs": {
            name: float(np.abs(mine - theirs).max() / np.abs(theirs).max())
            for name, (mine, theirs) in pairs.items()
        },
    }


def _load(reference: Any, state: Mapping[str, np.ndarray]) -> Any:
    import torch

    reference.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
    return reference.eval()


def _images(size: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (_IMAGES, size, size, 3)).astype(np.float32)


def _nchw(images: Any) -> Any:
    import torch

    return torch.tensor(np.asarray(images).transpose(0, 3, 1, 2).copy())


def _loaded_mae(model: Any, source: Tensors, path: Path) -> Any:
    """Load the reference of an MAE: by its folder if there is one, else with the same fields."""
    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    if source.library and path.is_dir():
        return ViTMAEForPreTraining.from_pretrained(
            path, dtype=torch.float32, local_files_only=True
        ).eval()
    config = ViTMAEConfig(
        hidden_size=model.dim, num_hidden_layers=model.depth, num_attention_heads=model.heads,
        intermediate_size=4 * model.dim, image_size=model.image_size, patch_size=model.patch,
        decoder_hidden_size=model.decoder_dim, decoder_num_hidden_layers=model.decoder_depth,
        decoder_num_attention_heads=model.decoder_heads, layer_norm_eps=model.epsilon,
        decoder_intermediate_size=4 * model.decoder_dim, mask_ratio=model.mask_ratio,
        norm_pix_loss=model.norm_pix_loss,
    )  # fmt: skip
    return _load(ViTMAEForPreTraining(config), renamed(source, _MAE))


def _mae(model: Any, params: Any, source: Tensors, path: Path) -> Pairs:
    import torch

    reference = _loaded_mae(model, source, path)
    images = _images(model.image_size)
    noise = np.random.default_rng(1).uniform(size=(_IMAGES, (model.image_size // model.patch) ** 2))
    noise = noise.astype(np.float32)
    pixels = _nchw(((images + 1) / 2 - np.float32(model.mean)) / np.float32(model.std))
    given, resized = torch.tensor(noise), reference.config.image_size != model.image_size
    features = reference.vit(
        pixels, noise=given, interpolate_pos_encoding=resized
    ).last_hidden_state
    batch = {"image": images, "mask": np.zeros_like(images[..., :1])}
    key, draws = jax.random.key(0), {"mask_noise": noise}
    latent = jax.jit(model.encode)(params, batch, key, draws=draws)
    found = {"encoder": (np.asarray(latent), features.numpy())}
    if resized:  # transformers interpolates the decoder's table along the sequence, not the grid
        return found
    loss = jax.jit(model.loss)(params, batch, key, draws=draws)
    theirs = reference(pixels, noise=given)
    return found | {"loss": (np.asarray(loss).mean(), theirs.loss.numpy())}


def _clip(model: Any, params: Any, source: Tensors, _: Path) -> Pairs:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=model.width, num_hidden_layers=model.layers, num_attention_heads=model.heads,
        intermediate_size=model.mlp_width, image_size=model.image_size, patch_size=model.patch,
        projection_dim=model.embed_dim, hidden_act="quick_gelu" if model.quick_gelu else "gelu",
    )  # fmt: skip
    kept = {name: shape for name, shape in source.shapes.items() if name.startswith("visual.")}
    state = renamed(Tensors(kept, source.dtypes, source.read), _CLIP)
    state["visual_projection.weight"] = state["visual_projection.weight"].T
    reference = _load(CLIPVisionModelWithProjection(config), state)
    images = _images(model.image_size)
    pixels = _nchw(((images + 1) / 2 - np.float32(model.mean)) / np.float32(model.std))
    theirs = reference(pixels).image_embeds.numpy()
    theirs = theirs / np.linalg.norm(theirs, axis=1, keepdims=True)
    mine = jax.jit(model.features)(params, images)
    return {"embedding": (np.asarray(mine["embedding"]), theirs)}


def _resnet50(model: Any, params: Any, source: Tensors, _: Path) -> Pairs:
    from transformers import ResNetConfig, ResNetForImageClassification

    def of_block(found: re.Match) -> str:
        stage, block, kind, layer = found.groups()
        part = "convolution" if kind == "conv" else "normalization"
        return (
            f"resnet.encoder.stages.{int(stage) - 1}.layers.{block}.layer.{int(layer) - 1}.{part}."
        )

    rules = (
        *_RESNET,
        (r"^layer(\d)\.(\d)\.(conv|bn)(\d)\.", of_block),
        (r"^layer(\d)\.(\d)\.", lambda m: f"resnet.encoder.stages.{int(m[1]) - 1}.layers.{m[2]}."),
    )
    config = ResNetConfig(
        embedding_size=model.width, hidden_sizes=[model.width * 4 * 2**i for i in range(4)],
        depths=[3, 4, 6, 3], num_labels=model.classes,
    )  # fmt: skip
    reference = ResNetForImageClassification(config)
    state = renamed(source, rules)
    # Files from before torch 0.4.1 do not have the counters of batches.
    state = {k: v.numpy() for k, v in reference.state_dict().items() if "num_batches" in k} | state
    reference = _load(reference, state)
    images = _images(model.image_size)
    pixels = _nchw(((images + 1) / 2 - np.float32(model.mean)) / np.float32(model.std))
    mine = jax.jit(model.features)(params, images)
    return {"logits": (np.asarray(mine["logits"]), reference(pixels).logits.numpy())}


REFERENCES: dict[str, Callable[..., Pairs]] = {
    "mae": _mae,
    "clip": _clip,
    "resnet50": _resnet50,
}
