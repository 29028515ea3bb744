"""Audit models of PyTorch: here a small one that was told to forget, and did not. Needs torch.

python examples/audit_torch.py [FOLDER]

The same on a command line, with models and folders of images of your own:

unlearn-jax audit --candidate=my_models:candidate --original=my_models:original \\
    --retrained=my_models:retrained_1 --retrained=my_models:retrained_2 \\
    --forget=DIR --unseen=DIR --out=DIR
"""

import functools
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import unlearn_jax as uj

SETS = {"forget": range(60), "retain": range(60, 120), "unseen": range(120, 270)}  # of the sample
SEEDS = {"original": 0, "candidate": 0, "retrained_1": 1, "retrained_2": 2}
SHAPE = (32, 32, 3)


@functools.cache
def images(name: str) -> np.ndarray:
    """Return the images of a set, [n 32 32 3] in [-1, 1]."""
    source = uj.Request(uj.load_config("quickstart")).source
    return source.fetch(np.array(SETS[name])).astype(np.float32) / 127.5 - 1


def train(network: torch.nn.Module, data: np.ndarray, steps: int) -> None:
    """Train a network to complete centred holes."""
    mask = np.zeros((1, 32, 32, 1), np.float32)
    mask[:, 8:24, 8:24] = 1
    seen, truth, mask = map(torch.from_numpy, (data * (1 - mask), data, mask))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        ((network(seen) - truth) * mask).square().mean().backward()
        optimizer.step()


@functools.cache
def load(name: str) -> torch.nn.Module:
    """Return a trained network; yours is loaded from a file."""
    torch.manual_seed(SEEDS[name])
    layers = torch.nn.Linear(32 * 32 * 3, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32 * 32 * 3)
    ends = torch.nn.Flatten(), torch.nn.Unflatten(1, SHAPE)
    network = torch.nn.Sequential(ends[0], *layers, torch.nn.Tanh(), ends[1])
    if name.startswith("retrained"):
        train(network, images("retain"), 80)
    else:
        train(network, np.concatenate([images("forget"), images("retain")]), 80)
    if name == "candidate":  # a few steps on the others, and the claim that it forgot
        train(network, images("retain"), 10)
    return network


class Inpainter:
    """A model as the audit wants it; a method `loss`, of the same arguments, may be added."""

    def __init__(self, name: str):
        self.name = name

    def complete(self, images: np.ndarray, masks: np.ndarray, seed: int) -> np.ndarray:
        """Complete images [b h w 3] in [-1, 1] where masks [b h w 1] are 1."""
        network = load(self.name)
        with torch.no_grad():
            made = network(torch.from_numpy(images * (1 - masks))).numpy()
        return np.where(masks > 0, made, images)


original, candidate, retrained_1, retrained_2 = map(Inpainter, SEEDS)


def main(folder: Path) -> dict:
    """Write folders of images, such as yours, and audit the candidate."""
    for name in SETS:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k, image in enumerate(np.rint((images(name) + 1) * 127.5).astype(np.uint8)):
            Image.fromarray(image).save(folder / name / f"{k:03}.png")
    sets = {name: folder / name for name in SETS}
    others = {"original": original, "retrained": (retrained_1, retrained_2)}
    found = uj.audit_functions(candidate, folder / "audit", **others, **sets)
    print(found)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/audit_torch"))
