"""Inception-v3 as a feature tower, in the FID variant and in torchvision's."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from unlearn_jax.evaluate.towers.resnet50 import BatchNorm, apply, check_fields, init
from unlearn_jax.registry import UserError

VARIANTS = {"fid": 1008, "torchvision": 1000}
"""Variants, and how many classes their published weights have."""

# A branch is a chain of convolutions (channels, height, width of the kernel); "fork" is a
# 1 x 3 and a 3 x 1 convolution of 384 channels side by side.
Branches = Mapping[str, Sequence[tuple[int, int, int] | str]]


def _35x35(pool: int) -> Branches:
    return {
        "branch1x1": [(64, 1, 1)],
        "branch5x5": [(48, 1, 1), (64, 5, 5)],
        "branch3x3dbl": [(64, 1, 1), (96, 3, 3), (96, 3, 3)],
        "branch_pool": [(pool, 1, 1)],
    }


def _17x17(c: int) -> Branches:
    return {
        "branch1x1": [(192, 1, 1)],
        "branch7x7": [(c, 1, 1), (c, 1, 7), (192, 7, 1)],
        "branch7x7dbl": [(c, 1, 1), (c, 7, 1), (c, 1, 7), (c, 7, 1), (192, 1, 7)],
        "branch_pool": [(192, 1, 1)],
    }


_8x8: Branches = {
    "branch1x1": [(320, 1, 1)],
    "branch3x3": [(384, 1, 1), "fork"],
    "branch3x3dbl": [(448, 1, 1), (384, 3, 3), "fork"],
    "branch_pool": [(192, 1, 1)],
}
_TO_17x17: Branches = {
    "branch3x3": [(384, 3, 3)],
    "branch3x3dbl": [(64, 1, 1), (96, 3, 3), (96, 3, 3)],
    "branch_pool": [],
}
_TO_8x8: Branches = {
    "branch3x3": [(192, 1, 1), (320, 3, 3)],
    "branch7x7x3": [(192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3)],
    "branch_pool": [],
}
_MIXED: Mapping[str, Branches] = {
    "Mixed_5b": _35x35(32),
    "Mixed_5c": _35x35(64),
    "Mixed_5d": _35x35(64),
    "Mixed_6a": _TO_17x17,
    "Mixed_6b": _17x17(128),
    "Mixed_6c": _17x17(160),
    "Mixed_6d": _17x17(160),
    "Mixed_6e": _17x17(192),
    "Mixed_7a": _TO_8x8,
    "Mixed_7b": _8x8,
    "Mixed_7c": _8x8,
}


class _Conv(nn.Module):
    """Convolution, norm, ReLU."""

    channels: int  # at width 32
    kernel: tuple[int, int]
    width: int
    dtype: DTypeLike
    strides: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x):
        conv = nn.Conv(
            self.channels * self.width // 32,
            self.kernel,
            self.strides,
            padding=self.padding,
            use_bias=False,
            dtype=self.dtype,
            name="conv",
        )
        return nn.relu(BatchNorm(1e-3, name="bn")(conv(x)))


class _Mixed(nn.Module):
    """Branches, concatenated; where the pool branch has no convolution, the map is halved."""

    branches: Branches
    pool: str  # "max", "avg", or "avg_inside": the mean of what is not padding
    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        halve = {} if self.branches["branch_pool"] else {"strides": 2, "padding": "VALID"}
        conv = partial(_Conv, width=self.width, dtype=self.dtype)
        outputs = []
        for branch, steps in self.branches.items():
            y = self._pool(x, **halve) if branch == "branch_pool" else x
            for i, step in enumerate(steps, 1):
                name = f"{branch}_{i}" if len(steps) > 1 else branch
                if step == "fork":
                    fork = conv(384, (1, 3), name=name + "a"), conv(384, (3, 1), name=name + "b")
                    y = jnp.concatenate([part(y) for part in fork], axis=-1)
                else:
                    channels, *kernel = step
                    last = halve if i == len(steps) else {}
                    y = conv(channels, tuple(kernel), name=name, **last)(y)
            outputs.append(y)
        return jnp.concatenate(outputs, axis=-1)

    def _pool(self, x, strides=1, padding="SAME"):
        if self.pool == "max":
            return nn.max_pool(x, (3, 3), (strides, strides), padding)
        return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=self.pool == "avg")


class _AuxLogits(nn.Module):
    """torchvision's auxiliary head, of training only."""

    classes: int
    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        conv = partial(_Conv, width=self.width, dtype=self.dtype)
        x = conv(128, (1, 1), name="conv0")(x)
        x = conv(768, (5, 5), name="conv1")(x)
        return nn.Dense(self.classes, name="fc")(x.mean((1, 2)))


class _Inception(nn.Module):
    variant: str
    classes: int
    width: int
    auxiliary: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        conv = partial(_Conv, width=self.width, dtype=self.dtype)
        x = conv(32, (3, 3), strides=2, padding="VALID", name="Conv2d_1a_3x3")(x)
        x = conv(32, (3, 3), padding="VALID", name="Conv2d_2a_3x3")(x)
        x = conv(64, (3, 3), name="Conv2d_2b_3x3")(x)
        x = nn.max_pool(x, (3, 3), (2, 2))
        x = conv(80, (1, 1), name="Conv2d_3b_1x1")(x)
        x = conv(192, (3, 3), padding="VALID", name="Conv2d_4a_3x3")(x)
        x = nn.max_pool(x, (3, 3), (2, 2))
        for name, branches in _MIXED.items():
            x = _Mixed(branches, self._pool(name), self.width, self.dtype, name=name)(x)
            if name == "Mixed_6e" and self.auxiliary and self.is_initializing():
                _AuxLogits(self.classes, self.width, self.dtype, name="unused")(x)
        pool = x.mean((1, 2))
        return {"pool": pool, "logits": nn.Dense(self.classes, name="fc")(pool)}

    def _pool(self, name):
        if name in ("Mixed_6a", "Mixed_7a"):
            return "max"
        if self.variant == "torchvision":
            return "avg"
        # The TensorFlow graph of 2015 leaves padding out of its means, and takes the maximum in
        # the last block, probably by mistake; the published weights belong to that.
        return "max" if name == "Mixed_7c" else "avg_inside"


@dataclasses.dataclass(frozen=True)
class Inception:
    """Inception-v3: pooled features and logits, for inference.

    Raises:
      UserError: a field is out of range.

    Source: Szegedy et al., "Rethinking the Inception architecture", arXiv 1512.00567; the layers
    and names of torchvision; `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid.
    """

    variant: str = "fid"
    """The network of FID (TensorFlow's of 2015), or "torchvision": they pool otherwise in the
    Mixed blocks, and were trained apart."""
    image_size: int = 299
    """75 or more."""
    classes: int = 0
    """Number of logits; 0: as published, 1008 for "fid", 1000 for "torchvision"."""
    width: int = 32
    """Channels of the first convolution; there are 64 times as many pooled features."""
    auxiliary: bool = False
    """Parameters hold torchvision's auxiliary head too, under "unused"; nothing reads it."""
    mean: tuple[float, ...] | list[float] = ()
    """Mean of red, green, blue in [0, 1], subtracted inside. Empty: 128 / 255 for "fid", 0.5 for
    "torchvision"."""
    std: tuple[float, ...] | list[float] = ()
    """By which is then divided. Empty: the same numbers."""
    dtype: str = "float32"
    """Type of the convolutions, or "bfloat16". Parameters, norms and outputs are float32."""

    def __post_init__(self):
        if self.variant not in VARIANTS:
            raise UserError(
                f"Inception.variant must be one of {list(VARIANTS)}, got {self.variant!r}."
            )
        centre = 128 / 255 if self.variant == "fid" else 0.5
        for name in ("mean", "std"):
            if not getattr(self, name):
                object.__setattr__(self, name, (centre,) * 3)
        if self.classes == 0:
            object.__setattr__(self, "classes", VARIANTS[self.variant])
        check_fields(self, positive=("classes",))
        if self.image_size < 75:
            raise UserError(f"Inception.image_size must be 75 or more, got {self.image_size}.")
        if self.width < 2 or self.width % 2:
            raise UserError(f"Inception.width must be even and positive, got {self.width}.")

    @property
    def _module(self) -> nn.Module:
        return _Inception(self.variant, self.classes, self.width, self.auxiliary, self.dtype)

    def init(self, key: PRNGKeyArray) -> dict[str, Any]:
        """Draw fresh float32 parameters, batch statistics included."""
        return init(self, key)

    def features(
        self, params: Mapping[str, Any], images: Float[Array, "b h w 3"]
    ) -> dict[str, Float[Array, "b _"]]:
        """Compute features of images in [-1, 1]: "pool" [b 64 * width], and "logits" [b classes].

        Inside, images become ((images + 1) / 2 - mean) / std: by default (pixel - 128) / 128 for
        "fid", where a pixel is 0 to 255, as in TensorFlow's graph and in clean-fid (pytorch-fid
        itself takes the images as they are: mean and std of 0.5); for "torchvision" nothing
        changes, which is what its `transform_input=True` makes of images normalised with
        ImageNet's numbers.

        Raises:
          UserError: the images are not image_size x image_size.
        """
        return apply(self, params, images)
