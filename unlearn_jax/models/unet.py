"""The U-Net of Palette: that of guided diffusion, told the noise level instead of a timestep.

The half that goes down hands every feature map to the half that goes up, so these maps are all
that the decoder sees of its input. Layer by layer as in Janspiry's Palette (MIT), whose published
`attn_res` of 16 is never reached: attention is in the middle only, unless a model has other rates.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from unlearn_jax.models.layers import GroupNorm, attention


def _keep(x: Array) -> Array:
    return x


class Shape(NamedTuple):
    """Sizes that the two halves of a U-Net share; see `Palette` for the fields."""

    inner: int
    mults: tuple[int, ...]
    res_blocks: int
    head_channels: int
    groups: int
    dropout: float
    attn_res: tuple[int, ...]
    dtype: DTypeLike
    remat: bool


def gamma_embedding(gamma: Float[Array, "b"], dim: int) -> Float[Array, "b dim"]:
    """Embed the noise level gamma, not scaled, no timestep: [cos | sin] over dim / 2 frequencies.

    Args:
      gamma: the share of the signal's variance that is left, in [0, 1].
      dim: even; the frequencies are 10000 ** (-i / (dim / 2)).
    """
    angles = gamma[:, None] * 10000.0 ** (-jnp.arange(dim // 2) / (dim // 2))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class CondEmbed(nn.Module):
    """The embedding of the noise level that every residual block of both halves is given."""

    inner: int

    @nn.compact
    def __call__(self, gamma: Float[Array, "b"]) -> Float[Array, "b e"]:
        """Embed the noise level in 4 * inner numbers; each block applies the activation to them.

        Always float32: the first hundred of 2000 levels are between 0.97 and 1, where bfloat16 has
        eight numbers.
        """
        x = gamma_embedding(gamma, self.inner)
        x = nn.silu(nn.Dense(4 * self.inner, name="dense0")(x))
        return nn.Dense(4 * self.inner, name="dense2")(x)


class ResBlock(nn.Module):
    """x + conv(silu(scaled and shifted norm(conv(resample(silu(norm x))))))."""

    features: int
    groups: int
    dropout: float = 0.0
    resample: Callable[[Array], Array] = _keep  # on both branches
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"]
    ) -> Float[Array, "b h2 w2 f"]:
        """Compute a feature map in `dtype`, norms in float32. The embedding scales and shifts."""
        h = self.resample(nn.silu(group_norm("norm1", self.groups)(x)))
        h = _conv("conv1", self.features, self.dtype)(h)
        modulation = nn.Dense(2 * self.features, dtype=self.dtype, name="emb")(nn.silu(embedding))
        scale, shift = jnp.split(modulation[:, None, None], 2, axis=-1)
        h = nn.silu(group_norm("norm2", self.groups)(h) * (1 + scale) + shift)
        if self.dropout:
            # Without a key (`generate`) nothing is dropped.
            h = nn.Dropout(self.dropout, name="dropout")(h, not self.has_rng("dropout"))
        h = _conv("conv2", self.features, self.dtype, zero=True)(h)
        x = self.resample(x)
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), dtype=self.dtype, name="skip")(x)
        return x + h


class AttentionBlock(nn.Module):
    """x + attention(norm x) between all places of a feature map."""

    head_channels: int
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Compute a feature map; logits and softmax are float32.

        The channels of q, k and v lie head by head: (q, k, v) of the first, then of the second, …
        """
        b, h, w, c = x.shape
        qkv = nn.Dense(3 * c, dtype=self.dtype, name="qkv")(group_norm("norm", self.groups)(x))
        qkv = qkv.reshape(b, h * w, c // self.head_channels, 3, self.head_channels)
        y = attention(*jnp.moveaxis(qkv, 3, 0)).reshape(b, h, w, c)
        zeros = nn.initializers.zeros
        return x + nn.Dense(c, dtype=self.dtype, kernel_init=zeros, name="proj_out")(y)


class Encoder(nn.Module):
    """The half that goes down, and the middle."""

    shape: Shape

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"]
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Compute the feature map after every input block, and after the middle; float32."""
        s = self.shape
        x = _conv("input0", s.inner * s.mults[0], s.dtype)(x)
        maps = [x]
        for level, mult in enumerate(s.mults):
            for _ in range(s.res_blocks):
                x = _res(s, f"input{len(maps)}", s.inner * mult)(x, embedding)
                if 2**level in s.attn_res:
                    x = _attention(s, f"input{len(maps)}_attn")(x)
                maps.append(x)
            if level < len(s.mults) - 1:
                x = _res(s, f"input{len(maps)}", s.inner * mult, _halve)(x, embedding)
                maps.append(x)
        x = _res(s, "middle0", x.shape[-1])(x, embedding)
        x = _attention(s, "middle1")(x)
        x = _res(s, "middle2", x.shape[-1])(x, embedding)
        return tuple(x.astype(jnp.float32) for x in (*maps, x))


class Decoder(nn.Module):
    """The half that goes up."""

    shape: Shape

    @nn.compact
    def __call__(
        self, maps: Sequence[Float[Array, "b _ _ _"]], embedding: Float[Array, "b e"]
    ) -> Float[Array, "b h w 3"]:
        """Predict the noise in the input, float32.

        Args:
          maps: of `Encoder`; the last first, each once.
          embedding: of the noise level.
        """
        s = self.shape
        *maps, x = (x.astype(s.dtype) for x in maps)
        blocks = 0
        for level, mult in reversed(list(enumerate(s.mults))):
            for i in range(s.res_blocks + 1):
                x = jnp.concatenate([x, maps.pop()], axis=-1)
                x, name = (
                    _res(s, f"output{blocks}", s.inner * mult)(x, embedding),
                    f"output{blocks}",
                )
                if 2**level in s.attn_res:
                    name += "_attn"
                    x = _attention(s, name)(x)
                if level and i == s.res_blocks:
                    x = _res(s, f"{name}_up", s.inner * mult, _double)(x, embedding)
                blocks += 1
        x = nn.silu(group_norm("out_norm", s.groups)(x))
        return _conv("out_conv", 3, s.dtype, zero=True)(x).astype(jnp.float32)


def group_norm(name: str, groups: int) -> GroupNorm:
    """Make a group norm with torch's epsilon."""
    return GroupNorm(groups, epsilon=1e-5, name=name)


def _conv(name: str, features: int, dtype: DTypeLike, zero: bool = False) -> nn.Conv:
    """Make a 3 x 3 convolution that keeps the size; what ends a branch starts at zero."""
    init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    return nn.Conv(features, (3, 3), dtype=dtype, kernel_init=init, name=name)


def _res(s: Shape, name: str, features: int, resample=_keep) -> nn.Module:
    block = nn.remat(ResBlock) if s.remat else ResBlock
    return block(features, s.groups, s.dropout, resample, s.dtype, name=name)


def _attention(s: Shape, name: str) -> nn.Module:
    block = nn.remat(AttentionBlock) if s.remat else AttentionBlock
    return block(s.head_channels, s.groups, s.dtype, name=name)


def _halve(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    return nn.avg_pool(x, (2, 2), (2, 2))


def _double(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    return x.repeat(2, axis=1).repeat(2, axis=2)
