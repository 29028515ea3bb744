"""A VQ-GAN without attention: images as a grid of codes. It is the tokenizer of MAGE.

The architecture is MaskGIT's, with the names of its published torch port (`vqgan_jax_strongaug`).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from unlearn_jax.data.sizes import misfit, settled
from unlearn_jax.models.base import Model
from unlearn_jax.models.compositing import fill_hole
from unlearn_jax.models.layers import GroupNorm, dtype_problem
from unlearn_jax.registry import UserError


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions, and what was there before."""

    features: int
    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
        """Compute features in `dtype`.

        Where the number of channels changes, the shortcut is of the *new* features, and x is lost.
        The published weights were trained so.
        """
        h = nn.silu(_norm(self.groups, "norm1")(x))
        h = _conv(self.features, 3, self.dtype, "conv1", use_bias=False)(h)
        h = nn.silu(_norm(self.groups, "norm2")(h))
        h = _conv(self.features, 3, self.dtype, "conv2", use_bias=False)(h)
        if x.shape[-1] == self.features:
            return x + h
        return h + _conv(self.features, 1, self.dtype, "nin_shortcut", use_bias=False)(h)


class _Encoder(nn.Module):
    ch: int
    ch_mult: tuple[int, ...]
    res_blocks: int
    z_dim: int
    groups: int
    dtype: DTypeLike
    remat: bool

    @nn.compact
    def __call__(self, x):
        block = nn.remat(ResBlock) if self.remat else ResBlock
        x = _conv(self.ch, 3, self.dtype, "conv_in", use_bias=False)(x)
        for level, mult in enumerate(self.ch_mult):
            if level:
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for i in range(self.res_blocks):
                name = f"down{level}_block{i}"
                x = block(self.ch * mult, self.groups, self.dtype, name=name)(x)
        for i in (1, 2):
            x = block(x.shape[-1], self.groups, self.dtype, name=f"mid_block{i}")(x)
        x = nn.silu(_norm(self.groups, "norm_out")(x))
        return _conv(self.z_dim, 1, self.dtype, "conv_out")(x).astype(jnp.float32)


class _Decoder(nn.Module):
    ch: int
    ch_mult: tuple[int, ...]
    res_blocks: int
    groups: int
    dtype: DTypeLike
    remat: bool

    @nn.compact
    def __call__(self, x):
        block = nn.remat(ResBlock) if self.remat else ResBlock
        x = _conv(self.ch * self.ch_mult[-1], 3, self.dtype, "conv_in")(x)
        for i in (1, 2):
            x = block(x.shape[-1], self.groups, self.dtype, name=f"mid_block{i}")(x)
        for level in reversed(range(len(self.ch_mult))):  # 0 is the full resolution
            features = self.ch * self.ch_mult[level]
            for i in range(self.res_blocks):
                x = block(features, self.groups, self.dtype, name=f"up{level}_block{i}")(x)
            if level:
                x = x.repeat(2, axis=1).repeat(2, axis=2)
                x = _conv(features, 3, self.dtype, f"up{level}_upsample")(x)
        x = nn.silu(_norm(self.groups, "norm_out")(x))
        return _conv(3, 3, self.dtype, "conv_out")(x).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class VQGAN(Model):
    """An autoencoder whose latents are rounded to the nearest vectors of a codebook.

    Images are in [-1, 1] at the interface of a model, and in [0, 1] inside, where the decoder's
    output is not bounded. The defaults are the published tokenizer of MAGE: 54,515,587 parameters.
    Nothing is random: keys are unused.

    As a model of its own it sees images with a grey hole. Its training loss (ours: how the
    published tokenizer was trained is not published, and there are no adversarial and perceptual
    terms here) is on whole images, as a tokenizer's must be.

    Raises:
      UserError: a field is out of range.
    """

    image_size: int | tuple[int, int] | list[int] = 256
    """Height and width, in pixels, which are equal; divisible by 2 ** (len(ch_mult) - 1)."""
    ch: int = 128
    """Channels at the full resolution, times ch_mult[0]."""
    ch_mult: tuple[int, ...] | list[int] = (1, 1, 2, 2, 4)
    """Channels of each level / ch; each level has half the resolution of the one before."""
    res_blocks: int = 2
    """Per level, in the encoder and in the decoder."""
    z_dim: int = 256
    """Length of the vectors in the codebook."""
    codebook: int = 1024
    """Number of codes."""
    groups: int = 32
    """Number of groups in each group norm."""
    commitment: float = 0.25
    """Weight in the loss of the encoder's distance to its code."""
    revival: float = 0.0
    """Weight in the loss of each code's distance to the nearest latent of an image. Without it,
    most codes of a tokenizer trained from scratch on few images are never used."""
    dtype: str = "float32"
    """Type of the convolutions. Parameters, norms, distances to codes and losses are float32."""
    remat: bool = False
    """Compute each block again in the backward pass instead of keeping its features."""
    trainable: tuple[str, ...] | list[str] = ("encoder/.*",)

    def __post_init__(self):
        for name in ("ch_mult", "trainable"):  # hashable, also when a config holds lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.ch_mult:
            raise UserError("VQGAN.ch_mult is empty; give one or more, such as (1, 2).")
        object.__setattr__(self, "image_size", settled(self.image_size, "VQGAN.image_size"))
        for name in ("ch", "ch_mult", "res_blocks", "z_dim", "codebook", "groups"):
            value = getattr(self, name)
            if any(n < 1 for n in (value if name == "ch_mult" else (value,))):
                raise UserError(f"VQGAN.{name} must be positive, got {value}.")
        if wrong := misfit(self.image_size, self.stride, square=True):
            raise UserError(
                f"VQGAN.image_size must be divisible by {self.stride} (2 ** (len(ch_mult) - 1), "
                f"ch_mult={self.ch_mult}) and of squares, {wrong}. Or use fewer levels."
            )
        if any(self.ch * mult % self.groups for mult in (1, *self.ch_mult)):
            raise UserError(
                f"VQGAN.groups must divide the channels of every level, got groups={self.groups}, "
                f"ch={self.ch}, ch_mult={self.ch_mult}. Use fewer groups."
            )
        if problem := dtype_problem(self.dtype):
            raise UserError(f"VQGAN.dtype {problem}.")
        for name in ("commitment", "revival"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"VQGAN.{name} must be finite and at least 0, got {value}.")

    @property
    def stride(self) -> int:
        """Return how many pixels there are per code, in each axis."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def num_tokens(self) -> int:
        """Count the codes per image."""
        return (self.image_size // self.stride) ** 2

    @property
    def _encoder(self) -> nn.Module:
        return _Encoder(
            ch=self.ch,
            ch_mult=self.ch_mult,
            res_blocks=self.res_blocks,
            z_dim=self.z_dim,
            groups=self.groups,
            dtype=self.dtype,
            remat=self.remat,
        )

    @property
    def _decoder(self) -> nn.Module:
        return _Decoder(
            ch=self.ch,
            ch_mult=self.ch_mult,
            res_blocks=self.res_blocks,
            groups=self.groups,
            dtype=self.dtype,
            remat=self.remat,
        )

    def init(self, key: PRNGKeyArray) -> dict[str, Any]:
        """Draw fresh float32 parameters, under "encoder", "decoder" and "quantize"."""
        encoder, decoder, codes = jax.random.split(key, 3)
        side = self.stride  # any size does: there are no parameters of a place
        image, latent = jnp.zeros((1, side, side, 3)), jnp.zeros((1, 1, 1, self.z_dim))
        bound = 1 / self.codebook
        shape = (self.codebook, self.z_dim)
        return {
            "encoder": self._encoder.init(encoder, image)["params"],
            "decoder": self._decoder.init(decoder, latent)["params"],
            "quantize": {
                "embedding": jax.random.uniform(codes, shape, minval=-bound, maxval=bound)
            },
        }

    def encode(
        self, params: Mapping[str, Any], batch: Mapping[str, Array], key: PRNGKeyArray
    ) -> Float[Array, "b hs ws z"]:
        """Encode images with a grey hole: latents before they are quantised.

        Raises:
          UserError: the images do not have the model's size.
        """
        return self.features(params, (fill_hole(batch["image"], batch["mask"]) + 1) / 2)

    def decode(
        self,
        params: Mapping[str, Any],
        latent: Float[Array, "b hs ws z"],
        batch: Mapping[str, Array],
        key: PRNGKeyArray,
    ) -> Float[Array, "b h w c"]:
        """Decode whole images, not clipped. To the gradient, quantising is the identity."""
        code = self.lookup(params, self.nearest(params, latent))
        return self._decode(params, latent + jax.lax.stop_gradient(code - latent))

    def loss(
        self, params: Mapping[str, Any], batch: Mapping[str, Array], key: PRNGKeyArray
    ) -> Float[Array, "b"]:
        """Compute the mean squared error of images seen whole + that of codes to latents.

        The codes are pulled to the latents with weight 1, the latents to the codes with
        `commitment`. Images count in [-1, 1]. With `revival`, each code is also pulled to the
        nearest latent of every image.
        """
        latent = self.features(params, (batch["image"] + 1) / 2)
        code = self.lookup(params, self.nearest(params, latent))
        output = self._decode(params, latent + jax.lax.stop_gradient(code - latent))

        def error(a, b):
            return jnp.square(a - b).mean((1, 2, 3))

        pull_codes = error(code, jax.lax.stop_gradient(latent))
        pull_latents = error(jax.lax.stop_gradient(code), latent)
        loss = error(output, batch["image"]) + pull_codes + self.commitment * pull_latents
        if self.revival:
            codes, fixed = params["quantize"]["embedding"], jax.lax.stop_gradient(latent)
            nearest = _squared_distances(fixed, codes).min((1, 2)).mean(-1) / codes.shape[-1]
            loss += self.revival * nearest
        return loss

    def generate(
        self, params: Mapping[str, Any], batch: Mapping[str, Array], key: PRNGKeyArray
    ) -> Float[Array, "b h w c"]:
        """Decode images and clip them to [-1, 1]; the visible part is decoded too, not copied."""
        return self.decode(params, self.encode(params, batch, key), batch, key).clip(-1, 1)

    def features(
        self, params: Mapping[str, Any], image: Float[Array, "b h w c"]
    ) -> Float[Array, "b hs ws z"]:
        """Encode images in [0, 1]: latents before they are quantised.

        Raises:
          UserError: the images do not have the model's size.
        """
        if image.shape[1:] != (self.image_size, self.image_size, 3):
            raise UserError(
                f"VQGAN expects images [b, {self.image_size}, {self.image_size}, 3], got "
                f"{list(image.shape)}. Set image_size to that of the data."
            )
        return self._encoder.apply({"params": params["encoder"]}, image)

    def nearest(
        self, params: Mapping[str, Any], latent: Float[Array, "b hs ws z"]
    ) -> Int[Array, "b hs ws"]:
        """Find the codes with the smallest squared distance: ids in 0..codebook-1, first on ties.

        Computed in full float32 on any accelerator, so that ids do not depend on it.
        """
        return jnp.argmin(_squared_distances(latent, params["quantize"]["embedding"]), axis=-1)

    def tokenize(
        self, params: Mapping[str, Any], image: Float[Array, "b h w c"]
    ) -> Int[Array, "b n"]:
        """Encode images in [0, 1] as ids of codes, row by row.

        Raises:
          UserError: the images do not have the model's size.
        """
        return self.nearest(params, self.features(params, image)).reshape(len(image), -1)

    def lookup(
        self, params: Mapping[str, Any], ids: Int[Array, "*shape"]
    ) -> Float[Array, "*shape z"]:
        """Look up the vectors of codes."""
        return jnp.asarray(params["quantize"]["embedding"])[ids]

    def decode_tokens(
        self, params: Mapping[str, Any], ids: Int[Array, "b n"]
    ) -> Float[Array, "b h w c"]:
        """Decode ids of codes to images, on the scale [0, 1] but not clipped to it."""
        side = self.image_size // self.stride
        return (self._decode(params, self.lookup(params, ids.reshape(-1, side, side))) + 1) / 2

    def _decode(self, params, code):
        return 2 * self._decoder.apply({"params": params["decoder"]}, code) - 1


def _squared_distances(
    latent: Float[Array, "*shape z"], codes: Float[Array, "k z"]
) -> Float[Array, "*shape k"]:
    product = jnp.einsum("...z,kz->...k", latent, codes, precision="highest")
    return jnp.square(latent).sum(-1, keepdims=True) + jnp.square(codes).sum(-1) - 2 * product


def _norm(groups: int, name: str) -> nn.Module:
    return GroupNorm(groups, epsilon=1e-6, name=name)


def _conv(
    features: int, size: int, dtype: DTypeLike, name: str, use_bias: bool = True
) -> nn.Module:
    return nn.Conv(features, (size, size), dtype=dtype, use_bias=use_bias, name=name)
