"""CLIP's image encoder (a vision transformer) as a feature tower."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from unlearn_jax.evaluate.towers.resnet50 import apply, check_fields, init
from unlearn_jax.models.vit import Attention, layer_norm
from unlearn_jax.registry import UserError


class _Block(nn.Module):
    """x += attention(norm x); x += mlp(norm x), with a choice of GELU."""

    heads: int
    mlp_width: int
    quick_gelu: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        x = x + Attention(self.heads, self.dtype, name="attn")(layer_norm("norm1", 1e-5)(x))
        y = nn.Dense(self.mlp_width, dtype=self.dtype, name="fc1")(layer_norm("norm2", 1e-5)(x))
        y = y * nn.sigmoid(1.702 * y) if self.quick_gelu else nn.gelu(y, approximate=False)
        return x + nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(y)


class _Clip(nn.Module):
    patch: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    embed_dim: int
    quick_gelu: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        patch = (self.patch, self.patch)
        dense = {"use_bias": False, "dtype": self.dtype}
        x = nn.Conv(self.width, patch, patch, padding="VALID", name="patch_embed", **dense)(x)
        x = x.reshape(len(x), -1, self.width).astype(jnp.float32)
        small = nn.initializers.normal(self.width**-0.5)
        token = self.param("class_embedding", small, (self.width,))
        token = jnp.broadcast_to(token, (len(x), 1, self.width))
        x = jnp.concatenate([token, x], axis=1)
        x = x + self.param("position_embedding", small, x.shape[1:])
        x = layer_norm("norm_pre", 1e-5)(x).astype(self.dtype)
        for i in range(self.layers):
            block = _Block(
                self.heads, self.mlp_width, self.quick_gelu, self.dtype, name=f"block{i}"
            )
            x = block(x)
        x = layer_norm("norm_post", 1e-5)(x[:, 0])
        x = nn.Dense(self.embed_dim, name="proj", **dense)(x).astype(jnp.float32)
        length = jnp.sqrt(jnp.square(x).sum(-1, keepdims=True))
        return {"embedding": x / jnp.maximum(length, 1e-12)}


@dataclasses.dataclass(frozen=True)
class Clip:
    """CLIP's image encoder, ViT-H-14 by default: embeddings of unit length, for inference.

    Raises:
      UserError: a field is out of range.

    Source: Radford et al., "Learning transferable visual models from natural language
    supervision", arXiv 2103.00020; open_clip's ViT-H-14 laion2b_s32b_b79k, its layers and names.
    """

    image_size: int = 224
    patch: int = 14
    width: int = 1280
    layers: int = 32
    heads: int = 16
    mlp_width: int = 5120
    embed_dim: int = 1024
    """Length of the embeddings."""
    quick_gelu: bool = False
    """x * sigmoid(1.702 x) instead of the exact GELU: on for OpenAI's own checkpoints."""
    mean: tuple[float, ...] | list[float] = (0.48145466, 0.4578275, 0.40821073)
    """Mean of red, green and blue in [0, 1], subtracted inside."""
    std: tuple[float, ...] | list[float] = (0.26862954, 0.26130258, 0.27577711)
    """By which is then divided."""
    dtype: str = "float32"
    """Type of the matrix products, or "bfloat16". Parameters, norms and outputs are float32."""

    def __post_init__(self):
        sizes = ("image_size", "patch", "width", "layers", "heads", "mlp_width", "embed_dim")
        check_fields(self, positive=sizes)
        for name, part in (("image_size", "patch"), ("width", "heads")):
            whole, unit = getattr(self, name), getattr(self, part)
            if whole % unit:
                raise UserError(f"Clip.{name} must be a multiple of {part}={unit}, got {whole}.")

    @property
    def _module(self) -> nn.Module:
        fields = ("patch", "width", "layers", "heads", "mlp_width", "embed_dim", "quick_gelu")
        return _Clip(**{name: getattr(self, name) for name in (*fields, "dtype")})

    def init(self, key: PRNGKeyArray) -> dict[str, Any]:
        """Draw fresh float32 parameters."""
        return init(self, key)

    def features(
        self, params: Mapping[str, Any], images: Float[Array, "b h w 3"]
    ) -> dict[str, Float[Array, "b _"]]:
        """Compute embeddings "embedding" [b embed_dim] of images in [-1, 1], of Euclidean length 1.

        Inside, images become ((images + 1) / 2 - mean) / std, by default with OpenAI's numbers.

        Raises:
          UserError: the images are not image_size x image_size.
        """
        return apply(self, params, images)
