"""Models, each of which can be unlearned: one file and one line in `MODELS`."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float
from ml_collections import ConfigDict

from unlearn_jax import registry
from unlearn_jax.models.autoencoder import Autoencoder
from unlearn_jax.models.base import Batch, Latent, Model, Params
from unlearn_jax.models.mae import MAE
from unlearn_jax.models.mage import MAGE
from unlearn_jax.models.palette import Palette
from unlearn_jax.models.vqgan import VQGAN

__all__ = ["MODELS", "Batch", "Latent", "Model", "Params", "build", "find", "of", "with_image"]


def with_image(batch: Batch, image: Float[Array, "b h w c"]) -> dict[str, Any]:
    """Return the batch with other images, without the codes (`tokens`) of its own images."""
    return {**{name: x for name, x in batch.items() if name != "tokens"}, "image": image}


MODELS: dict[str, type[Model]] = {
    "autoencoder": Autoencoder,
    "mae": MAE,
    "vqgan": VQGAN,
    "mage": MAGE,
    "palette": Palette,
}

_BLOCKS, _MOST_BLOCKS = {"depth", "decoder_depth", "res_blocks"}, 1000


def find(name: str) -> type[Model]:
    """Return the class of that name, or of that "package.module:Class".

    Raises:
      UserError: there is none, or it does not derive from `Model`.
    """
    found = registry.find(MODELS, name, "model")
    if not (isinstance(found, type) and issubclass(found, Model)):  # it is about to be called
        raise registry.UserError(
            f"expected a class that derives from unlearn_jax.Model, got {name!r}, {found!r}"
        )
    return found


def build(name: str, **fields: Any) -> Model:
    """Build a model of these fields; see `of` for that of a config.

    Raises:
      UserError: no such model, wrong fields, or more blocks than anybody would wait for: the
        fields may be those of a file of others.
    """
    for field in _BLOCKS & fields.keys():
        if isinstance(fields[field], int) and fields[field] > _MOST_BLOCKS:
            raise registry.UserError(
                f"model.{field}: expected at most {_MOST_BLOCKS:,} blocks, got {fields[field]:,}"
            )
    return find(name)(**fields)


def of(config: Mapping[str, Any] | ConfigDict) -> Model:
    """Build the model of a config, for images of data.image_size unless its own fields say one."""
    section = config["model"]
    fields = section.to_dict() if isinstance(section, ConfigDict) else dict(section)
    if "image_size" in getattr(find(fields["name"]), "__dataclass_fields__", ()):
        fields.setdefault("image_size", config["data"]["image_size"])
    return build(**fields)
