"""Unlearn a PyTorch model: its Flax twin gets the file's weights by a table of names.

python examples/own_torch.py [FOLDER]
"""

import dataclasses
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch

import unlearn_jax as uj

# What you have: a PyTorch model, and a file of its weights.


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        conv = torch.nn.Conv2d
        self.down = torch.nn.ModuleList([conv(4, 16, 3, 2, 1), conv(16, 32, 3, 2, 1)])
        self.up = torch.nn.ModuleList([conv(32, 16, 3, 1, 1), conv(16, 3, 3, 1, 1)])
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        for layer in self.down:
            x = torch.relu(layer(x))
        double = torch.nn.Upsample(scale_factor=2)
        return self.up[1](double(torch.relu(self.up[0](double(x)))))


# What you write: the same layers in Flax, and which tensor goes where.


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i, features in enumerate((16, 32)):
            x = nn.relu(nn.Conv(features, (3, 3), 2, padding=1, name=f"down{i}")(x))
        return x


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i, features in enumerate((16, 3)):
            x = x.repeat(2, 1).repeat(2, 2)
            x = nn.Conv(features, (3, 3), padding=1, name=f"up{i}")(nn.relu(x) if i else x)
        return x


@dataclasses.dataclass(frozen=True)
class Twin(uj.Model):
    """The same function. Its fields are keys of `config.model`; this one is data.image_size."""

    image_size: int = 32

    def init(self, key):
        seen = jnp.zeros((1, self.image_size, self.image_size, 4))
        latent, encoder = Encoder().init_with_output(key, seen)
        return {"encoder": encoder["params"], "decoder": Decoder().init(key, latent)["params"]}

    def encode(self, params, batch, key):
        seen = jnp.concatenate([batch["image"] * (1 - batch["mask"]), batch["mask"]], -1)
        return Encoder().apply({"params": params["encoder"]}, seen)

    def decode(self, params, latent, batch, key):
        return Decoder().apply({"params": params["decoder"]}, latent)

    def loss(self, params, batch, key):
        made = self.decode(params, self.encode(params, batch, key), batch, key)
        return (jnp.square(made - batch["image"]) * batch["mask"]).mean((1, 2, 3))


CONV = (2, 3, 1, 0)  # PyTorch's [out, in, h, w] to Flax's [h, w, in, out]; (1, 0) for a Linear
RULES = {
    r"down\.(\d)\.weight": (r"encoder/down\1/kernel", CONV),
    r"down\.(\d)\.bias": r"encoder/down\1/bias",
    r"up\.(\d)\.weight": (r"decoder/up\1/kernel", CONV),
    r"up\.(\d)\.bias": r"decoder/up\1/bias",
    r"step": None,  # left out
}


def main(folder: Path, changes: dict | None = None) -> float:
    """Import the file, compare with PyTorch, let it forget; return the largest difference."""
    net = Net()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), folder / "net.pth")
    uj.import_torch(Twin(), folder / "net.pth", RULES, folder / "original", served="none")

    request = uj.Request(uj.load_config("quickstart", {"model": {"name": Twin}, **(changes or {})}))
    original, batch = uj.load_model(folder / "original"), request.batch("forget", n=8)
    key = jax.random.key(0)
    latent = original.model.encode(original.params, batch, key)
    made = original.model.decode(original.params, latent, batch, key)
    seen = np.concatenate([batch["image"] * (1 - batch["mask"]), batch["mask"]], -1)
    with torch.no_grad():
        theirs = net(torch.from_numpy(seen.transpose(0, 3, 1, 2).copy())).numpy()
    difference = float(np.abs(np.asarray(made) - theirs.transpose(0, 2, 3, 1)).max())
    print(f"Largest difference to PyTorch: {difference:.1e}")

    unlearned = request.train("unlearned", folder / "unlearned", start=original)
    uj.show(batch, original(batch), unlearned(batch)).save(folder / "forget.png")
    return difference


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_torch"))
