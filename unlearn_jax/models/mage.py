"""MAGE: a masked transformer over the codes of a VQ-GAN (Li et al., CVPR 2023).

As in the code that unlearned it (jpmorganchase/i2i_mage): completing images, without classes.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from unlearn_jax.data.sizes import settled
from unlearn_jax.models import mage_decoding
from unlearn_jax.models.base import Model
from unlearn_jax.models.compositing import composite, fill_hole, token_mask
from unlearn_jax.models.layers import Masking, dtype_problem
from unlearn_jax.models.mage_parts import Decoder, Encoder, unused
from unlearn_jax.models.vqgan import VQGAN
from unlearn_jax.registry import UserError

PRESETS: dict[str, dict[str, Any]] = {
    "ViT-B": {},
    "ViT-L": {"dim": 1024, "depth": 24, "heads": 16, "decoder_dim": 1024},
}
"""Fields of the published models: `MAGE(**PRESETS["ViT-B"])` is `mage-vitb-1600.pth`."""
TRAINABLE = (
    "encoder/token_emb/(position_embeddings|LayerNorm)/.*",
    "encoder/(blocks|norm)/.*",
)
UPSTREAM_TRAINABLE = ("encoder/.*",)
"""As released: with the word embeddings, which are also the output layer of the "frozen" decoder.
For the baselines that train everything that is alive, add "decoder/.*"."""

_DRAWS = ("mask_rate", "mask_noise", "dropout_keep", "random_ids", "gumbel_sample", "gumbel")
_RATE_MEAN, _RATE_STD, _RATE_MIN, _RATE_MAX = 0.55, 0.25, 0.5, 1.0  # of the share of masked tokens
_CLASS_SLOT = 76  # which of the unused classes stands for every image: id 1100 as published
_POSITIVE = ("dim", "depth", "heads", "decoder_dim", "decoder_depth", "decoder_heads")
_POSITIVE += ("class_slots", "num_iter")


@dataclasses.dataclass(frozen=True)
class MAGE(Model):
    """A transformer that restores masked codes of images, and the tokenizer that gives the codes.

    Training masks tokens at random, half of them without showing the encoder that they are missing;
    it does not look at `batch["mask"]`, and neither do `encode`, `decode`, `predict` and the
    losses. `generate` does. The defaults are the published ViT-B: 200,989,804 parameters, of which
    86,810,112 are the encoder's, 58,086,633 the decoder's, 54,515,587 the tokenizer's, and the rest
    is stored and never used.

    Raises:
      UserError: a field is out of range.
    """

    image_size: int | tuple[int, int] | list[int] = 256
    """Height and width, in pixels, which are equal; divisible by the tokenizer's stride."""
    tokenizer: Any = ()
    """The other fields of `VQGAN` that are not its defaults, as a dict or as pairs."""
    dim: int = 768
    """Channels of the encoder; divisible by heads."""
    depth: int = 12
    """Blocks of the encoder."""
    heads: int = 12
    decoder_dim: int = 768
    """Channels of the decoder; divisible by decoder_heads."""
    decoder_depth: int = 8
    decoder_heads: int = 16
    class_slots: int = 1000
    """Ids between the codes and the mask; one of them stands before every sequence."""
    label_smoothing: float = 0.1
    token_dropout: float = 0.0
    """Dropout of embedded tokens. Published: 0.1 while training, 0 for the original that an
    unlearned model is compared with. Here all parameters get the same dropout from the same key."""
    num_iter: int = 20
    """Steps of generation, of which as many are skipped as tokens are known."""
    temperature: float = 6.0
    """Scale, in the first step, of the noise in the choice of tokens that stay; it falls to 0."""
    composite_base: str = "original"
    """Image that generated ones are blended into: see `compositing.composite`."""
    compat_seeding: bool = False
    """Every image sees the same noise, as if seeded anew for each, as released. The released
    numbers themselves come from torch and numpy, and can only be given as `draws`."""
    dtype: str = "float32"
    """Type of the transformer; "float32" or "bfloat16". The tokenizer has its own: {"dtype": …}.
    Parameters, latents, logits, norms and losses are float32."""
    remat: bool = False
    """Compute each block again in the backward pass instead of keeping its features."""
    trainable: tuple[str, ...] | list[str] = TRAINABLE

    def __post_init__(self):
        object.__setattr__(self, "trainable", tuple(self.trainable))
        object.__setattr__(self, "image_size", settled(self.image_size, "MAGE.image_size"))
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in dict(self.tokenizer).items()}
        defaults = {field.name: field.default for field in dataclasses.fields(VQGAN)}
        known = sorted(set(defaults) - {"image_size", "trainable"})
        if unknown := sorted(set(given) - set(known)):
            raise UserError(f"MAGE.tokenizer: expected fields {known}, got {unknown}.")
        changed = tuple((name, given[name]) for name in known if name in given)
        changed = tuple((name, value) for name, value in changed if value != defaults[name])
        object.__setattr__(self, "tokenizer", changed)  # hashable
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise UserError(f"MAGE.{name} must be positive, got {getattr(self, name)}.")
        for dim, heads in (("dim", "heads"), ("decoder_dim", "decoder_heads")):
            if getattr(self, dim) % getattr(self, heads):
                raise UserError(
                    f"MAGE.{dim} must be divisible by {heads}={getattr(self, heads)}, got "
                    f"{getattr(self, dim)}."
                )
        if self.dim % 4 or self.decoder_dim % 4:
            raise UserError(
                "MAGE.dim and MAGE.decoder_dim must be divisible by 4, for position tables; got "
                f"{self.dim} and {self.decoder_dim}."
            )
        for name in ("label_smoothing", "token_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"MAGE.{name} must be in [0, 1), got {getattr(self, name)}.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(
                f"MAGE.temperature must be finite and at least 0, got {self.temperature}."
            )
        if self.composite_base not in ("original", "filled"):
            raise UserError(
                f"MAGE.composite_base must be 'original' or 'filled', got {self.composite_base!r}."
            )
        if problem := dtype_problem(self.dtype):
            raise UserError(f"MAGE.dtype {problem}.")
        if self.vqgan.num_tokens < 2:
            raise UserError(
                f"MAGE.image_size={self.image_size} gives one token of {self.vqgan.stride} pixels; "
                "expected two or more. Use larger images, or fewer levels in the tokenizer."
            )

    @property
    def vqgan(self) -> VQGAN:
        """Return the tokenizer, whose parameters are params["vqgan"]."""
        return VQGAN(image_size=self.image_size, **dict(self.tokenizer))

    @property
    def vocabulary(self) -> int:
        """Count the ids: codes, classes and the mask."""
        return self.vqgan.codebook + self.class_slots + 1

    @property
    def mask_id(self) -> int:
        """Return the id of an unknown token, the last one."""
        return self.vocabulary - 1

    @property
    def class_id(self) -> int:
        """Return the id of what stands before every sequence."""
        return self.vqgan.codebook + min(_CLASS_SLOT, self.class_slots - 1)

    @property
    def _encoder(self) -> nn.Module:
        return Encoder(
            self.vocabulary, self.dim, self.depth, self.heads, dtype=self.dtype, remat=self.remat
        )

    @property
    def _decoder(self) -> nn.Module:
        return Decoder(
            self.decoder_dim,
            self.decoder_depth,
            self.decoder_heads,
            dtype=self.dtype,
            remat=self.remat,
        )

    def init(self, key: PRNGKeyArray) -> dict[str, Any]:
        """Draw fresh float32 parameters, under "encoder", "decoder", "vqgan" and "unused"."""
        keys = jax.random.split(key, 3)
        n, patch = self.vqgan.num_tokens, self.vqgan.stride
        ids = jnp.zeros((1, n + 1), jnp.int32)
        latent, encoder = self._encoder.init_with_output(keys[0], ids)
        words = encoder["params"]["token_emb"]["word_embeddings"]["embedding"]
        decoder = self._decoder.init(keys[1], latent, None, jnp.zeros((1, n), bool), words)
        return {
            "encoder": encoder["params"],
            "decoder": decoder["params"],
            "vqgan": self.vqgan.init(keys[2]),
            "unused": unused(n, patch, self.dim, self.decoder_dim),
        }

    def draw(self, batch: Mapping[str, Array], key: PRNGKeyArray) -> dict[str, Array]:
        """Draw what is random in a training step, by name (docs/parity.md).

        The names are those that `encode`, `decode`, `predict` and `loss` look for.
        """
        rate, noise, dropout, _ = jax.random.split(key, 4)
        b, n = len(batch["image"]), self.vqgan.num_tokens
        bounds = ((bound - _RATE_MEAN) / _RATE_STD for bound in (_RATE_MIN, _RATE_MAX))
        drawn = {
            "mask_rate": _RATE_MEAN + _RATE_STD * jax.random.truncated_normal(rate, *bounds),
            "mask_noise": jax.random.uniform(noise, (b, n)),
        }
        if self.token_dropout:
            shape = (b, n + 1, self.dim)
            drawn["dropout_keep"] = jax.random.bernoulli(dropout, 1 - self.token_dropout, shape)
        return drawn

    def tokens(self, params: Mapping[str, Any], batch: Mapping[str, Array]) -> Int[Array, "b n"]:
        """Return the codes of whole images: `batch["tokens"]` if given. They have no gradient."""
        if "tokens" in batch:
            return batch["tokens"]
        tokenizer = jax.lax.stop_gradient(params["vqgan"])
        return self.vqgan.tokenize(tokenizer, (batch["image"] + 1) / 2)

    def encode(
        self,
        params: Mapping[str, Any],
        batch: Mapping[str, Array],
        key: PRNGKeyArray,
        *,
        draws: Mapping[str, Array] | None = None,
    ) -> Float[Array, "b k d"]:
        """Encode the class slot and the floor(n / 2) tokens that are not dropped, in order.

        Raises:
          UserError: the images do not have the model's size; a name in draws is unknown.
        """
        drawn = self._drawn(batch, key, draws)
        return self._encode(params, self.tokens(params, batch), drawn)

    def decode(
        self,
        params: Mapping[str, Any],
        latent: Float[Array, "b k d"],
        batch: Mapping[str, Array],
        key: PRNGKeyArray,
        *,
        draws: Mapping[str, Array] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Decode whole images, not clipped: each masked token as its most likely code.

        They have no gradient with respect to the transformer; `predict` has.
        """
        drawn = self._drawn(batch, key, draws)
        logits = self._logits(params, latent, drawn, self.vqgan.codebook)
        choice = jnp.argmax(logits[:, 1:], axis=-1)
        ids = jnp.where(_masks(drawn)[1], choice, self.tokens(params, batch))
        return 2 * self.vqgan.decode_tokens(params["vqgan"], ids) - 1

    def predict(
        self,
        params: Mapping[str, Any],
        batch: Mapping[str, Array],
        key: PRNGKeyArray,
        *,
        draws: Mapping[str, Array] | None = None,
    ) -> Float[Array, "b n_plus_1 v"]:
        """Compute logits of the whole vocabulary, at the class slot and at all tokens."""
        drawn = self._drawn(batch, key, draws)
        latent = self._encode(params, self.tokens(params, batch), drawn)
        return self._logits(params, latent, drawn, self.vocabulary)

    def loss(
        self,
        params: Mapping[str, Any],
        batch: Mapping[str, Array],
        key: PRNGKeyArray,
        *,
        draws: Mapping[str, Array] | None = None,
    ) -> Float[Array, "b"]:
        """Average the codes' label-smoothed cross-entropy over the masked tokens of each image."""
        drawn = self._drawn(batch, key, draws)
        ids = self.tokens(params, batch)
        return self._cross_entropy(params, ids, ids, drawn)

    def noisy_loss(
        self,
        params: Mapping[str, Any],
        batch: Mapping[str, Array],
        key: PRNGKeyArray,
        *,
        draws: Mapping[str, Array] | None = None,
    ) -> Float[Array, "b"]:
        """Compute `loss` with random codes to be restored on forget rows, not those of the image.

        They are rounded normal numbers with the mean and the standard deviation of all ids of the
        batch's valid images, clipped to the codebook, as in the released baseline "Noisy Label".
        """
        drawn = self._drawn(batch, key, draws)
        ids = self.tokens(params, batch)
        random = drawn.get("random_ids", self._random_ids(ids, batch, key))
        labels = jnp.where(batch["is_forget"][:, None], random, ids)
        return self._cross_entropy(params, ids, labels, drawn)

    def tokenizer_loss(
        self, params: Mapping[str, Any], batch: Mapping[str, Array], key: PRNGKeyArray
    ) -> Float[Array, "b"]:
        """Compute the tokenizer's loss, `VQGAN.loss`, to train params["vqgan"] from scratch."""
        return self.vqgan.loss(params["vqgan"], batch, key)

    def generate(
        self,
        params: Mapping[str, Any],
        batch: Mapping[str, Array],
        key: PRNGKeyArray,
        *,
        draws: Mapping[str, Array] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Complete images, in [-1, 1]; what is hidden in the hole is not looked at.

        Each image has its own noise, from its `batch["index"]`, or from its row if there is none,
        so that it does not depend on the other images of the batch.

        Raises:
          UserError: the images do not have the model's size; a name in draws is unknown.
        """
        image, mask = batch["image"], batch["mask"]
        given = _check(draws)
        filled = (fill_hole(image, mask) + 1) / 2
        unknown = token_mask(mask, self.vqgan.stride)
        ids = jnp.where(unknown, self.mask_id, self.vqgan.tokenize(params["vqgan"], filled))
        keys = self._image_keys(batch, key)
        shapes = {"gumbel_sample": (ids.shape[1], self.vqgan.codebook), "gumbel": (ids.shape[1],)}

        def one_step(ids, number):
            noise = mage_decoding.noise(keys, number, shapes)
            noise |= {name: given[name][number] for name in shapes if name in given}
            return self.generation_step(
                params, ids, number, noise["gumbel_sample"], noise["gumbel"]
            )

        ids = mage_decoding.run(one_step, ids, unknown, self.num_iter)
        generated = 2 * self.vqgan.decode_tokens(params["vqgan"], ids) - 1
        return composite(generated, image, mask, self.composite_base).clip(-1, 1)

    def generation_step(
        self,
        params: Mapping[str, Any],
        ids: Int[Array, "b n"],
        number: int | Int[Array, ""],
        sample_noise: Float[Array, "b n codes"],
        noise: Float[Array, "b n"],
    ) -> tuple[Int[Array, "b n"], Int[Array, "b n"]]:
        """Take one step of `generate`: (tokens sampled, tokens with the least confident masked).

        Args:
          params: of the model.
          ids: codes, and `mask_id` where they are unknown.
          number: of the step, from 0 to num_iter - 1.
          sample_noise: Gumbel(0, 1), which is -log(E) for E exponential: codes are the argmax of
            logits + sample_noise.
          noise: Gumbel(0, 1), of the confidence.
        """
        lengths = jnp.array(mage_decoding.lengths(self.num_iter, ids.shape[1]))
        left = 1 - (jnp.arange(self.num_iter) + 1) / self.num_iter
        logits = self.code_logits(params, ids)
        return mage_decoding.step(
            logits,
            ids,
            self.mask_id,
            lengths[number],
            self.temperature * left[number],
            sample_noise,
            noise,
        )

    def code_logits(
        self, params: Mapping[str, Any], ids: Int[Array, "b n"]
    ) -> Float[Array, "b n codes"]:
        """Compute logits of the codes of all tokens, from tokens of which none is dropped.

        Args:
          params: of the model.
          ids: codes, and `mask_id` where they are unknown.
        """
        latent = self._encoder.apply({"params": params["encoder"]}, self._with_class(ids))
        return self._decode(params, latent, None, ids == self.mask_id, self.vqgan.codebook)[:, 1:]

    def _drawn(self, batch, key, draws):
        return {**self.draw(batch, key), **_check(draws)}

    def _random_ids(self, ids, batch, key):
        valid = batch.get("valid", jnp.ones(len(ids), bool))[:, None]
        mean, std = jnp.mean(ids, where=valid), jnp.std(ids, where=valid, ddof=1)
        noise = jax.random.normal(jax.random.split(key, 4)[3], ids.shape)  # the rest: `draw`
        return jnp.round((mean + std * noise).clip(0, self.vqgan.codebook - 1)).astype(ids.dtype)

    def _image_keys(self, batch, key):
        rows = jnp.arange(len(batch["image"]))
        rows = jnp.zeros_like(rows) if self.compat_seeding else batch.get("index", rows)
        return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)

    def _with_class(self, ids):
        return jnp.pad(ids, ((0, 0), (1, 0)), constant_values=self.class_id)

    def _encode(self, params, ids, drawn):
        masking, masked = _masking(drawn)
        ids = self._with_class(jnp.where(masked, self.mask_id, ids))
        scale = None
        if self.token_dropout:
            scale = drawn["dropout_keep"] / (1 - self.token_dropout)
        return self._encoder.apply({"params": params["encoder"]}, ids, masking, scale)

    def _logits(self, params, latent, drawn, rows):
        return self._decode(params, latent, *_masking(drawn), rows)

    def _decode(self, params, latent, masking, masked, rows):
        """Compute logits of the first `rows` ids; the output is the encoder's table, untrained."""
        words = jax.lax.stop_gradient(params["encoder"]["token_emb"]["word_embeddings"])
        variables = {"params": params["decoder"]}
        return self._decoder.apply(variables, latent, masking, masked, words["embedding"], rows)

    def _cross_entropy(self, params, ids, labels, drawn):
        latent, (_, masked) = self._encode(params, ids, drawn), _masks(drawn)
        logits = self._logits(params, latent, drawn, self.vqgan.codebook)[:, 1:]
        log_p = jax.nn.log_softmax(logits)
        hit = jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
        error = -(1 - self.label_smoothing) * hit - self.label_smoothing * log_p.mean(-1)
        return jnp.where(masked, error, 0).sum(1) / masked.sum(1)


def _masks(drawn: Mapping[str, Array]) -> tuple[Bool[Array, "b n"], Bool[Array, "b n"]]:
    """Choose (dropped, masked) tokens: those with the least noise. Dropped ones are masked, too."""
    noise = drawn["mask_noise"]
    rank = jnp.argsort(jnp.argsort(noise, axis=1), axis=1)
    dropped = rank < _num_dropped(noise.shape[1])
    number = jnp.ceil(noise.shape[1] * drawn["mask_rate"]).reshape(-1, 1)
    return dropped, dropped | (rank < number)


def _masking(drawn: Mapping[str, Array]) -> tuple[Masking, Bool[Array, "b m"]]:
    """Return (what the encoder keeps of the class slot and the tokens, the masked tokens)."""
    dropped, masked = _masks(drawn)
    number = 1 + dropped.shape[1] - _num_dropped(dropped.shape[1])
    dropped = jnp.pad(dropped, ((0, 0), (1, 0)))
    kept = jnp.argsort(dropped, axis=1, stable=True)[:, :number]
    return (kept, jnp.cumsum(~dropped, axis=1) - 1, dropped), masked


def _num_dropped(num_tokens: int) -> int:
    return math.ceil(_RATE_MIN * num_tokens)


def _check(draws: Mapping[str, Array] | None) -> Mapping[str, Array]:
    if unknown := sorted(set(draws or {}) - set(_DRAWS)):
        raise UserError(f"MAGE: expected draws with names among {_DRAWS}, got {unknown}.")
    return draws or {}
