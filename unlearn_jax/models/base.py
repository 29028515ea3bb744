"""What a model is: functions of parameters and batches; callers never see Flax."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

Params = Mapping[str, Any]  # nested dict of arrays with string keys: {"encoder": …, "decoder": …}
Latent = Any  # pytree of arrays [b, …]
# image [b h w c] float32 in [-1, 1], mask [b h w 1] (1 = to be generated), label [b], index [b]
# (dataset id), is_forget [b], valid [b] (False = padding).
Batch = Mapping[str, Shaped[Array, "b ..."]]
Hook = Callable[..., Any] | None


class Model:
    """An image-to-image model h = decoder after encoder on a degraded image.

    One of your own is a frozen dataclass that derives from this class; its fields are its
    hyper-parameters. It needs `init`, `encode` and `decode`; `loss` and `generate` are those of a
    plain autoencoder unless it has others.

    The same key gives two sets of parameters the same random masks, timesteps and noise. What the
    key would give can also be given, by name: `encode`, `decode`, `loss` and `generate` of a model
    that draws anything take `draws={name: array}`; docs/parity.md lists names and shapes.

    What is None below, a model may have:

    Attributes:
      trainable: full-match regexes on leaf paths such as "encoder/down0/kernel". When unlearning,
        every other leaf stays the original's.
      predict: (params, batch, key), if its loss does not look at what it decodes: what it looks at.
      encode_noise: (params, batch, key, noise_type), `encode` with noise in place of the forget
        images, if that is not `encode` of images of noise.
      noisy_loss: (params, batch, key) -> [b], `loss` with random labels on forget rows, if that is
        not `loss` of images with noise in the hole.
      tokenizer_loss: (params, batch, key) -> [b], if it has a tokenizer, which `loss` does not
        train.
      tokens: (params, batch) -> [b n], if what it computes from the images are codes of them alone.
      error: (output, batch) -> [b], if its loss is that of what it decodes.
      draw: (batch, key) -> {name: array}, what its methods draw from a key.
    """

    trainable: tuple[str, ...] = (".*",)
    predict: Hook = None
    encode_noise: Hook = None
    noisy_loss: Hook = None
    tokenizer_loss: Hook = None
    tokens: Hook = None
    error: Hook = None
    draw: Hook = None

    def init(self, key: PRNGKeyArray) -> Params:
        """Draw float32 parameters."""
        raise NotImplementedError

    def encode(self, params: Params, batch: Batch, key: PRNGKeyArray) -> Latent:
        """Return latents of the degraded images: what methods compare."""
        raise NotImplementedError

    def decode(
        self, params: Params, latent: Latent, batch: Batch, key: PRNGKeyArray
    ) -> Float[Array, "b h w c"]:
        """Return images from latents, not clipped."""
        raise NotImplementedError

    def loss(self, params: Params, batch: Batch, key: PRNGKeyArray) -> Float[Array, "b"]:
        """Return the training loss of each image: by default its mean squared error."""
        output = self.decode(params, self.encode(params, batch, key), batch, key)
        if self.error:
            return self.error(output, batch)
        return jnp.square(output - batch["image"]).mean((1, 2, 3))

    def generate(self, params: Params, batch: Batch, key: PRNGKeyArray) -> Float[Array, "b h w c"]:
        """Return completed images in [-1, 1]; the visible part is decoded too, not copied."""
        return self.decode(params, self.encode(params, batch, key), batch, key).clip(-1, 1)
