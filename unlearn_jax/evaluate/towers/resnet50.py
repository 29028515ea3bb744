"""ResNet-50 as a feature tower, and what all towers share."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from unlearn_jax.registry import UserError

DEPTHS = (3, 4, 6, 3)
"""Blocks of each stage."""


class BatchNorm(nn.Module):
    """Batch normalisation by known statistics, which are leaves like the others; float32."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Compute (x - mean) / sqrt(var + epsilon) * scale + bias."""
        ones, zeros, shape = nn.initializers.ones, nn.initializers.zeros, x.shape[-1:]
        scale, bias = self.param("scale", ones, shape), self.param("bias", zeros, shape)
        mean, var = self.param("mean", zeros, shape), self.param("var", ones, shape)
        return (x.astype(jnp.float32) - mean) * (scale / jnp.sqrt(var + self.epsilon)) + bias


class _Downsample(nn.Module):
    features: int
    strides: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        return _norm("bn")(_conv("conv", self.features, 1, self.strides, self.dtype)(x))


class _Block(nn.Module):
    width: int
    strides: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        y = _conv("conv1", self.width, 1, 1, self.dtype)(x)
        y = nn.relu(_norm("bn1")(y))
        # v1.5: the 3 x 3 convolution has the stride, not the first 1 x 1.
        y = _conv("conv2", self.width, 3, self.strides, self.dtype)(y)
        y = nn.relu(_norm("bn2")(y))
        y = _norm("bn3")(_conv("conv3", 4 * self.width, 1, 1, self.dtype)(y))
        if x.shape != y.shape:
            x = _Downsample(4 * self.width, self.strides, self.dtype, name="downsample")(x)
        return nn.relu(x + y)


class _Stage(nn.Module):
    depth: int
    width: int
    strides: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        for i in range(self.depth):
            x = _Block(self.width, 1 if i else self.strides, self.dtype, name=f"block{i}")(x)
        return x


class _ResNet(nn.Module):
    width: int
    classes: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        x = _conv("conv1", self.width, 7, 2, self.dtype)(x)
        x = nn.relu(_norm("bn1")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for i, depth in enumerate(DEPTHS):
            stage = _Stage(depth, self.width << i, 2 if i else 1, self.dtype, name=f"layer{i + 1}")
            x = stage(x)
        pool = x.mean((1, 2))
        return {"pool": pool, "logits": nn.Dense(self.classes, name="fc")(pool)}


def _conv(name, features, kernel, strides, dtype):
    # As much padding on both sides, unlike "SAME" with a stride.
    padding = [(kernel // 2, kernel // 2)] * 2
    options = {"padding": padding, "use_bias": False, "dtype": dtype, "name": name}
    return nn.Conv(features, (kernel, kernel), strides, **options)


def _norm(name):
    return BatchNorm(1e-5, name=name)


@dataclasses.dataclass(frozen=True)
class ResNet50:
    """ResNet-50 of torchvision (v1.5): pooled features and logits, for inference.

    Raises:
      UserError: a field is out of range.

    Source: He et al., "Deep residual learning for image recognition", arXiv 1512.03385; the layers
    and names of torchvision; places365's `resnet50_places365.pth.tar`.
    """

    image_size: int = 224
    classes: int = 365
    """Number of logits: 365 of Places365, 1000 of ImageNet."""
    width: int = 64
    """Channels of the first convolution; there are 32 times as many pooled features."""
    mean: tuple[float, ...] | list[float] = (0.485, 0.456, 0.406)
    """Mean of red, green and blue in [0, 1], subtracted inside."""
    std: tuple[float, ...] | list[float] = (0.229, 0.224, 0.225)
    """By which is then divided."""
    dtype: str = "float32"
    """Type of the convolutions, or "bfloat16". Parameters, norms and outputs are float32."""

    def __post_init__(self):
        check_fields(self, positive=("image_size", "classes", "width"))

    @property
    def _module(self) -> nn.Module:
        return _ResNet(self.width, self.classes, self.dtype)

    def init(self, key: PRNGKeyArray) -> dict[str, Any]:
        """Draw fresh float32 parameters, batch statistics included."""
        return init(self, key)

    def features(
        self, params: Mapping[str, Any], images: Float[Array, "b h w 3"]
    ) -> dict[str, Float[Array, "b _"]]:
        """Compute features of images in [-1, 1]: "pool" [b 32 * width], and "logits" [b classes].

        Inside, images become ((images + 1) / 2 - mean) / std, by default with ImageNet's numbers.

        Raises:
          UserError: the images are not image_size x image_size.
        """
        return apply(self, params, images)


def check_fields(tower: Any, positive: tuple[str, ...]) -> None:
    """Check the fields of a tower; lists become tuples.

    Raises:
      UserError: one of the fields `positive` is below 1, mean or std are not three numbers,
        std is not positive, or dtype is unknown.
    """
    name = type(tower).__name__
    for field in positive:
        if getattr(tower, field) < 1:
            raise UserError(f"{name}.{field} must be positive, got {getattr(tower, field)}.")
    for field in ("mean", "std"):
        value = tuple(getattr(tower, field))
        object.__setattr__(tower, field, value)  # hashable, also when a config holds a list
        if len(value) != 3 or (field == "std" and min(value) <= 0):
            kind = "positive numbers" if field == "std" else "numbers"
            raise UserError(f"{name}.{field} must be three {kind}, one a colour, got {value}.")
    if tower.dtype not in ("float32", "bfloat16"):
        raise UserError(f'{name}.dtype must be "float32" or "bfloat16", got {tower.dtype!r}.')


def init(tower: Any, key: PRNGKeyArray) -> dict[str, Any]:
    """Draw a tower's fresh float32 parameters."""
    image = jnp.zeros((1, tower.image_size, tower.image_size, 3))
    return tower._module.init(key, image)["params"]


def apply(
    tower: Any, params: Mapping[str, Any], images: Float[Array, "b h w 3"]
) -> dict[str, Float[Array, "b _"]]:
    """Apply a tower's module to images in [-1, 1], normalised by the tower's mean and std.

    Raises:
      UserError: the images do not have the tower's size.
    """
    name, size = type(tower).__name__, tower.image_size
    if images.shape[1:] != (size, size, 3):
        raise UserError(
            f"{name} expects images [b, {size}, {size}, 3], got {list(images.shape)}. Resize them."
        )
    x = ((images + 1) / 2 - jnp.asarray(tower.mean)) / jnp.asarray(tower.std)
    # Otherwise float32 is multiplied as TF32 or bfloat16 on accelerators, and metrics would depend
    # on the hardware.
    with jax.default_matmul_precision("highest"):
        return tower._module.apply({"params": params}, x)
