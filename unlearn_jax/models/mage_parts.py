"""The two transformers of MAGE, as Linen modules, and the parameters that it never uses."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from unlearn_jax.models.layers import Masking, gelu, pick, spread
from unlearn_jax.models.vit import Blocks, layer_norm, sincos_2d

_NORMAL = nn.initializers.normal(0.02)


class Encoder(nn.Module):
    """Embedded tokens through a transformer."""

    vocabulary: int
    dim: int
    depth: int
    heads: int
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        ids: Int[Array, "b m"],
        masking: Masking | None = None,
        scale: Float[Array, "b m d"] | None = None,
    ) -> Float[Array, "b k d"]:
        """Encode: return latents of the kept tokens.

        Args:
          ids: of all tokens, the class slot first.
          masking: which of them go on after they are embedded, see `layers.Masking`; None: all.
          scale: factors of the embeddings: dropout.
        """
        x = _TokenEmbedding(self.vocabulary, self.dim, name="token_emb")(ids)
        if scale is not None:
            x = x * scale
        if masking is not None:
            x = pick(x, masking)
        x = Blocks(self.depth, self.heads, dtype=self.dtype, remat=self.remat, name="blocks")(x)
        return layer_norm("norm", dtype=self.dtype)(x)


class _TokenEmbedding(nn.Module):
    vocabulary: int
    dim: int

    @nn.compact
    def __call__(self, ids):
        def table(rows, name):
            return nn.Embed(rows, self.dim, embedding_init=_NORMAL, name=name)

        words = table(self.vocabulary, "word_embeddings")(ids)
        places = table(ids.shape[1], "position_embeddings")(jnp.arange(ids.shape[1]))
        return layer_norm("LayerNorm")(words + places)


class Decoder(nn.Module):
    """Logits of ids from latents of some of the tokens."""

    dim: int
    depth: int
    heads: int
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        latent: Float[Array, "b k e"],
        masking: Masking | None,
        masked: Bool[Array, "b m"],
        words: Float[Array, "v e"],
        rows: int | None = None,
    ) -> Float[Array, "b n r"]:
        """Compute float32 logits of the first `rows` ids (None: all), at class slot and tokens.

        Args:
          latent: of the class slot, then of the tokens that the encoder kept.
          masking: of the class slot and all tokens, as the encoder got it; None: it kept all.
          masked: tokens for which the class slot stands instead, kept or not.
          words: embeddings of the ids, which are the output layer.
          rows: how many of them are asked for.
        """
        x = nn.Dense(self.dim, dtype=self.dtype, name="embed")(latent)
        first, x = x[:, :1], x if masking is None else spread(x, masking)
        x = jnp.where(jnp.pad(masked, ((0, 0), (1, 0)))[..., None], first, x)
        x = x + self.param("pos_embed_learned", _NORMAL, (1, x.shape[1], self.dim))
        x = Blocks(self.depth, self.heads, dtype=self.dtype, remat=self.remat, name="blocks")(x)
        return _Head(self.dtype, name="mlm")(layer_norm("norm", dtype=self.dtype)(x), words, rows)


class _Head(nn.Module):
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x, words, rows):
        x = nn.Dense(words.shape[1], dtype=self.dtype, name="fc")(x)
        x = layer_norm("ln", 1e-5, self.dtype)(gelu(x))
        bias = self.param("bias", nn.initializers.zeros, (1, 1, len(words)))
        words = words[:rows].astype(self.dtype)
        x = jnp.einsum(
            "bnd,vd->bnv", x.astype(self.dtype), words, preferred_element_type=jnp.float32
        )
        return x + bias[..., :rows]


def unused(num_tokens: int, patch: int, dim: int, decoder_dim: int) -> dict[str, Any]:
    """Make the parameters that published checkpoints hold and no forward pass looks at."""

    def positions(channels):
        table = sincos_2d(channels, round(num_tokens**0.5))
        return jnp.pad(table, ((1, 0), (0, 0)))[None]

    pixels = 3 * patch**2
    return {
        "cls_token": jnp.zeros((1, 1, dim)),
        "mask_token": jnp.zeros((1, 1, decoder_dim)),
        "pos_embed": positions(dim),
        "decoder_pos_embed": positions(decoder_dim),
        "patch_embed": {"kernel": jnp.zeros((patch, patch, 3, dim)), "bias": jnp.zeros((dim,))},
        "decoder_pred": {
            "kernel": jnp.zeros((decoder_dim, pixels)),
            "bias": jnp.zeros((pixels,)),
        },
    }
