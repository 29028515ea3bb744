"""Train and unlearn a model of your own: a U-Net in forty lines. About two minutes on 2 cores.

python examples/own_model.py [FOLDER]
"""

import dataclasses
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

import unlearn_jax as uj


class Encoder(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        features = []
        for k in range(3):
            x = nn.relu(nn.Conv(self.width * 2**k, (3, 3), strides=2)(x))
            features.append(x)
        return tuple(features)


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, features):
        x = features[-1]
        for seen in features[-2::-1]:
            x = nn.relu(nn.ConvTranspose(seen.shape[-1], (4, 4), strides=(2, 2))(x))
            x = jnp.concatenate([x, seen], -1)
        return nn.ConvTranspose(3, (4, 4), strides=(2, 2))(x)


@dataclasses.dataclass(frozen=True)
class UNet(uj.Model):
    """Completes what it sees of an image. Its fields are keys of `config.model`."""

    width: int = 16

    def init(self, key):
        seen = jnp.zeros((1, 32, 32, 4))
        features, encoder = Encoder(self.width).init_with_output(key, seen)
        return {"encoder": encoder["params"],
                "decoder": Decoder().init(key, features)["params"]}  # fmt: skip

    def encode(self, params, batch, key):
        seen = jnp.concatenate([batch["image"] * (1 - batch["mask"]), batch["mask"]], -1)
        return Encoder(self.width).apply({"params": params["encoder"]}, seen)

    def decode(self, params, latent, batch, key):
        return Decoder().apply({"params": params["decoder"]}, latent)


def main(folder: Path, changes: dict | None = None) -> None:
    """Train the U-Net, let it forget, and complete an image with it."""
    changes = {"model": {"name": UNet, "width": 16}, **(changes or {})}
    request = uj.Request(uj.load_config("quickstart", changes))
    original = request.train("original", folder / "original")
    unlearned = request.train("unlearned", folder / "unlearned", start=original)
    batch = request.batch("forget", n=8)
    uj.show(batch, original(batch), unlearned(batch)).save(folder / "forget.png")

    model = uj.load_model(folder / "unlearned")  # finds the class by its name
    print(f"{sum(x.size for x in jax.tree.leaves(model.params)):,} parameters, {model.model}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_model"))
