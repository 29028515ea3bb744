"""Models as five pure functions; callers never see Flax.

A model is a frozen dataclass whose fields are its hyper-parameters. Adding one is one file and one
line in `MODELS`.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from unlearn_jax.models.autoencoder import Autoencoder
from unlearn_jax.models.mae import MAE
from unlearn_jax.models.mage import MAGE
from unlearn_jax.models.palette import Palette
from unlearn_jax.models.vqgan import VQGAN

Params = Mapping[str, Any]  # nested dict of arrays with string keys: {"encoder": …, "decoder": …}
Latent = Any  # pytree of arrays [b, …]
# image [b h w c] float32 in [-1, 1], mask [b h w 1] (1 = to be generated), label [b], index [b]
# (dataset id), is_forget [b], valid [b] (False = padding).
Batch = Mapping[str, Shaped[Array, "b ..."]]


@runtime_checkable
class Model(Protocol):
    """An image-to-image model h = decoder after encoder on a degraded image.

    The same key gives two sets of parameters the same random masks, timesteps and noise. What the
    key would give can also be given, by name: `encode`, `decode`, `loss` and `generate` of a model
    that draws anything take `draws={name: array}`; docs/parity.md lists names and shapes.

    A model may also have
    * `error(output, batch)` [b], if its loss is that of what it decodes;
    * `predict(params, batch, key)`, if its loss does not look at what it decodes: what it looks at;
    * `encode_noise(params, batch, key, noise_type)`, `encode` with noise in place of the forget
      images, if that is not `encode` of images of noise;
    * `noisy_loss(params, batch, key)` [b], `loss` with random labels on forget rows, if that is not
      `loss` of images with noise in the hole;
    * `tokenizer_loss(params, batch, key)` [b], if it has a tokenizer, which `loss` does not train;
    * `tokens(params, batch)` [b n], if what it computes from the images are codes of them alone.
    """

    trainable: tuple[str, ...]
    """Full-match regexes on leaf paths such as "encoder/down0/kernel". When unlearning, every
    other leaf stays the target's."""

    def init(self, key: PRNGKeyArray) -> Params:
        """Draw fresh float32 parameters."""

    def encode(self, params: Params, batch: Batch, key: PRNGKeyArray) -> Latent:
        """Encode the degraded images; methods compare these latents."""

    def decode(
        self, params: Params, latent: Latent, batch: Batch, key: PRNGKeyArray
    ) -> Float[Array, "b h w c"]:
        """Decode latents to images, not clipped."""

    def loss(self, params: Params, batch: Batch, key: PRNGKeyArray) -> Float[Array, "b"]:
        """Compute the model's own training loss, per example."""

    def generate(self, params: Params, batch: Batch, key: PRNGKeyArray) -> Float[Array, "b h w c"]:
        """Complete the degraded images; the result is in [-1, 1]."""


def with_image(batch: Batch, image: Float[Array, "b h w c"]) -> dict[str, Any]:
    """Return the batch with other images, without the codes (`tokens`) of its own images."""
    return {**{name: x for name, x in batch.items() if name != "tokens"}, "image": image}


MODELS: dict[str, type] = {
    "autoencoder": Autoencoder,
    "mae": MAE,
    "vqgan": VQGAN,
    "mage": MAGE,
    "palette": Palette,
}


def build(name: str, **fields: Any) -> Model:
    """Build the model of a config section, e.g. `build(**config.model)`."""
    return MODELS[name](**fields)
