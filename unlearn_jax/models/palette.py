"""Palette: a diffusion model that restores the hole of an image (Saharia et al., 2022)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from unlearn_jax.data.sizes import misfit, settled, sides
from unlearn_jax.models import diffusion, unet
from unlearn_jax.models.base import Model
from unlearn_jax.models.layers import dtype_problem
from unlearn_jax.registry import UserError

# What the release trains: the noise embedding too, which the decoder shares, so that what the
# frozen decoder does shifts with it.
UPSTREAM_TRAINABLE = ("encoder/.*",)

_SCHEDULES = ("checkpoint", *diffusion.SCHEDULES)

Params = Mapping[str, Any]
Batch = Mapping[str, Array]
Draws = Mapping[str, Array] | None
Maps = tuple[Float[Array, "b _ _ _"], ...] | list[Float[Array, "b _ _ _"]]


@dataclasses.dataclass(frozen=True)
class Palette(Model):
    """A U-Net that predicts the noise in the hole, given what is visible around it.

    It sees two images: the condition (the image with noise in the hole, that stays the same) and y
    (the image with the hole noised to the level gamma; the visible part is always clean). Its
    latent is the list of the encoder's feature maps, the middle's last.

    Raises:
      UserError: a field is out of range.
    """

    image_size: int | tuple[int, int] | list[int] = 256
    """Pixels, one number or (height, width); divisible by 2 ** (len(mults) - 1)."""
    inner: int = 64
    """Channels of the first feature map."""
    mults: tuple[int, ...] | list[int] = (1, 2, 4, 8)
    """Channels at each resolution, in multiples of `inner`; each is half the size of the last."""
    res_blocks: int = 2
    """Residual blocks at each resolution."""
    head_channels: int = 32
    """Channels of one head of attention."""
    attn_res: tuple[int, ...] | list[int] = ()
    """Where there is attention beside that in the middle: after each residual block at these rates
    of downsampling, 4 for a quarter of height and width. The release's 16 is none of its rates."""
    groups: int = 32
    """Number of groups in each group norm."""
    dropout: float = 0.0
    """In each residual block, whenever the model trains; `generate` never drops anything."""
    timesteps: int = 2000
    """T of the noise schedule that the parameters hold."""
    beta_start: float = 1e-6
    """Start of the schedule in fresh parameters, which is linear from here …"""
    beta_end: float = 0.01
    """… to here."""
    schedule: str = "checkpoint"
    """Schedule of `generate`. "checkpoint": the one in the parameters; the release samples with it
    whatever its test config says; "config_test_2000": what that config says; "palette_paper_1000":
    the paper's. Training always uses the one in the parameters."""
    sampler: str = "ddpm"
    """Sampler of `generate`: "ddpm", as released, "ddpm_strided" or "ddim" with fewer steps."""
    sampling_steps: int = 0
    """How many timesteps "ddpm_strided" and "ddim" visit; 0: all of them."""
    dtype: str = "float32"
    """Type of the computation. Parameters, latents, images, losses and norms are float32."""
    remat: bool = False
    """Compute each block again in the backward pass: less memory, more time."""
    trainable: tuple[str, ...] | list[str] = (r"encoder/(input|middle)\d+(_attn)?/.*",)

    def __post_init__(self):
        for name in ("mults", "attn_res", "trainable"):  # hashable, also when a config holds lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "image_size", settled(self.image_size, "Palette.image_size"))
        _check_fields(self)

    @property
    def _shape(self) -> unet.Shape:
        return unet.Shape(**{name: getattr(self, name) for name in unet.Shape._fields})

    def init(self, key: PRNGKeyArray) -> dict[str, Any]:
        """Draw fresh float32 parameters: "encoder" with "cond_embed", "decoder", "schedule"."""
        keys = jax.random.split(key, 3)
        image = jnp.zeros((1, *sides(self.image_size), 6))
        embedding, cond_embed = unet.CondEmbed(self.inner).init_with_output(keys[0], jnp.ones(1))
        maps, encoder = unet.Encoder(self._shape).init_with_output(keys[1], image, embedding)
        decoder = unet.Decoder(self._shape).init(keys[2], maps, embedding)
        schedule = diffusion.linear_schedule(self.timesteps, self.beta_start, self.beta_end)
        return {
            "encoder": {"cond_embed": cond_embed["params"], **encoder["params"]},
            "decoder": decoder["params"],
            "schedule": jax.tree.map(jnp.asarray, schedule),
        }

    def draw(self, batch: Batch, key: PRNGKeyArray) -> dict[str, Array]:
        """Draw everything random of a training step, by name; `generate` draws for each image.

        "hole_noise" [b h w 3] fills the hole of the condition; "noise" [b h w 3] is what is to be
        predicted; "timestep" [b] is in 1 … T-1 and "gamma_uniform" [b] in [0, 1), the share of the
        way from the noise level before it to that of the timestep; "dropout", a key, is there if
        there is dropout. "gamma" [b], if given, is the noise level itself.
        """
        shape, (b, *_) = batch["image"].shape, batch["image"].shape
        hole_key, noise_key, timestep_key, gamma_key, dropout_key = jax.random.split(key, 5)
        return {
            "hole_noise": jax.random.normal(hole_key, shape),
            "noise": jax.random.normal(noise_key, shape),
            "timestep": jax.random.randint(timestep_key, (b,), 1, self.timesteps),
            "gamma_uniform": jax.random.uniform(gamma_key, (b,)),
        } | ({"dropout": dropout_key} if self.dropout else {})

    def encode(
        self, params: Params, batch: Batch, key: PRNGKeyArray, *, draws: Draws = None
    ) -> Maps:
        """Encode the noised image: feature maps, at full resolution first, the middle's last.

        Raises:
          UserError: the images, or the schedule in the parameters, do not have the model's size.
        """
        draws, gamma = self._draws(params, batch, key, draws)
        y = diffusion.add_noise(batch["image"], draws["noise"], gamma)
        return self._encode(params, batch, _paste(y, batch), gamma, draws)

    def encode_noise(
        self,
        params: Params,
        batch: Batch,
        key: PRNGKeyArray,
        noise_type: str = "normal",
        *,
        draws: Draws = None,
    ) -> Maps:
        """Encode with nothing but noise in the holes of forget rows; noise levels as in `encode`.

        The noise is the one that `encode` adds to the image. The visible part and the condition
        stay those of the image, as released. Retain rows are as `encode` has them.

        Raises:
          UserError: a noise_type other than "normal".
        """
        if noise_type != "normal":
            raise UserError(
                "objective_kw.noise_type: expected 'normal' for a diffusion model, whose noise is "
                f"the one it is trained on, got {noise_type!r}."
            )
        draws, gamma = self._draws(params, batch, key, draws)
        y = diffusion.add_noise(batch["image"], draws["noise"], gamma)
        y = jnp.where(batch["is_forget"][:, None, None, None], draws["noise"], y)
        return self._encode(params, batch, _paste(y, batch), gamma, draws)

    def decode(
        self,
        params: Params,
        latent: Maps,
        batch: Batch,
        key: PRNGKeyArray,
        *,
        draws: Draws = None,
    ) -> Float[Array, "b h w c"]:
        """Estimate the whole images in one step, pasted into the visible part, not clipped.

        Where there is much noise they can be far outside [-1, 1]: an error of the prediction is
        multiplied by sqrt(1 / gamma - 1), up to 151. Methods compare `predict` instead.
        """
        draws, gamma = self._draws(params, batch, key, draws)
        y = diffusion.add_noise(batch["image"], draws["noise"], gamma)
        noise = self._decode(params, latent, gamma, draws)
        return _paste(diffusion.remove_noise(y, noise, gamma), batch)

    def predict(
        self, params: Params, batch: Batch, key: PRNGKeyArray, *, draws: Draws = None
    ) -> Float[Array, "b h w c"]:
        """Predict the noise in the noised images; only the hole's is trained."""
        draws, gamma = self._draws(params, batch, key, draws)
        latent = self.encode(params, batch, key, draws=draws)
        return self._decode(params, latent, gamma, draws)

    def loss(
        self, params: Params, batch: Batch, key: PRNGKeyArray, *, draws: Draws = None
    ) -> Float[Array, "b"]:
        """Average the squared error of the predicted noise, 0 outside the hole, over images."""
        draws, _ = self._draws(params, batch, key, draws)
        return _error(self.predict(params, batch, key, draws=draws), batch, draws)

    def noisy_loss(
        self, params: Params, batch: Batch, key: PRNGKeyArray, *, draws: Draws = None
    ) -> Float[Array, "b"]:
        """Compute the `loss` with nothing but noise in the holes of forget rows (`encode_noise`).

        What the release trains for its baseline "random label".
        """
        draws, gamma = self._draws(params, batch, key, draws)
        latent = self.encode_noise(params, batch, key, draws=draws)
        return _error(self._decode(params, latent, gamma, draws), batch, draws)

    def generate(
        self, params: Params, batch: Batch, key: PRNGKeyArray, *, draws: Draws = None
    ) -> Float[Array, "b h w c"]:
        """Restore the hole, in [-1, 1]; the visible part is the image's own.

        The noise of an image depends on the key and on batch["index"] (or on its place in the
        batch, if there is no index), not on the other images. `draws` may hold "hole_noise"
        [b h w 3] and "step_noise" [steps b h w 3], in the order of the steps.
        """
        draws = draws or {}
        one = batch["image"].shape[1:]
        index = batch["index"] if "index" in batch else jnp.arange(len(batch["image"]))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)

        def normal(number):
            return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, number), one))(keys)

        plan = self.sampling_plan(params)
        steps = len(plan["gamma"])
        # The hole's own number is one that no step has.
        hole_noise = draws["hole_noise"] if "hole_noise" in draws else normal(steps)
        condition = _paste(hole_noise, batch)

        def body(step, y):
            noise = draws["step_noise"][step] if "step_noise" in draws else normal(step)
            return self.sample_step(params, batch, plan, step, condition, y, noise)

        return jax.lax.fori_loop(0, steps, body, condition).clip(-1, 1)

    def sampling_plan(self, params: Params) -> dict[str, Float[Array, "s"]]:
        """Compute what each step of `generate` uses, see `diffusion.sampling_plan`."""
        schedule = self._buffers(params)
        if self.schedule != "checkpoint":
            schedule = diffusion.linear_schedule(*diffusion.SCHEDULES[self.schedule])
        return diffusion.sampling_plan(schedule, self.sampler, self.sampling_steps)

    def sample_step(
        self,
        params: Params,
        batch: Batch,
        plan: Mapping[str, Float[Array, "s"]],
        step: int | Int[Array, ""],
        condition: Float[Array, "b h w c"],
        y: Float[Array, "b h w c"],
        noise: Float[Array, "b h w c"],
    ) -> Float[Array, "b h w c"]:
        """Take one step of `generate`, one pass through the network: return the y after it.

        Args:
          params: the model's.
          batch: image and mask; only the visible part of the image is looked at.
          plan: of `sampling_plan`.
          step: 0 is the first that is taken, at the timestep T - 1.
          condition: the image with noise in the hole, also the y before the first step.
          y: before this step.
          noise: fresh, standard normal.
        """
        gamma = jnp.broadcast_to(plan["gamma"][step], len(y))
        embedding = self._embed(params, gamma)
        x = jnp.concatenate([condition, y], axis=-1)
        maps = unet.Encoder(self._shape).apply({"params": params["encoder"]}, x, embedding)
        predicted = unet.Decoder(self._shape).apply({"params": params["decoder"]}, maps, embedding)
        return _paste(diffusion.sampling_step(plan, step, y, predicted, noise), batch)

    def _embed(self, params: Params, gamma: Float[Array, "b"]) -> Float[Array, "b e"]:
        cond_embed = {"params": params["encoder"]["cond_embed"]}
        return unet.CondEmbed(self.inner).apply(cond_embed, gamma)

    def _encode(self, params, batch, y, gamma, draws) -> Maps:
        expected = (*sides(self.image_size), 3)
        if y.shape[1:] != expected:
            raise UserError(
                f"Palette expects images [b, {', '.join(map(str, expected))}], got "
                f"{list(y.shape)}. Set image_size to that of the data."
            )
        condition = _paste(draws["hole_noise"], batch)
        x = jnp.concatenate([condition, y], axis=-1)
        return unet.Encoder(self._shape).apply(
            {"params": params["encoder"]}, x, self._embed(params, gamma), rngs=_dropout(draws)
        )

    def _decode(self, params, latent, gamma, draws) -> Float[Array, "b h w c"]:
        return unet.Decoder(self._shape).apply(
            {"params": params["decoder"]}, latent, self._embed(params, gamma), rngs=_dropout(draws)
        )

    def _draws(self, params, batch, key, draws) -> tuple[dict[str, Array], Float[Array, "b"]]:
        """Draw everything that is not in `draws`; return all of it, and gamma."""
        draws = self.draw(batch, key) | dict(draws or {})
        if "gamma" not in draws:
            gammas = self._buffers(params)["gammas"]
            draws["gamma"] = diffusion.between(gammas, draws["timestep"], draws["gamma_uniform"])
        return draws, draws["gamma"]

    def _buffers(self, params: Params) -> diffusion.Schedule:
        schedule = jax.lax.stop_gradient(dict(params["schedule"]))
        if len(schedule["gammas"]) != self.timesteps:
            raise UserError(
                f"Palette.timesteps is {self.timesteps}, but the schedule in the parameters has "
                f"{len(schedule['gammas'])}. Set timesteps to that."
            )
        return schedule


def _paste(x: Float[Array, "b h w c"], batch: Batch) -> Float[Array, "b h w c"]:
    """Paste the hole of x into the image."""
    return x * batch["mask"] + batch["image"] * (1 - batch["mask"])


def _error(predicted, batch: Batch, draws: Mapping[str, Array]) -> Float[Array, "b"]:
    return jnp.square(batch["mask"] * (draws["noise"] - predicted)).mean(axis=(1, 2, 3))


def _dropout(draws: Mapping[str, Array]) -> dict[str, Array]:
    return {"dropout": draws["dropout"]} if "dropout" in draws else {}


def _check_fields(model: Palette) -> None:
    def refuse(name, expected):
        raise UserError(f"Palette.{name} must be {expected}, got {getattr(model, name)!r}.")

    for name in ("inner", "res_blocks", "head_channels", "groups"):
        if getattr(model, name) < 1:
            refuse(name, "positive")
    if not model.mults or min(model.mults) < 1:
        refuse("mults", "one or more positive numbers, such as (1, 2, 4, 8)")
    factor = 2 ** (len(model.mults) - 1)
    if wrong := misfit(model.image_size, factor):
        raise UserError(
            f"Palette.image_size must be divisible by {factor} (2 ** (len(mults) - 1)), {wrong}."
        )
    if model.inner % 2 or any(model.inner * mult % model.groups for mult in model.mults):
        refuse("inner", f"even, and times each of mults a multiple of groups={model.groups}")
    rates = [2**level for level in range(len(model.mults))]
    if not all(type(rate) is int and rate > 0 for rate in model.attn_res):
        refuse("attn_res", f"rates of downsampling, of which this model has {rates}")
    wide = [m for m, rate in zip(model.mults, rates, strict=True) if rate in model.attn_res]
    for width in (model.inner * mult for mult in (*wide, model.mults[-1])):
        if width % model.head_channels:
            refuse("head_channels", f"a divisor of the {width} channels where there is attention")
    if not 0 <= model.dropout < 1:
        refuse("dropout", "in [0, 1)")
    if model.timesteps < 2:
        refuse("timesteps", "2 or more")
    if not 0 < model.beta_start <= model.beta_end < 1:
        refuse("beta_start", f"in (0, beta_end], beta_end={model.beta_end} below 1")
    if problem := dtype_problem(model.dtype):
        raise UserError(f"Palette.dtype {problem}.")
    for name, known in (("schedule", _SCHEDULES), ("sampler", diffusion.SAMPLERS)):
        if getattr(model, name) not in known:
            refuse(name, f"one of {known}")
    total = diffusion.SCHEDULES.get(model.schedule, (model.timesteps,))[0]
    if not 0 <= model.sampling_steps <= total:
        refuse("sampling_steps", f"0 (all) to {total}, the timesteps of the schedule")
    if model.sampler == "ddpm" and model.sampling_steps not in (0, total):
        refuse("sampling_steps", "0 with the sampler 'ddpm'; fewer need 'ddpm_strided' or 'ddim'")
