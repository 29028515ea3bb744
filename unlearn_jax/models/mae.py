"""The masked autoencoder of He et al. (CVPR 2022, arXiv 2111.06377), facebookresearch/mae.

The published checkpoints are for non-commercial use (CC BY-NC 4.0); this file is not made of their
code. Their masks are random patches; completing a hole hides the patches that the hole touches.
"""

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
from unlearn_jax.models import vit
from unlearn_jax.models.base import Model
from unlearn_jax.models.layers import Masking, dtype_problem, spread
from unlearn_jax.registry import UserError

PRESETS: dict[str, dict[str, int]] = {
    "base": {"dim": 768, "depth": 12, "heads": 12},
    "large": {"dim": 1024, "depth": 24, "heads": 16},
    "huge": {"dim": 1280, "depth": 32, "heads": 16, "patch": 14},
}
"""Fields of the published models: `MAE(**PRESETS["large"])`."""

_MASKINGS = ("random", "task")


class _Encoder(nn.Module):
    patch: int
    dim: int
    depth: int
    heads: int
    epsilon: float
    dtype: DTypeLike
    remat: bool

    @nn.compact
    def __call__(self, image, kept, visible=None):
        # Only what is kept is embedded, and no gradient is scattered back over all patches.
        patches = jnp.take_along_axis(vit.patchify(image, self.patch), kept[..., None], axis=1)
        grid = image.shape[1] // self.patch, image.shape[2] // self.patch
        position = _position_table(self, grid, self.dim)
        x = _PatchEmbed(self.patch, self.dim, self.dtype, name="patch_embed")(patches)
        x = x + jnp.take(position[0], 1 + kept, axis=0)
        token = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.dim))
        x = _prepend(token + position[:, :1], x)
        blocks = vit.Blocks(
            self.depth, self.heads, self.epsilon, self.dtype, self.remat, name="blocks"
        )
        return vit.layer_norm("norm", self.epsilon, self.dtype)(blocks(x, visible))


class _PatchEmbed(nn.Module):
    """A convolution whose stride is its window, of patches that are vectors already."""

    patch: int
    dim: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, patches):
        # As of a dense layer from patch vectors to tokens.
        init = nn.initializers.variance_scaling(
            1.0, "fan_avg", "uniform", in_axis=(0, 1, 2), out_axis=3
        )
        kernel = self.param("kernel", init, (self.patch, self.patch, 3, self.dim))
        bias = self.param("bias", nn.initializers.zeros, (self.dim,))
        patches, kernel, bias = (x.astype(self.dtype) for x in (patches, kernel, bias))
        return patches @ kernel.reshape(-1, self.dim) + bias


class _Decoder(nn.Module):
    grid: tuple[int, int]
    patch: int
    dim: int
    depth: int
    heads: int
    epsilon: float
    dtype: DTypeLike
    remat: bool

    @nn.compact
    def __call__(self, latent, kept, place, hidden):
        x = vit.dense(self.dim, self.dtype, name="embed")(latent)
        token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.dim))
        patches = spread(x[:, 1:], (kept, place, hidden))
        patches = jnp.where(hidden[..., None], token, patches)
        x = _prepend(x[:, :1], patches) + _position_table(self, self.grid, self.dim)
        blocks = vit.Blocks(
            self.depth, self.heads, self.epsilon, self.dtype, self.remat, name="blocks"
        )
        x = vit.layer_norm("norm", self.epsilon, self.dtype)(blocks(x))
        x = vit.dense(3 * self.patch**2, self.dtype, name="pred")(x[:, 1:])
        return x.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class MAE(Model):
    """A vision transformer over the visible patches, and a small one that paints the others.

    The defaults are the published ViT-B; see `PRESETS`.

    Raises:
      UserError: fields are out of range or do not fit together.
    """

    image_size: int | tuple[int, int] | list[int] = 224
    """Pixels, one number or (height, width); multiples of patch."""
    patch: int = 16
    dim: int = 768
    depth: int = 12
    heads: int = 12
    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    mask_ratio: float = 0.75
    """Share of the patches that random masking hides."""
    norm_pix_loss: bool = False
    """The decoder predicts patches of mean 0 and variance 1, whose colours are then unknown:
    such a model can be trained and unlearned, and cannot generate. Published files called
    mae_visualize_* have it off."""
    masking: str = "random"
    """What `encode`, `decode` and `loss` hide: "random" patches, as published, or those that the
    "task" touches with its mask. `generate` always hides the task's."""
    mean: tuple[float, ...] | list[float] = (0.485, 0.456, 0.406)
    """Mean of R, G and B in [0, 1]; with `std`, it normalises what the network sees."""
    std: tuple[float, ...] | list[float] = (0.229, 0.224, 0.225)
    dtype: str = "float32"
    """Type of the computation. Parameters, norms, latents, images and losses are float32."""
    remat: bool = False
    """Compute blocks again in the backward pass, which saves memory and costs a forward pass."""
    trainable: tuple[str, ...] | list[str] = (r"encoder/(?!pos_embed$).*",)
    epsilon: float = 1e-6
    """Of every layer norm: 1e-6 in the release, 1e-12 in transformers' files."""

    def __post_init__(self):
        for name in ("mean", "std", "trainable"):  # hashable, also when a config holds lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "image_size", settled(self.image_size, "MAE: image_size"))
        if wrong := self._problems():
            raise UserError("MAE: " + "; ".join(wrong) + ".")

    def _problems(self) -> list[str]:
        sizes = ("patch", "dim", "depth", "heads")
        sizes += ("decoder_dim", "decoder_depth", "decoder_heads")
        values = {name: getattr(self, name) for name in sizes}
        if wrong := [f"{n} must be at least 1, got {v}" for n, v in values.items() if v < 1]:
            return wrong
        divisors = {"dim": "heads", "decoder_dim": "decoder_heads"}
        size = misfit(self.image_size, self.patch)
        wrong = [f"image_size must be a multiple of patch ({self.patch}), {size}"] if size else []
        wrong += [
            f"{name} must be a multiple of {by} ({values[by]}), got {values[name]}"
            for name, by in divisors.items()
            if values[name] % values[by]
        ]
        for name in ("dim", "decoder_dim"):
            if values[name] % 4:
                wrong.append(
                    f"{name} must be a multiple of 4 (sine and cosine of row and column), "
                    f"got {values[name]}"
                )
        if not 0 < self._kept < self._patches:
            wrong.append(
                f"mask_ratio must hide some and leave some of the {self._patches} patches, "
                f"got {self.mask_ratio}"
            )
        if self.masking not in _MASKINGS:
            wrong.append(f"masking must be one of {_MASKINGS}, got {self.masking!r}")
        if not 0 < self.epsilon < 1:
            wrong.append(f"epsilon must be between 0 and 1, got {self.epsilon}")
        if problem := dtype_problem(self.dtype):
            wrong.append(f"dtype {problem}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            wrong.append(
                "mean and std must have three numbers each, those of std above 0, "
                f"got {self.mean} and {self.std}"
            )
        return wrong

    @property
    def _patches(self) -> int:
        return math.prod(self._grid)

    @property
    def _grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = sides(self.image_size)
        return height // self.patch, width // self.patch

    @property
    def _kept(self) -> int:
        return int(self._patches * (1 - self.mask_ratio))

    @property
    def _encoder(self) -> nn.Module:
        sizes = self.patch, self.dim, self.depth, self.heads
        return _Encoder(*sizes, self.epsilon, self.dtype, self.remat)

    @property
    def _decoder(self) -> nn.Module:
        sizes = self.decoder_dim, self.decoder_depth, self.decoder_heads
        return _Decoder(self._grid, self.patch, *sizes, self.epsilon, self.dtype, self.remat)

    def init(self, key: PRNGKeyArray) -> dict[str, Any]:
        """Draw fresh float32 parameters, under "encoder" and "decoder", fixed tables included."""
        encoder_key, decoder_key = jax.random.split(key)
        image = jnp.zeros((1, *sides(self.image_size), 3))
        place = jnp.arange(self._patches)[None]
        latent, encoder = self._encoder.init_with_output(encoder_key, image, place)
        decoder = self._decoder.init(decoder_key, latent, place, place, place < 0)
        return {"encoder": encoder["params"], "decoder": decoder["params"]}

    def draw(self, batch: Mapping[str, Array], key: PRNGKeyArray) -> dict[str, Float[Array, "b n"]]:
        """Draw "mask_noise", uniform in [0, 1); the patches with the least noise are kept.

        Nothing with the task's masks.
        """
        if self.masking == "task":
            return {}
        return {"mask_noise": jax.random.uniform(key, (len(batch["image"]), self._patches))}

    def encode(
        self,
        params: Mapping[str, Any],
        batch: Mapping[str, Array],
        key: PRNGKeyArray,
        *,
        draws: Mapping[str, Array] | None = None,
    ) -> Float[Array, "b k1 d"]:
        """Encode the kept patches: tokens after the last norm, the class token first.

        With random masking those of the kept patches follow in the order they were drawn; with the
        task's masks those of all patches, row by row, and 0 for the hidden ones, since how many
        there are differs between rows.

        Raises:
          UserError: the images do not have the model's size; an unknown name in `draws`.
        """
        image = batch["image"]
        expected = (*sides(self.image_size), 3)
        if image.shape[1:] != expected:
            raise UserError(
                f"MAE expects images [b, {', '.join(map(str, expected))}], got "
                f"{list(image.shape)}. Resize the images, or set image_size to that of the data; "
                "a checkpoint's is fixed by its position table."
            )
        kept, _, hidden = self._masking(batch, key, draws)
        visible = None  # all that are kept
        if self.masking == "task":
            visible = _prepend(jnp.full((len(image), 1), True), ~hidden)
        x = self._encoder.apply(
            {"params": params["encoder"]}, self._normalise(image), kept, visible
        )
        return x if visible is None else jnp.where(visible[..., None], x, 0.0)

    def decode(
        self,
        params: Mapping[str, Any],
        latent: Float[Array, "b k1 d"],
        batch: Mapping[str, Array],
        key: PRNGKeyArray,
        *,
        draws: Mapping[str, Array] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Decode whole images as the decoder predicts them, on the scale of [-1, 1], not clipped.

        The visible patches are predictions too, which no loss ever looked at. With `norm_pix_loss`
        the patches are as predicted, of mean 0 and variance 1 and on no scale of colours.
        """
        masking = self._masking(batch, key, draws)
        image = vit.unpatchify(self._predict(params, latent, masking), self.patch, self._grid)
        return image if self.norm_pix_loss else self._denormalise(image)

    def loss(
        self,
        params: Mapping[str, Any],
        batch: Mapping[str, Array],
        key: PRNGKeyArray,
        *,
        draws: Mapping[str, Array] | None = None,
    ) -> Float[Array, "b"]:
        """Average the squared error on the hidden patches of normalised images, 0 if there is none.

        With `norm_pix_loss` the goal is each patch with its own mean and (unbiased) variance.
        """
        masking = self._masking(batch, key, draws)
        latent, hidden = self.encode(params, batch, key, draws=draws), masking[2]
        goal = vit.patchify(self._normalise(batch["image"]), self.patch)
        if self.norm_pix_loss:
            centred = goal - goal.mean(axis=-1, keepdims=True)
            goal = centred / jnp.sqrt(goal.var(axis=-1, ddof=1, keepdims=True) + 1e-6)
        error = jnp.square(self._predict(params, latent, masking) - goal).mean(axis=-1)
        return jnp.where(hidden, error, 0.0).sum(axis=1) / jnp.maximum(hidden.sum(axis=1), 1)

    def generate(
        self,
        params: Mapping[str, Any],
        batch: Mapping[str, Array],
        key: PRNGKeyArray,
        *,
        draws: Mapping[str, Array] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Fill the hole by one forward pass, in [-1, 1]; the rest of the image is as given.

        Nothing is random here: the hidden patches are those that the task's mask touches.

        Raises:
          UserError: the model has `norm_pix_loss`; there is something in `draws`.
        """
        if self.norm_pix_loss:
            raise UserError(
                "MAE with norm_pix_loss=True cannot generate: it predicts each patch with mean 0 "
                "and variance 1, and the hidden patch's own mean and variance are not known. Use a "
                "model trained on pixels, such as the mae_visualize_* checkpoints."
            )
        task = dataclasses.replace(self, masking="task")
        latent = task.encode(params, batch, key, draws=draws)
        image, mask = task.decode(params, latent, batch, key, draws=draws), batch["mask"]
        return (batch["image"] * (1 - mask) + image * mask).clip(-1, 1)

    def _masking(
        self, batch: Mapping[str, Array], key: PRNGKeyArray, draws: Mapping[str, Array] | None
    ) -> Masking:
        """Choose the masking.

        Return (patches that the encoder gets, where each patch is among them, whether it is
        hidden).
        """
        values = self.draw(batch, key)
        if unknown := sorted(set(draws or {}) - set(values)):
            raise UserError(
                f"MAE with {self.masking} masking draws {sorted(values) or 'nothing'}, got "
                f"draws={unknown}. Leave them out."
            )
        if self.masking == "task":
            hidden = vit.patchify(batch["mask"], self.patch).max(axis=-1) > 0
            place = jnp.broadcast_to(jnp.arange(self._patches), hidden.shape)
            return place, place, hidden
        order = jnp.argsort((values | dict(draws or {}))["mask_noise"], axis=1, stable=True)
        place = jnp.argsort(order, axis=1)
        return order[:, : self._kept], place, place >= self._kept

    def _predict(
        self, params: Mapping[str, Any], latent: Float[Array, "b k1 d"], masking: Masking
    ) -> Float[Array, "b n v"]:
        return self._decoder.apply({"params": params["decoder"]}, latent, *masking)

    def _normalise(self, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return ((image + 1) / 2 - jnp.array(self.mean)) / jnp.array(self.std)

    def _denormalise(self, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return 2 * (image * jnp.array(self.std) + jnp.array(self.mean)) - 1


def _position_table(module: nn.Module, grid: tuple[int, int], dim: int) -> Float[Array, "1 n1 d"]:
    """Return the module's leaf `pos_embed`: fixed, with zeros for the class token."""
    table = jnp.pad(vit.sincos_2d(dim, grid), ((1, 0), (0, 0)))[None]
    return jax.lax.stop_gradient(module.param("pos_embed", lambda key: table))


def _prepend(first: Array, rest: Array) -> Array:
    """Put `first` [b or 1, 1, ...] before `rest` [b n ...]: [b 1+n ...]."""
    first = jnp.broadcast_to(first, (len(rest), *first.shape[1:])).astype(rest.dtype)
    return jnp.concatenate([first, rest], axis=1)
