"""A small convolutional autoencoder for inpainting, which trains in minutes on a CPU."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from unlearn_jax.data.sizes import misfit, settled, sides
from unlearn_jax.models.base import Model
from unlearn_jax.models.layers import Down, Up, dtype_problem
from unlearn_jax.registry import UserError


class _Encoder(nn.Module):
    channels: tuple[int, ...]
    latent_dim: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        for i, features in enumerate(self.channels):
            x = nn.relu(Down(features, self.dtype, name=f"down{i}")(x))
        if self.latent_dim:
            x = x.reshape(len(x), -1)
            x = nn.Dense(self.latent_dim, dtype=self.dtype, name="bottleneck")(x)
        return x.astype(jnp.float32)


class _Decoder(nn.Module):
    channels: tuple[int, ...]  # of the encoder, reversed
    image_channels: int
    bottom: tuple[int, int]  # height and width of the encoder's last feature map
    latent_dim: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        if self.latent_dim:
            shape = (*self.bottom, self.channels[0])
            dense = nn.Dense(math.prod(shape), dtype=self.dtype, name="bottleneck")
            x = nn.relu(dense(x)).reshape(len(x), *shape)
        for i, features in enumerate(self.channels[1:]):
            x = nn.relu(Up(features, self.dtype, name=f"up{i}")(x))
        name = f"up{len(self.channels) - 1}"
        return Up(self.image_channels, self.dtype, name=name)(x).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Autoencoder(Model):
    """A deterministic autoencoder of masked images; its keys are unused.

    The encoder sees the image with the hole set to 0, and the mask as one more channel.

    Raises:
      UserError: a field is out of range.
    """

    image_size: int | tuple[int, int] | list[int] = 32
    """Pixels, one number or (height, width); divisible by 2 ** len(channels)."""
    image_channels: int = 3
    channels: tuple[int, ...] | list[int] = (32, 64, 128)
    """Channels of the encoder's feature maps, each half the size of the one before."""
    latent_dim: int = 0
    """0: the latent is the last feature map; n: a dense bottleneck of n numbers."""
    dtype: str = "float32"
    """Type of the computation. Parameters, latents, images and losses are float32."""
    visible_weight: float = 1.0
    """Weight of the visible part in the loss, relative to the hole."""
    trainable: tuple[str, ...] | list[str] = (".*",)

    def __post_init__(self):
        for name in ("channels", "trainable"):  # hashable, also when a config holds lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.channels:
            raise UserError("Autoencoder.channels is empty; give one or more, such as (32, 64).")
        size = settled(self.image_size, "Autoencoder.image_size")
        object.__setattr__(self, "image_size", size)
        for name in ("image_channels", "channels"):
            value = getattr(self, name)
            if any(n < 1 for n in (value if name == "channels" else (value,))):
                raise UserError(f"Autoencoder.{name} must be positive, got {value}.")
        factor = 2 ** len(self.channels)
        if wrong := misfit(size, factor):
            raise UserError(
                f"Autoencoder.image_size must be divisible by {factor} (2 ** len(channels), "
                f"channels={self.channels}), {wrong}. Or use fewer channels."
            )
        if self.latent_dim < 0:
            raise UserError(
                f"Autoencoder.latent_dim must be 0 (no bottleneck) or more, got {self.latent_dim}."
            )
        if problem := dtype_problem(self.dtype):
            raise UserError(f"Autoencoder.dtype {problem}.")
        if not (math.isfinite(self.visible_weight) and self.visible_weight >= 0):
            raise UserError(
                "Autoencoder.visible_weight must be finite and at least 0, "
                f"got {self.visible_weight}."
            )

    @property
    def _encoder(self) -> nn.Module:
        return _Encoder(self.channels, self.latent_dim, self.dtype)

    @property
    def _decoder(self) -> nn.Module:
        return _Decoder(
            channels=self.channels[::-1],
            image_channels=self.image_channels,
            bottom=tuple(side // 2 ** len(self.channels) for side in sides(self.image_size)),
            latent_dim=self.latent_dim,
            dtype=self.dtype,
        )

    def init(self, key: PRNGKeyArray) -> dict[str, Any]:
        """Draw fresh float32 parameters, under "encoder" and "decoder"."""
        encoder_key, decoder_key = jax.random.split(key)
        image = jnp.zeros((1, *sides(self.image_size), self.image_channels + 1))
        latent, encoder = self._encoder.init_with_output(encoder_key, image)
        decoder = self._decoder.init(decoder_key, latent)
        return {"encoder": encoder["params"], "decoder": decoder["params"]}

    def encode(
        self, params: Mapping[str, Any], batch: Mapping[str, Array], key: PRNGKeyArray
    ) -> Float[Array, "b *latent"]:
        """Encode degraded images: the last feature map [b h w c], or [b latent_dim].

        Raises:
          UserError: the images do not have the model's size.
        """
        image, mask = batch["image"], batch["mask"]
        expected = (*sides(self.image_size), self.image_channels)
        if image.shape[1:] != expected:
            raise UserError(
                f"Autoencoder expects images [b, {', '.join(map(str, expected))}], got "
                f"{list(image.shape)}. Set image_size and image_channels to those of the data."
            )
        x = jnp.concatenate([image * (1 - mask), mask], axis=-1)
        return self._encoder.apply({"params": params["encoder"]}, x)

    def decode(
        self,
        params: Mapping[str, Any],
        latent: Float[Array, "b *latent"],
        batch: Mapping[str, Array],
        key: PRNGKeyArray,
    ) -> Float[Array, "b h w c"]:
        """Decode whole images, not clipped."""
        return self._decoder.apply({"params": params["decoder"]}, latent)

    def loss(
        self, params: Mapping[str, Any], batch: Mapping[str, Array], key: PRNGKeyArray
    ) -> Float[Array, "b"]:
        """Compute the `error` of the model's outputs."""
        return self.error(self.decode(params, self.encode(params, batch, key), batch, key), batch)

    def error(
        self, output: Float[Array, "b h w c"], batch: Mapping[str, Array]
    ) -> Float[Array, "b"]:
        """Compute mean squared error on the hole + `visible_weight` * that on the visible part.

        Each mean is over its own pixels and channels; a part without pixels counts 0.
        """
        error = jnp.square(output - batch["image"]).mean(axis=-1, keepdims=True)

        def mean(where):
            return (error * where).sum((1, 2, 3)) / jnp.maximum(where.sum((1, 2, 3)), 1)

        return mean(batch["mask"]) + self.visible_weight * mean(1 - batch["mask"])

    def generate(
        self, params: Mapping[str, Any], batch: Mapping[str, Array], key: PRNGKeyArray
    ) -> Float[Array, "b h w c"]:
        """Decode images and clip them to [-1, 1]; the visible part is decoded too, not copied."""
        return self.decode(params, self.encode(params, batch, key), batch, key).clip(-1, 1)
