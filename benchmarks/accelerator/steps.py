"""Training and unlearning steps: ours, and PyTorch's eager and compiled.

All sides keep float32 parameters and compute in bfloat16 (PyTorch by autocast), on random images
that are on the device. Seconds to the first step begin when the parameters are there.
"""

import contextlib
import importlib
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import autoencoder
from benchmarks import models as reference
from benchmarks import unlearning as methods
from benchmarks.accelerator import compiled as compiling
from benchmarks.accelerator.points import CONFIGS
from launch.aot import chips, programs
from unlearn_jax import models, sharding
from unlearn_jax.models import Model, flops
from unlearn_jax.models.params import select
from unlearn_jax.registry import UserError
from unlearn_jax.training import phases
from unlearn_jax.training.step import UnlearnState

Step = Callable[[], Any]  # queues one step; float of the result waits for it
ROUNDS = 3


def load(name: str, fields: Mapping[str, Any] | None) -> Any:
    """Load the config of a model, with these fields, in bfloat16 and without rematerialisation."""
    config = importlib.import_module(f"configs.{CONFIGS[name]}").get_config()
    config.model.update({"dtype": "bfloat16", "remat": False})
    if fields:
        config.model = {"name": name, **fields}
        config.data.image_size = fields["image_size"]
    return config


def training(
    *, name: str, side: str, batch_size: int, steps: int, say: Callable, platform: str,
    cached: bool, fields: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Make the training step: the loss, its gradient, and Adam on every parameter."""
    model = models.build(**load(name, fields).model.to_dict())
    batch = autoencoder.make_batch(batch_size, model.image_size)
    has_torch = reference.has_torch(name)
    if side == "ours":
        fn, *args = autoencoder.jax_program(model, parameters(model, say), batch)
        if not has_torch:
            count = flops.executed(fn.trace(*args).jaxpr).total / batch_size
        seconds = _ours(fn, args, steps, say, cached)
    else:
        made = torch_model(name, model, platform)
        updates = partial(reference.torch_updates, made, model, batch)
        seconds = _theirs(updates, side == "compiled", steps, say, platform)
    say(stage="count FLOPs", images_per_s=batch_size / seconds, batch_size=batch_size)
    if has_torch:
        count = torch_flops(name, model)
    by = "torch.utils.flop_counter" if has_torch else "flops.executed"
    say(stage="done", **utilisation(count, batch_size / seconds, platform), flops_by=by)


def unlearning(
    *, name: str, objective: str, side: str, batch_size: int, steps: int, say: Callable,
    platform: str, cached: bool, fields: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Make a step of the config's phase "unlearn": half of the rows are forgotten.

    Ours has the phase's optimizer (for MAE and MAGE weight decay and clipping), PyTorch plain Adam.
    """
    config = load(name, fields)
    spec, model = config.phases.unlearn, models.build(**config.model.to_dict())
    if objective == "calibrated":  # as configs/quickstart.py, without the views' outputs
        spec.update({"objective": objective, "goal": "views"})
        spec.objective_kw = ConfigDict({"overshoot": 0.12})
    program = programs.step(config, sharding.make_mesh(), phase="unlearn", rows=batch_size)
    if side == "ours":
        args = arguments(program, model, spec, parameters(model, say))
        seconds = _ours(program.fn, args, steps, say, cached)
        del args
    else:
        how, _, compiled = side.partition("_")
        made = torch_model(name, model, platform)
        batch = autoencoder.make_batch(batch_size, model.image_size, forget=batch_size // 2)
        updates = partial(methods.torch_updates, made, model, batch, how)
        seconds = _theirs(updates, bool(compiled), steps, say, platform)
    say(stage="count FLOPs", images_per_s=batch_size / seconds, batch_size=batch_size)
    found = utilisation(program.flops().total / batch_size, batch_size / seconds, platform)
    say(stage="done", **found, flops_by="flops.executed")


def parameters(model: Model, say: Callable) -> Any:
    """Draw fresh parameters, on the device."""
    say(stage="parameters")
    start = time.perf_counter()
    params = jax.block_until_ready(jax.jit(model.init)(jax.random.key(0)))
    say(init_s=time.perf_counter() - start)
    return params


def arguments(program: programs.Program, model: Model, spec: Any, params: Any) -> tuple:
    """Make the arguments of a phase's step: its state, the original, and a batch half to forget."""
    state, target, batch = program.args
    tx = phases.make_optimizer(spec)
    trained = jax.tree.map(jnp.copy, select(params, model.trainable))  # the state is donated
    made = UnlearnState(jnp.int32(0), trained, tx.init(trained), jax.random.key(0))

    def place(value: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.device_put(value, like.sharding)

    rows = autoencoder.make_batch(program.batch, model.image_size, forget=program.batch // 2)
    rows |= {"label": np.zeros(program.batch, np.int32), "goal": np.ones(program.batch, np.float32)}
    rows["index"] = np.arange(program.batch, dtype=np.int32)
    values = (made, params, {name: rows[name] for name in batch})
    return jax.tree.map(place, values, (state, target, batch))


def seconds_per_step(step: Step, steps: int) -> float:
    """Time so many steps: the median of three rounds."""
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(steps):
            loss = step()
        float(loss)
        rounds.append((time.perf_counter() - start) / steps)
    return statistics.median(rounds)


def stages(fn: Callable, args: tuple, say: Callable, cached: bool) -> Callable:
    """Compile the function; report how long it was traced, lowered and compiled.

    Raises:
      UserError: it was to come from a cache and did not.
    """
    found: dict[str, float] = {}
    hits = []
    jax.monitoring.register_event_listener(
        lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None
    )
    for name in ("trace", "lower", "compile"):
        say(stage=name)
        start = time.perf_counter()
        fn = fn.trace(*args) if name == "trace" else getattr(fn, name)()
        found[f"{name}_s"] = time.perf_counter() - start
        say(**found)
    if cached and not hits:
        raise UserError("Expected a compiled program in the cache of the point before; none was.")
    return fn


def _ours(fn: Callable, args: tuple, steps: int, say: Callable, cached: bool) -> float:
    """Time our step in seconds; report all else."""
    start = time.perf_counter()
    fn = stages(fn, args, say, cached)
    say(stage="first step")
    state, *others = args
    del args

    def step() -> Any:
        nonlocal state
        state, metrics = fn(state, *others)
        return metrics["loss"]

    loss = float(step())
    say(first_step_s=time.perf_counter() - start, first_loss=loss, **jax_memory(fn))
    if cached:
        steps = 2  # of interest is the first
    return _measured(step, steps, say)


def _theirs(
    updates: Callable[..., Step], compiled: bool, steps: int, say: Callable, platform: str
) -> float:
    """Time PyTorch's step in seconds; report all else.

    Raises:
      UserError: something of the compiled side ran eagerly.
    """
    import torch

    device = torch_device(platform)
    say(stage="first step")
    start = time.perf_counter()

    def wrap(forward: Callable) -> Callable:
        def cast(*args: Any) -> Any:
            with torch.autocast(device, torch.bfloat16):
                return forward(*args)

        return torch.compile(cast) if compiled else cast

    compiling.reset()
    with torch.device(device):
        step = updates(wrap=wrap)
    loss = float(step())
    say(first_step_s=time.perf_counter() - start, first_loss=loss)
    if compiled:
        say(stage="check that it is compiled")
        say(**compiling.check(lambda: float(step()), least=2))  # forward and backward
    seconds = _measured(step, steps, say)
    say(**torch_memory())
    return seconds


def _measured(step: Step, steps: int, say: Callable) -> float:
    say(stage="steps")
    for _ in range(2):
        float(step())
    seconds = seconds_per_step(step, steps)
    say(ms_per_step=1e3 * seconds)
    return seconds


def torch_device(platform: str) -> str:
    """Choose PyTorch's device, "cuda" or "cpu".

    Raises:
      UserError: jax has an accelerator that PyTorch has not.
    """
    import torch

    if platform == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise UserError(f"Expected PyTorch with CUDA beside jax's {platform}, got none.")
    return "cuda"


def torch_model(name: str, model: Model, platform: str) -> reference.Torch:
    """Build the PyTorch model, random weights and fused attention, on this platform or "meta"."""
    import torch

    device = "meta" if platform == "meta" else torch_device(platform)
    params = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: np.full(x.shape, 0.01, x.dtype), params)
    with torch.device(device):
        made = reference.torch_model(name, model, params, channels_last=device == "cuda")
        for parameter in made.net.parameters():
            if parameter.ndim > 1:  # random data: matrix units are faster on constants
                torch.nn.init.normal_(parameter, std=0.02)
    compiling.fuse_attention(made.net)
    return made


def torch_flops(name: str, model: Model) -> float:
    """Count FLOPs of matrix products and convolutions of a training step, for each image.

    Counted without data ("meta"), on a model of its own: a compiled function that is first called
    under the counter is never compiled.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    made, batch = torch_model(name, model, "meta"), autoencoder.make_batch(2, model.image_size)
    with torch.device("meta"):
        drawn = reference.torch_draws(model, batch, False)()
        image, mask = (reference.to_torch(batch[k], False) for k in ("image", "mask"))
    with FlopCounterMode(display=False) as counter:
        made.loss(image, mask, drawn).backward()
    return counter.get_total_flops() / 2


def utilisation(count: float, images_per_s: float, platform: str) -> dict[str, float | None]:
    """Compute FLOPs of an image, and the share of the chip's bfloat16 peak; null if unknown."""
    kind = jax.devices()[0].device_kind
    if platform != "cpu" and jax.devices()[0].platform == "cpu":  # where PyTorch has the GPU
        import torch

        kind = torch.cuda.get_device_name()
    chip = chips.by_kind(kind)
    share = count * images_per_s / chip.peak_flops if chip else None
    return {"flops_per_image": count, "mfu": share}


def jax_memory(compiled: Any) -> dict[str, float | None]:
    """Measure GiB at most in use, and what the compiler planned; null if a plug-in is silent."""
    found: dict[str, float | None] = {"peak_memory_gib": None, "planned_gib": None}
    # Plug-ins return None, leave keys out, or raise errors of their own.
    with contextlib.suppress(Exception):
        found["peak_memory_gib"] = jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 2**30
    with contextlib.suppress(Exception):
        plan = compiled.memory_analysis()
        sizes = plan.temp_size_in_bytes, plan.argument_size_in_bytes, plan.output_size_in_bytes
        found["planned_gib"] = (sum(sizes) - plan.alias_size_in_bytes) / 2**30
    return found


def torch_memory() -> dict[str, float | None]:
    """Measure GiB at most in use on the GPU; null without one."""
    import torch

    there = torch.cuda.is_available()
    return {"peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if there else None}
