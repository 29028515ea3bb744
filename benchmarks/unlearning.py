"""One unlearning step of MAE, MAGE and Palette by the method of Li et al., ours against PyTorch.

python -m benchmarks.unlearning [--size=small] [--batch_size=64] [--seconds=60] [--only=mage]

Prints one line of JSON per model, and at the end a table of them, with the images per second of
* `ours`: the package's step with `l2_encoder`; for MAGE also `ours_cached`, with cache_tokens;
* `published`: what the released loop does in each step: the original sees all images and, again,
  all noise; MAGE's tokenizer makes codes of the images twice and of the noise; and three numbers
  are fetched from the device;
* `clever`: PyTorch as one would write it now: the original sees the images of retain rows and noise
  of forget rows, once; codes are made once of each; for MAGE also `clever_cached`.
All train the encoder only, in float32, from the same parameters with Adam; three updates with our
draws are compared before anything is measured. --size=small are the models of configs/cifar10_*,
"base" MAE ViT-B and MAGE ViT-B as published, and Palette as published but at 64 pixels. Settings
and rounds are those of benchmarks/models.py, and so is what PyTorch needs.
"""

import copy
import importlib
import json
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import jax
import numpy as np
from absl import app, flags, logging

from benchmarks import autoencoder
from benchmarks import models as training
from unlearn_jax import cli, models
from unlearn_jax.methods import i2i

_SIZE = flags.DEFINE_enum("size", "small", ("small", "base"), "Of the models.")
_ROUND_S = 1.0
BASE = {"mae": {}, "mage": {}, "palette": {"image_size": 64}}


def build(name: str, size: str) -> models.Model:
    """Build the model of a size."""
    if size == "base":
        return models.build(name, **BASE[name])
    config = importlib.import_module(f"configs.cifar10_{name}").get_config()
    masks = {"masking": "random"} if name == "mae" else {}
    return models.build(**config.model.to_dict() | masks)


def torch_step(
    name: str, model: models.Model, params: dict, batch: Mapping, how: str, channels_last: bool
) -> Callable:
    """Make one step in PyTorch: "published", "clever" or "clever_cached"; draws can be given."""
    made = training.torch_model(name, model, params, channels_last)
    return torch_updates(made, model, batch, how)


def torch_updates(
    made: training.Torch,
    model: models.Model,
    batch: Mapping,
    how: str,
    wrap: Callable = lambda f: f,
) -> Callable:
    """Make updates of an existing PyTorch model; `wrap` is applied to the forward pass."""
    import torch

    net, _, inputs, encode, channels_last = made
    teacher = copy.deepcopy(net).requires_grad_(False)
    for path, leaf in net.named_parameters():  # what `model.trainable` leaves out, of the encoder
        if "word_embeddings" in path or "cond_embed" in path:
            leaf.requires_grad_(False)
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, autoencoder.LEARNING_RATE, fused=True)
    drawn = training.torch_draws(model, batch, channels_last)
    image, mask = (training.to_torch(batch[k], channels_last) for k in ("image", "mask"))
    forget = torch.tensor(batch["is_forget"])
    first = len(forget) - int(forget.sum())  # the forget rows are the last
    label = torch.where(forget, -1.0, 1.0)
    cached = inputs(image, mask, drawn()) if how == "clever_cached" else None

    def distance(a, b):
        pairs = zip(a, b, strict=True)
        return sum((x - y).square().flatten(1).mean(1) for x, y in pairs)

    def published(draws):
        mine = encode(net, inputs(image, mask, draws), draws)
        with torch.no_grad():
            keep = encode(teacher, inputs(image, mask, draws), draws)
            change = encode(teacher, inputs(image, mask, draws, noisy=True), draws)
        retain = ((1 + label) * distance(mine, keep)).mean()
        forgotten = ((1 - label) * distance(mine, change)).mean()
        return retain + forgotten, retain, forgotten

    def clever(draws):
        seen = inputs(image, mask, draws) if cached is None else cached
        rows = {k: x[first:] if x.ndim else x for k, x in draws.items()}
        noise = inputs(image[first:], mask[first:], rows, noisy=True)
        with torch.no_grad():
            goal = encode(teacher, torch.cat([seen[:first], noise]), draws)
        away = distance(encode(net, seen, draws), goal)
        return (away[:first].mean() + away[first:].mean(),)

    forward = wrap(published if how == "published" else clever)

    def step(given=None):
        optimizer.zero_grad(set_to_none=True)
        values = forward(drawn(given))
        values[0].backward()
        if how == "published":
            values = [value.item() for value in values]
        optimizer.step()
        return values[0].detach() if torch.is_tensor(values[0]) else values[0]

    return step


def measure(name: str, model: models.Model, size: int, seconds: float) -> dict[str, float]:
    """Measure images per second by side; raise AssertionError if the losses of the sides differ."""
    params = jax.jit(model.init)(jax.random.key(0))
    batch = autoencoder.make_batch(size, model.image_size, forget=size // 2)
    sides = {"ours": autoencoder.jax_step(model, params, batch, "l2_encoder")}
    if name == "mage":
        codes = {"tokens": np.array(jax.jit(model.tokens)(params, batch))}
        sides["ours_cached"] = autoencoder.jax_step(model, params, batch | codes, "l2_encoder")
    hows = ["published", "clever"] + (["clever_cached"] if name == "mage" else [])
    losses = [[float(step()) for _ in range(3)] for step in sides.values()]
    runs = {k: partial(autoencoder.images_per_s, step, size) for k, step in sides.items()}
    if training.has_torch(name):
        autoencoder.default_threads()
        for how in hows:
            make_step = partial(torch_step, name, model, params, batch, how)
            step = make_step(channels_last=False)
            found = []
            for number in range(3):
                key = jax.random.fold_in(jax.random.key(0), number)
                draws = dict(jax.jit(model.draw)(batch, key))
                noise = i2i.noise_image(jax.tree.map(jax.numpy.asarray, batch), key, "normal")
                found.append(float(step({**draws, "noise_image": noise})))
            losses.append(found)
            runs[how] = autoencoder.torch_rounds(make_step, size)
    # Codes that are equally near are chosen by rounding, hence not 1e-4.
    for found in losses[1:]:
        np.testing.assert_allclose(found, losses[0], rtol=1e-2)
    speeds = {side: [] for side in runs}
    for _ in range(max(1, round(seconds / len(runs)))):
        for side, run in runs.items():
            time.sleep(0.3)  # OpenMP's threads spin for a while after their work
            speeds[side].append(run(_ROUND_S))
    return {side: round(statistics.median(found), 2) for side, found in speeds.items()}


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Write Markdown of images per second by model and side, and of ours over PyTorch's."""
    head = ["model", "ours", "published", "clever", "times published", "times clever"]
    rows = [head, ["---"] * len(head)]
    for name, speeds in found.items():
        for suffix in ("", "_cached"):
            if (ours := speeds.get(f"ours{suffix}")) is None:
                continue
            theirs = [speeds.get("published"), speeds.get(f"clever{suffix}")]
            ratios = [f"{ours / speed:.2f}" if speed else "–" for speed in theirs]
            texts = [f"{speed:.2f}" if speed else "–" for speed in (ours, *theirs)]
            title = name + (", codes cached" if suffix else "")
            rows.append([title, *texts, *ratios])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main(argv: list[str]) -> None:
    """Measure one model after the other."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments {argv[1:]}; options start with --.")
    logging.set_verbosity(logging.WARNING)
    found = {}
    for name in training.ONLY.value:
        model = build(name, _SIZE.value)
        size, seconds = autoencoder.BATCH_SIZE.value, autoencoder.SECONDS.value
        found[name] = measure(name, model, size, seconds)
        print(json.dumps({"name": name, "images_per_s": found[name]}), flush=True)
    print(table(found))


if __name__ == "__main__":
    cli.keep_freed_memory()
    app.run(main)
