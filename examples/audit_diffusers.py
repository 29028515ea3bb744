"""Audit an inpainting model of diffusers, of which nothing else is at hand. Needs torch, diffusers.

python examples/audit_diffusers.py [FOLDER]

Its weights are random, so that it cannot know any image. Without an original and retrained models
to compare with, the audit can refute a model, but never say that it is not refuted.
"""

import functools
import sys
from pathlib import Path

import diffusers
import numpy as np
import torch
from PIL import Image

import unlearn_jax as uj

SETS = {"forget": range(40), "unseen": range(40, 130)}  # of the bundled sample
STEPS, DRAWS = 3, 4  # yours: 50 steps; draws of timestep and noise for each loss


@functools.cache
def load() -> tuple[diffusers.UNet2DModel, diffusers.DDIMScheduler]:
    """Return network and scheduler; yours come from `from_pretrained`."""
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        sample_size=32, in_channels=7, out_channels=3, block_out_channels=(8, 16),
        layers_per_block=1, norm_num_groups=4, down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    return network.eval(), diffusers.DDIMScheduler()


def to_torch(array: np.ndarray) -> torch.Tensor:
    """Put channels first, as torch has them."""
    return torch.from_numpy(np.moveaxis(array, -1, 1).astype(np.float32))


def complete(images: np.ndarray, masks: np.ndarray, seed: int) -> np.ndarray:
    """Complete images [b h w 3] in [-1, 1] where masks [b h w 1] are 1."""
    network, scheduler = load()
    image, mask = to_torch(images), to_torch(masks)
    scheduler.set_timesteps(STEPS)
    noisy = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for t in scheduler.timesteps:
            noise = network(torch.cat([noisy, image * (1 - mask), mask], 1), t).sample
            noisy = scheduler.step(noise, t, noisy).prev_sample
    made = np.moveaxis(noisy.clamp(-1, 1).numpy(), 1, -1)
    return np.where(masks > 0, made, images)


def loss(images: np.ndarray, masks: np.ndarray, seed: int) -> np.ndarray:
    """Return the training loss of each image, [b]: the error of the noise in the hole."""
    network, scheduler = load()
    image, mask = to_torch(images), to_torch(masks)
    random, found = torch.Generator().manual_seed(seed), 0.0
    with torch.no_grad():
        for _ in range(DRAWS):
            noise = torch.randn(image.shape, generator=random)
            t = torch.randint(1000, (len(image),), generator=random)
            noisy = scheduler.add_noise(image, noise, t)
            said = network(torch.cat([noisy, image * (1 - mask), mask], 1), t).sample
            found = found + ((said - noise) * mask).square().sum((1, 2, 3)) / mask.sum((1, 2, 3))
    return (found / DRAWS / 3).numpy()


complete.loss = loss  # --candidate=examples.audit_diffusers:complete finds both


def main(folder: Path) -> dict:
    """Write folders of images, such as yours, and audit the pipeline."""
    source = uj.Request(uj.load_config("quickstart")).source
    for name, rows in SETS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k, image in enumerate(source.fetch(np.array(rows))):
            Image.fromarray(image).save(folder / name / f"{k:03}.png")
    sets = {name: folder / name for name in SETS}
    found = uj.audit_functions(complete, folder / "audit", **sets)
    print(found)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/audit_diffusers"))
