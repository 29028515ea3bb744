"""Training speed of the default autoencoder, ours against the same network in PyTorch.

python -m benchmarks.autoencoder [--batch_size=128] [--seconds=20]

Prints one line of JSON. The two take turns in short rounds and medians are reported, since other
work on the machine slows both. PyTorch gets its best of channels_last or not, and of its default
number of threads or 2; without PyTorch, its figures are null.
"""

import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from unlearn_jax import cli, sharding
from unlearn_jax import methods as objectives
from unlearn_jax.methods import optimizer as optim
from unlearn_jax.models import Model
from unlearn_jax.models.autoencoder import Autoencoder
from unlearn_jax.models.params import select
from unlearn_jax.training.step import UnlearnState, jit_step

BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images per step.", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 20.0, "Measuring time in all.", lower_bound=0.1)

LEARNING_RATE = 1e-3
_ROUND_S = 0.5
Step = Callable[[], float]  # queues one update; float of the result waits for it


def make_batch(size: int, pixels: int = 32, forget: int = 0) -> dict[str, np.ndarray]:
    """Make random images [b h w 3] in [-1, 1].

    Half of each side is masked; the last `forget` rows are to be forgotten.
    """
    shape, quarter = (size, pixels, pixels), pixels // 4
    image = np.random.default_rng(0).uniform(-1, 1, (*shape, 3)).astype(np.float32)
    mask = np.zeros((*shape, 1), np.float32)
    mask[:, quarter:-quarter, quarter:-quarter] = 1
    flags = {"is_forget": np.arange(size) >= size - forget, "valid": np.ones(size, bool)}
    return {"image": image, "mask": mask} | flags


def jax_step(
    model: Model, params: dict, batch: dict[str, np.ndarray], objective: str = "reconstruction"
) -> Step:
    """Make a call that queues one Adam update, by the package's own step, and returns its loss."""
    update, state, target, batch = jax_program(model, params, batch, objective)
    update = update.lower(state, target, batch).compile()

    def step():
        nonlocal state
        state, metrics = update(state, target, batch)
        return metrics["loss"]

    return step


def jax_program(
    model: Model, params: dict, batch: dict[str, np.ndarray], objective: str = "reconstruction"
) -> tuple[Callable, UnlearnState, dict, dict]:
    """Make (the jitted update, its state, the original, the batch), the arguments on their devices.

    The key of update k is fold_in(key(0), k). "reconstruction" trains all parameters; any other
    objective what the model unlearns, on both kinds of rows, from `params` as the original.
    """
    mesh = sharding.make_mesh()
    tx = optim.make_optimizer(learning_rate=LEARNING_RATE, steps=1)
    training = objective == "reconstruction"
    target = {} if training else params
    params = jax.tree.map(jnp.copy, params if training else select(params, model.trainable))
    state = UnlearnState(jnp.int32(0), params, tx.init(params), jax.random.key(0))
    shardings = sharding.params_sharding(state, mesh)
    n_forget = int(np.sum(batch["is_forget"]))
    forget_part = partial(sharding.last_rows, at_least=n_forget, mesh=mesh)
    update = jit_step(
        model,
        objectives.build(objective, forget_part=forget_part),
        tx,
        retain_weight=1.0,
        forget_weight=0.0 if training else 1.0,
        state_sharding=shardings,
        target_sharding=sharding.params_sharding(target, mesh),
        batch_sharding=sharding.batch_sharding(mesh),
        replicated=sharding.replicated(mesh),
    )
    return update, jax.device_put(state, shardings), target, sharding.global_batch(batch, mesh)


def torch_step(params: dict, batch: dict[str, np.ndarray], channels_last: bool) -> Step:
    """Make the call of `jax_step` in PyTorch, from the same parameters."""
    import torch
    from torch import nn

    layers = []
    for part in ("encoder", "decoder"):
        for name, leaf in params[part].items():
            kernel, bias = np.array(leaf["kernel"]), np.array(leaf["bias"])
            if part == "encoder":
                layer = nn.Conv2d(*kernel.shape[2:], 4, 2, 1)
                weight = kernel.transpose(3, 2, 0, 1)
            else:  # torch's transposed convolution is the adjoint, so its kernel is flipped
                layer = nn.ConvTranspose2d(*kernel.shape[2:], 4, 2, 1)
                weight = kernel[::-1, ::-1].transpose(2, 3, 0, 1)
            layer.load_state_dict(
                {"weight": torch.from_numpy(weight.copy()), "bias": torch.from_numpy(bias)}
            )
            layers += [layer, nn.ReLU()] if (part, name) != ("decoder", "up2") else [layer]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = nn.Sequential(*layers).to(memory_format=layout)
    optimizer = torch.optim.Adam(net.parameters(), LEARNING_RATE, fused=True)
    image, mask = (
        torch.from_numpy(batch[k]).permute(0, 3, 1, 2).contiguous(memory_format=layout)
        for k in ("image", "mask")
    )

    def step():
        optimizer.zero_grad(set_to_none=True)
        error = (net(torch.cat([image * (1 - mask), mask], 1)) - image).square().mean(1, True)
        parts = [(error * m).sum((1, 2, 3)) / m.sum((1, 2, 3)) for m in (mask, 1 - mask)]
        loss = (parts[0] + parts[1]).mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def images_per_s(step: Step, batch_size: int, seconds: float) -> float:
    """Measure throughput over one round of about `seconds`."""
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        loss = step()
        steps += 1
        if steps % 4 == 0:
            float(loss)
    float(loss)
    return batch_size * steps / (time.perf_counter() - start)


@cache
def default_threads() -> int:
    """Return PyTorch's number of threads when this is first called."""
    import torch

    return torch.get_num_threads()


def torch_rounds(make_step: Callable[[bool], Step], size: int) -> Callable[[float], float]:
    """Make a function seconds -> images per s, with the fastest settings of PyTorch.

    Args:
      make_step: of whether to use channels_last.
      size: of the batch.
    """
    import torch

    best, best_speed = None, 0.0
    for threads in sorted({2, default_threads()}):
        torch.set_num_threads(threads)
        for channels_last in (False, True):
            step = make_step(channels_last)
            images_per_s(step, size, _ROUND_S)  # warm up
            speed = max(images_per_s(step, size, _ROUND_S) for _ in range(3))
            if speed > best_speed:
                best, best_speed = (step, threads), speed
    step, threads = best
    torch.set_num_threads(threads)
    return lambda seconds: images_per_s(step, size, seconds)


def compare(
    name: str, ours: Step, theirs: Callable[[float], float] | None, size: int, seconds: float
) -> str:
    """Compare in turns, about so many `seconds` in all; return a line of JSON with the medians."""
    speeds = [], []
    images_per_s(ours, size, _ROUND_S)  # warm up
    rounds = max(1, round(seconds / _ROUND_S / (2 if theirs else 1)))
    for _ in range(rounds):
        speeds[0].append(images_per_s(ours, size, _ROUND_S))
        if theirs:
            speeds[1].append(theirs(_ROUND_S))
    our_speed = statistics.median(speeds[0])
    torch_speed = statistics.median(speeds[1]) if theirs else None
    return json.dumps(
        {
            "name": name,
            "ours_images_per_s": round(our_speed, 1),
            "torch_images_per_s": torch_speed and round(torch_speed, 1),
            "ratio": torch_speed and round(our_speed / torch_speed, 3),
        }
    )


def main(argv: list[str]) -> None:
    """Compare the losses of three updates, then the speeds."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments {argv[1:]}; options start with --.")
    logging.set_verbosity(logging.WARNING)
    model, size = Autoencoder(), BATCH_SIZE.value
    params, batch = jax.jit(model.init)(jax.random.key(0)), make_batch(size)
    ours = jax_step(model, params, batch)
    first = [float(ours()) for _ in range(3)]
    theirs = None
    if importlib.util.find_spec("torch"):
        theirs = torch_rounds(partial(torch_step, params, batch), size)
        step = torch_step(params, batch, channels_last=False)
        np.testing.assert_allclose(first, [float(step()) for _ in range(3)], rtol=1e-4)
    print(compare("autoencoder", ours, theirs, size, SECONDS.value))


if __name__ == "__main__":
    cli.keep_freed_memory()
    app.run(main)
