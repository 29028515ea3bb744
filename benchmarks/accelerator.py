"""Training speed of full-size models on one accelerator: ours and PyTorch, eager and compiled.

python -m benchmarks.accelerator [--configs=imagenet_mae,imagenet_mage,places365_palette]
    [--sides=ours,eager,compiled] [--batch_size=N] [--steps=20]

Prints one line of JSON per model and side. All sides take the same steps as in benchmarks/models.py
(new masks or noise, the training loss, its gradient, Adam on every parameter) with float32
parameters and bfloat16 computation: PyTorch by autocast, with fused attention and fused Adam.
Activations are kept (no remat). `flops_per_image` is PyTorch's count of matrix products and
convolutions, forward and backward, and counts for all sides; `mfu` is the share of what the chip
can do in dense bfloat16.
"""

import gc
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from unittest import mock

import jax
import numpy as np
from absl import app, flags, logging

from benchmarks import autoencoder, models
from unlearn_jax import cli
from unlearn_jax.models import Model, build

BATCH_SIZES = {"imagenet_mae": 256, "imagenet_mage": 128, "places365_palette": 32}
SIDES = ("ours", "eager", "compiled")
# FLOP/s in dense bfloat16, from NVIDIA's data sheets (SXM).
PEAK = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}

_CONFIGS = flags.DEFINE_list("configs", list(BATCH_SIZES), "Files of configs/ with the models.")
_SIDES = flags.DEFINE_list("sides", list(SIDES), "What to measure.")
_STEPS = flags.DEFINE_integer("steps", 20, "Steps of one round; there are three.", lower_bound=1)
_MODEL = flags.DEFINE_string("model", "{}", "Other fields of the model, as JSON.")
flags.register_validator(_CONFIGS, lambda names: set(names) <= set(BATCH_SIZES))
flags.register_validator(_SIDES, lambda names: set(names) <= set(SIDES))


def make_batch(model: Model, size: int) -> dict[str, np.ndarray]:
    """Random images in [-1, 1], half of the side masked."""
    side = model.image_size
    image = np.random.default_rng(0).uniform(-1, 1, (size, side, side, 3)).astype(np.float32)
    mask = np.zeros((size, side, side, 1), np.float32)
    mask[:, side // 4 : -side // 4, side // 4 : -side // 4] = 1
    return {"image": image, "mask": mask, "is_forget": np.zeros(size, bool),
            "valid": np.ones(size, bool)}  # fmt: skip


def torch_step(name: str, model: Model, batch: dict[str, np.ndarray], compiled: bool) -> Callable:
    """A call that queues one Adam update, on the GPU if there is one, and returns its loss."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    params = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: np.full(x.shape, 0.01, x.dtype), params)
    shapes = {k: v.shape for k, v in jax.eval_shape(model.draw, batch, jax.random.key(0)).items()}
    with torch.device(device):
        made = models.torch_model(name, model, params, channels_last=True)
        net, loss = made.net, made.loss
        for parameter in net.parameters():
            if parameter.ndim > 1:  # random data: matrix units are faster on constants
                torch.nn.init.normal_(parameter, std=0.02)
        image, mask = (torch.tensor(batch[k]).permute(0, 3, 1, 2) for k in ("image", "mask"))
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, autoencoder.LEARNING_RATE, fused=True)

    def draw(key, shape):
        if key == "timestep":
            return torch.randint(1, model.timesteps, shape, device=device)
        if key == "mask_rate":
            rate = torch.empty((), device=device)
            return torch.nn.init.trunc_normal_(rate, 0.55, 0.25, 0.5, 1)
        kind = torch.randn if key in ("noise", "hole_noise") else torch.rand
        x = kind(shape, device=device)
        return x.permute(0, 3, 1, 2) if len(shape) == 4 else x

    def forward(draws):
        with torch.autocast(device, torch.bfloat16):
            return loss(image, mask, draws)

    forward = torch.compile(forward) if compiled else forward

    def step():
        optimizer.zero_grad(set_to_none=True)
        value = forward({k: draw(k, shape) for k, shape in shapes.items()})
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def _fused_attention(self, x):
    from torch.nn import functional as F

    b, n, d = x.shape
    q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
    return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))


def count_flops(step: Callable) -> int:
    """Of the matrix products and convolutions of one call of PyTorch's eager step."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def seconds_per_step(step: Callable, steps: int) -> float:
    """The median of three rounds of so many steps."""
    rounds = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(steps):
            loss = step()
        float(loss)
        rounds.append((time.perf_counter() - start) / steps)
    return statistics.median(rounds)


def measure(config: str, side: str, size: int, flops: float | None) -> dict:
    """The figures of one model and side."""
    settings = importlib.import_module(f"configs.{config}").get_config().model.to_dict()
    more = {"remat": False} if settings["name"] == "mae" else {"dtype": "bfloat16"}
    model = build(**settings | more | json.loads(_MODEL.value))
    batch, start = make_batch(model, size), time.perf_counter()
    if side == "ours":
        step = autoencoder.jax_step(model, jax.jit(model.init)(jax.random.key(0)), batch)
        memory = partial(_jax_memory, jax.devices()[0])
    else:
        step = torch_step(settings["name"], model, batch, side == "compiled")
        memory = _torch_memory
        flops = flops or count_flops(step)
    for _ in range(3):
        float(step())
    ready = time.perf_counter() - start
    seconds = seconds_per_step(step, _STEPS.value)
    kind = jax.devices()[0].device_kind
    peak = next((peak for name, peak in PEAK.items() if name in kind), None)
    return {
        "config": config,
        "side": side,
        "device": kind,
        "batch_size": size,
        "images_per_s": round(size / seconds, 1),
        "ms_per_step": round(1e3 * seconds, 2),
        "flops_per_image": flops and flops / size,
        "mfu": flops and peak and round(flops / seconds / peak, 3),
        "peak_memory_gib": memory(),
        "ready_after_s": round(ready, 1),
    }


def _jax_memory(device) -> float | None:
    stats = device.memory_stats() or {}
    return ("peak_bytes_in_use" in stats and round(stats["peak_bytes_in_use"] / 2**30, 2)) or None


def _torch_memory() -> float | None:
    import torch

    return (
        round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None
    )


def _free_torch() -> None:
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.empty_cache()
        sys.modules["torch"].cuda.reset_peak_memory_stats()


def main(argv: list[str]) -> None:
    """Measures one model after the other; PyTorch first, which counts."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments {argv[1:]}; options start with --.")
    logging.set_verbosity(logging.WARNING)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave some to PyTorch
    for config in _CONFIGS.value:
        flops = None
        given = autoencoder.BATCH_SIZE
        size = given.value if given.present else BATCH_SIZES[config]
        for side in sorted(_SIDES.value, key=("eager", "compiled", "ours").index):
            with mock.patch("tests.models.test_mage_torch.Attention.forward", _fused_attention):
                line = measure(config, side, size, flops)
            flops = flops or (line["flops_per_image"] and line["flops_per_image"] * size)
            print(json.dumps(line), flush=True)
            jax.clear_caches()
            gc.collect()
            _free_torch()


if __name__ == "__main__":
    cli.keep_freed_memory()
    app.run(main)
