"""Completed images: our samplers against the released loops, written in PyTorch.

The released loops are those of tests/reference/palette.py and mage.py. "published":
MAGE's images one after the other, both networks eager; "compiled": the whole batch at once, the
network by `torch.compile`. PyTorch's images are not blended into the hole's border, ours are.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import autoencoder
from benchmarks.accelerator import compiled as compiling
from benchmarks.accelerator import steps
from unlearn_jax import models, sharding
from unlearn_jax.models import Model, diffusion, mage_decoding
from unlearn_jax.models.compositing import fill_hole, token_mask

PALETTE_STEPS = 20  # of the released loop; all cost the same
LONG_S = 20.0  # a run of ours that takes longer is not repeated


def sampling(
    *, name: str, side: str, batch_size: int, taken: int, say: Callable, platform: str,
    cached: bool, fields: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Sample images of which this many denoising or decoding steps are taken."""
    model, batch = prepare(name, batch_size, taken, fields)
    if name == "mage":
        taken = decoding_steps(model, batch["mask"])
    if side == "ours":
        seconds, whole = _ours(model, batch, taken, say, cached), True
    else:
        seconds, whole = _theirs(name, model, batch, taken, side, say, platform)
    found = {"s_per_step": seconds / taken, "steps": taken, "batch_size": batch_size}
    if whole:
        found |= {"whole_s": seconds, "images_per_s": batch_size / seconds}
    say(stage="done", **found)


def prepare(
    name: str, batch_size: int, taken: int, fields: Mapping[str, Any] | None
) -> tuple[Model, dict[str, np.ndarray]]:
    """Prepare the model and a batch such that this many steps are taken.

    For MAGE the hole is the centre or, for 14 of 20 steps, everything but the centre.
    """
    config = steps.load(name, fields)
    if name == "palette":
        schedule, total = "palette_paper_1000", 1000
        if fields:
            schedule, total = "checkpoint", fields["timesteps"]
        more = {"schedule": schedule}
        if taken < total:
            more |= {"sampler": "ddpm_strided", "sampling_steps": taken}
        config.model.update(more)
    model = models.build(**config.model.to_dict())
    batch = autoencoder.make_batch(batch_size, model.image_size)
    if name == "mage" and taken == 14:
        batch["mask"] = 1 - batch["mask"]
    return model, batch


def decoding_steps(model: models.MAGE, mask: np.ndarray) -> int:
    """Count the steps that are taken for holes that are the same in all images."""
    unknown = int(np.asarray(token_mask(jnp.asarray(mask[:1]), model.vqgan.stride)).sum())
    first = mage_decoding.first_steps(model.num_iter, model.vqgan.num_tokens)[unknown]
    return model.num_iter - int(first)


def _ours(model: Model, batch: Mapping[str, Any], taken: int, say: Callable, cached: bool) -> float:
    params, mesh = steps.parameters(model, say), sharding.make_mesh()
    given = sharding.global_batch({k: batch[k] for k in ("image", "mask")}, mesh)
    args = params, given, jax.random.key(1)
    start = time.perf_counter()
    fn = steps.stages(sharding.jit_rows(model.generate, mesh), args, say, cached)
    say(stage="first images")
    ran = time.perf_counter()
    found = np.asarray(fn(*args))
    ended = time.perf_counter()
    say(first_step_s=ended - start, finite=bool(np.isfinite(found).all()))
    say(stage="images", **steps.jax_memory(fn))
    if ended - ran > LONG_S:  # what warming up takes is nothing beside it
        return ended - ran
    start = time.perf_counter()
    jax.block_until_ready(fn(*args))
    return time.perf_counter() - start


def _theirs(
    name: str, model: Model, batch: Mapping[str, Any], taken: int, side: str, say: Callable,
    platform: str,
) -> tuple[float, bool]:  # fmt: skip
    """Time PyTorch: (seconds of so many steps, whether all of them were made)."""
    import torch

    device, compiled = steps.torch_device(platform), side == "compiled"
    made = steps.torch_model(name, model, platform)
    if name == "mage":
        batch = batch | {
            "image": np.array(fill_hole(*(jnp.asarray(batch[k]) for k in ("image", "mask"))))
        }
    image, mask = (
        torch.tensor(batch[k], device=device).permute(0, 3, 1, 2) for k in ("image", "mask")
    )
    if name == "palette":
        sample, count = _palette(made.net, model, image, mask, compiled), min(PALETTE_STEPS, taken)
    else:
        sample, count = _mage(made.net, model, batch, image, compiled), 1

    def run(count: int) -> float:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            return float(sample(count).float().sum())

    compiling.reset()
    say(stage="first step")
    start = time.perf_counter()
    run(1)
    say(first_step_s=time.perf_counter() - start)
    if compiled:
        say(stage="check that it is compiled")
        say(**compiling.check(lambda: run(1)))
    run(min(3, count))
    say(stage="images")
    start = time.perf_counter()
    run(count)
    seconds = time.perf_counter() - start
    say(measured_steps=count if name == "palette" else taken, **steps.torch_memory())
    return (seconds / count * taken, count == taken) if name == "palette" else (seconds, True)


def _palette(net: Any, model: Model, image: Any, mask: Any, compiled: bool) -> Callable:
    import torch

    if model.schedule == "checkpoint":
        options = model.timesteps, model.beta_start, model.beta_end
    else:
        options = diffusion.SCHEDULES[model.schedule]
    table = diffusion.linear_schedule(*options)
    table = {k: torch.tensor(np.array(v), device=image.device) for k, v in table.items()}
    denoise = torch.compile(net) if compiled else net
    last = len(table["gammas"]) - 1

    def sample(count: int) -> Any:
        noise = (torch.randn_like(image) for _ in range(count))
        hole = torch.randn_like(image)
        return palette_loop(denoise, table, image, mask, hole, noise, range(last, last - count, -1))

    return sample


def palette_loop(
    net: Callable, table: Mapping[str, Any], image: Any, mask: Any, hole_noise: Any,
    noises: Iterable[Any], times: Iterable[int],
) -> Any:  # fmt: skip
    """Run the released sampler for these timesteps, from noise in the hole: images [b 3 h w]."""
    import torch

    visible = image * (1 - mask)
    y = condition = visible + mask * hole_noise
    for t, noise in zip(times, noises, strict=True):
        predicted = net(torch.cat([condition, y], 1), table["gammas"][t].expand(len(y)))[1]
        clean = table["sqrt_recip_gammas"][t] * y - table["sqrt_recipm1_gammas"][t] * predicted
        clean = clean.clamp(-1, 1)
        mean = table["posterior_mean_coef1"][t] * clean + table["posterior_mean_coef2"][t] * y
        std = (0.5 * table["posterior_log_variance_clipped"][t]).exp() * (t > 0)
        y = (mean + std * noise) * mask + visible
    return y


def _mage(net: Any, model: Model, batch: Mapping[str, Any], image: Any, compiled: bool) -> Callable:
    import torch

    unknown = np.array(token_mask(jnp.asarray(batch["mask"]), model.vqgan.stride))
    unknown = torch.tensor(unknown, device=image.device)
    logits = torch.compile(code_logits) if compiled else code_logits

    def gumbel(*shape: int) -> Any:
        return -torch.empty(shape, device=image.device).exponential_().log()

    def sample(_: int) -> Any:
        rows = len(image) if compiled else 1
        done = [
            mage_loop(net, model, image[i : i + rows], unknown[i : i + rows], gumbel, logits)
            for i in range(0, len(image), rows)
        ]
        return torch.cat(done)

    return sample


def mage_loop(
    net: Any, model: Model, image: Any, unknown: Any, gumbel: Callable, logits: Callable
) -> Any:
    """Run the released decoding: images [b 3 h w] in [0, 1], equally many unknown tokens in all.

    Args:
      net: the model in PyTorch.
      model: ours.
      image: [b 3 h w] in [-1, 1], grey in the hole.
      unknown: which tokens [b n] are.
      gumbel: noise of a shape; asked for that of the codes, then of the confidence.
      logits: `code_logits`.
    """
    import torch

    b, n = unknown.shape
    words = net.vqgan.quantize.embedding.weight
    z = net.vqgan.encoder((image + 1) / 2).permute(0, 2, 3, 1).flatten(0, 2)
    ids = ((words**2).sum(1) - 2 * z @ words.T).argmin(1).reshape(b, n)
    sampled = ids = torch.where(unknown, model.mask_id, ids)
    share = float(unknown.sum()) / unknown.numel()
    for number in range(model.num_iter):
        u = (number + 1) / model.num_iter
        left = np.cos(np.pi / 2 * u)
        if left >= share:
            continue
        unknown = ids == model.mask_id
        scores = logits(net, model, ids).float()
        sampled = torch.where(unknown, (scores + gumbel(*scores.shape)).argmax(-1), ids)
        index = sampled.clamp(max=model.vqgan.codebook - 1)[..., None]
        p = scores.softmax(-1).gather(2, index)[..., 0]
        confidence = torch.where(unknown, p, 1e20).log()
        confidence = confidence + model.temperature * (1 - u) * gumbel(b, n)
        k = (unknown.sum(1, keepdim=True) - 1).clamp(max=int(n * left)).clamp(min=1)
        threshold = confidence.sort(1).values.gather(1, k - 1)
        ids = torch.where(confidence <= threshold, model.mask_id, sampled)
    return net.vqgan.decode(sampled)[0]


def code_logits(net: Any, model: Model, ids: Any) -> Any:
    """Compute logits [b n codes] from tokens [b n] of which none is dropped."""
    import torch
    from torch.nn import functional as F

    emb, masked = net.token_emb, F.pad(ids == model.mask_id, (1, 0))[..., None]
    x = emb.word_embeddings(F.pad(ids, (1, 0), value=model.class_id))
    x = emb.LayerNorm(x + emb.position_embeddings.weight)
    for block in net.blocks:
        x = block(x)
    x = net.decoder_embed(net.norm(x))
    x = torch.where(masked, x[:, :1], x) + net.decoder_pos_embed_learned
    for block in net.decoder_blocks:
        x = block(x)
    x = net.mlm_layer.ln(F.gelu(net.mlm_layer.fc(net.decoder_norm(x))))[:, 1:]
    codes = model.vqgan.codebook
    return x @ emb.word_embeddings.weight[:codes].T + net.mlm_layer.bias[..., :codes]
