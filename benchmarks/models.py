"""Training speed of the small MAE, MAGE and Palette of configs/, ours against PyTorch.

python -m benchmarks.models [--batch_size=64] [--seconds=20] [--only=mae,mage,palette]

Prints one line of JSON per model. Both sides take the same steps: new random masks or noise, the
training loss, its gradient, Adam; in float32 and from the same parameters. That they do is checked
by three updates with our draws before anything is measured. In PyTorch:
* MAE is transformers' ViTMAE. Ours masks at random here, as it does.
* MAGE is made of the parts in tests/reference/mage.py, and tokenizes without gradients.
  Like ours, it computes the logits of the codes only.
* Palette is the U-Net of tests/reference/palette.py.
The settings and rounds are those of benchmarks/autoencoder.py; without torch, and
transformers for MAE, a model's PyTorch figures are null.
"""

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags, logging

from benchmarks import autoencoder
from unlearn_jax import cli, convert, models

_NAMES = ("mae", "mage", "palette")
ONLY = flags.DEFINE_list("only", list(_NAMES), "Models to measure.")
flags.register_validator(ONLY, lambda names: set(names) <= set(_NAMES), f"must be of {_NAMES}")
flags.set_default(autoencoder.BATCH_SIZE, 64)


class Torch(NamedTuple):
    """A model in PyTorch, from the tensors of the exported checkpoint."""

    net: Any
    loss: Callable  # (image, mask, draws)
    inputs: Callable  # (image, mask, draws, noisy=False): of the network, or of one of noise
    encode: Callable  # (net, inputs, draws): the latents that `l2_encoder` compares
    channels_last: bool = False


def mae(model: models.MAE, state: Mapping) -> Torch:
    """Build the MAE of transformers."""
    import torch

    from tests.reference import mae as reference

    fields = ("image_size", "patch", "mask_ratio", "dim", "depth", "heads")
    fields += ("decoder_dim", "decoder_depth", "decoder_heads")
    net = reference.build(**{name: getattr(model, name) for name in fields})
    reference.fill(net, state)
    mean, std = (torch.tensor(x)[:, None, None] for x in (model.mean, model.std))

    def inputs(image, _, draws, noisy=False):
        return ((noise_image(image, draws) if noisy else image) + 1).div(2).sub(mean).div(std)

    def loss(image, mask, draws):
        return net(inputs(image, mask, draws), noise=draws["mask_noise"]).loss

    def encode(net, x, draws):
        return [net.vit(x, noise=draws["mask_noise"]).last_hidden_state]

    return Torch(net, loss, inputs, encode)


def noise_image(image, draws: Mapping):
    """Draw normal noise with the mean and standard deviation of the batch, in [-1, 1]."""
    import torch

    if "noise_image" in draws:
        return draws["noise_image"]
    return (image.mean() + image.std() * torch.randn_like(image)).clamp(-1, 1)


def mage(model: models.MAGE, state: Mapping) -> Torch:
    """Build MAGE of the parts of the tests, in the order of the release."""
    import torch
    from torch.nn import functional as F

    from tests.reference.mage import Mage

    vqgan, n = model.vqgan, model.vqgan.num_tokens
    fields = ("ch", "ch_mult", "z_dim", "codebook", "groups", "res_blocks")
    tokenizer = {name: getattr(vqgan, name) for name in fields}
    fields = ("dim", "depth", "heads", "decoder_dim", "decoder_depth", "decoder_heads")
    sizes = {name: getattr(model, name) for name in fields}
    net = Mage(tokenizer, n, model.class_id, model.mask_id, **sizes)
    del net.patch_embed, net.decoder_pred  # never used
    net.load_state_dict({name: state[name] for name in net.state_dict()})
    net.vqgan.requires_grad_(False)

    def inputs(image, _, draws, noisy=False):
        with torch.no_grad():
            image = noise_image(image, draws) if noisy else image
            z = net.vqgan.encoder((image + 1) / 2).permute(0, 2, 3, 1).flatten(0, 2)
            words = net.vqgan.quantize.embedding.weight
            return ((words**2).sum(1) - 2 * z @ words.T).argmin(1).reshape(len(image), n)

    def masks(draws):
        """Draw (places [b k 1] of the class slot and of what is not dropped, masked [b n])."""
        order, dropped = draws["mask_noise"].argsort(1), (n + 1) // 2
        places = F.pad(order[:, dropped:].sort(1).values + 1, (1, 0))
        rank, rate = order.argsort(1), draws["mask_rate"]
        return places[..., None], (rank < dropped) | (rank < torch.ceil(n * rate))

    def encode(net, ids, draws):
        (places, masked), emb = masks(draws), net.token_emb
        x = F.pad(torch.where(masked, model.mask_id, ids), (1, 0), value=model.class_id)
        x = emb.LayerNorm(emb.word_embeddings(x) + emb.position_embeddings.weight)
        x = x.gather(1, places.expand(-1, -1, model.dim))  # not x[…]: shapes that depend on data
        for block in net.blocks:
            x = block(x)
        return [net.norm(x)]

    def loss(image, mask, draws):
        ids, (places, masked), emb = inputs(image, mask, draws), masks(draws), net.token_emb
        x = net.decoder_embed(encode(net, ids, draws)[0])
        full = x[:, :1].repeat(1, n + 1, 1)
        full = full.scatter(1, places.expand(-1, -1, model.decoder_dim), x)
        x = torch.where(F.pad(masked, (1, 0))[..., None], x[:, :1], full)
        x = x + net.decoder_pos_embed_learned
        for block in net.decoder_blocks:
            x = block(x)
        x = net.mlm_layer.ln(F.gelu(net.mlm_layer.fc(net.decoder_norm(x))))[:, 1:]
        words = emb.word_embeddings.weight[: vqgan.codebook].detach()
        logits = (x @ words.T + net.mlm_layer.bias[..., : vqgan.codebook]).flatten(0, 1)
        options = {"reduction": "none", "label_smoothing": model.label_smoothing}
        error = F.cross_entropy(logits, ids.flatten(), **options).reshape(ids.shape)
        return ((error * masked).sum(1) / masked.sum(1)).mean()

    return Torch(net, loss, inputs, encode)


def palette(model: models.Palette, state: Mapping) -> Torch:
    """Build the U-Net of the tests."""
    import torch
    from torch.nn import functional as F

    from tests.reference.palette import UNet

    net = UNet(model.inner, model.mults, model.res_blocks, model.head_channels, model.groups)
    net.load_state_dict({name: state[f"denoise_fn.{name}"] for name in net.state_dict()})
    gammas = state["gammas"]

    def level(draws):
        t = draws["timestep"].long()
        return torch.lerp(gammas[t - 1], gammas[t], draws["gamma_uniform"])

    def inputs(image, mask, draws, noisy=False):
        g, visible = level(draws)[:, None, None, None], image * (1 - mask)
        y = draws["noise"] if noisy else g.sqrt() * image + (1 - g).sqrt() * draws["noise"]
        return torch.cat([visible + mask * draws["hole_noise"], visible + mask * y], 1)

    def loss(image, mask, draws):
        predicted = net(inputs(image, mask, draws), level(draws))[1]
        return F.mse_loss(mask * predicted, mask * draws["noise"])

    def encode(net, x, draws):
        return net.encode(x, level(draws))[0]

    return Torch(net, loss, inputs, encode)


def torch_step(name: str, model: models.Model, params: dict, batch: Mapping, channels_last: bool):
    """Make `autoencoder.jax_step` in PyTorch; a step's random numbers can be given as arrays."""
    return torch_updates(torch_model(name, model, params, channels_last), model, batch)


def torch_updates(made: Torch, model: models.Model, batch: Mapping, wrap: Callable = lambda f: f):
    """Make one Adam update of a model in its own memory layout.

    Args:
      made: the model.
      model: what it is of.
      batch: arrays "image" and "mask".
      wrap: what becomes of the loss, such as `torch.compile`.
    """
    import torch

    trained = [p for p in made.net.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, autoencoder.LEARNING_RATE, fused=True)
    drawn = torch_draws(model, batch, made.channels_last)
    image, mask = (to_torch(batch[k], made.channels_last) for k in ("image", "mask"))
    loss = wrap(made.loss)

    def step(given=None):
        optimizer.zero_grad(set_to_none=True)
        value = loss(image, mask, drawn(given))
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def torch_model(name: str, model: models.Model, params: dict, channels_last: bool) -> Torch:
    """Build the PyTorch model of that name with these parameters."""
    import torch

    state = convert.to_torch(convert.find(name), model, params)
    make = {"mae": mae, "mage": mage, "palette": palette}[name]
    made = make(model, {k: torch.tensor(v) for k, v in state})
    made.net.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    return made._replace(channels_last=channels_last)


def to_torch(x: Any, channels_last: bool):
    """Convert an array to a tensor; images [b h w c] become [b c h w]."""
    import torch

    return as_images(torch.as_tensor(np.array(x)), channels_last)


def as_images(x: Any, channels_last: bool):
    """Turn a tensor [b h w c] into [b c h w]; return any other as it is."""
    import torch

    layout = torch.channels_last if channels_last else torch.contiguous_format
    return x.permute(0, 3, 1, 2).contiguous(memory_format=layout) if x.ndim == 4 else x


def torch_draws(model: models.Model, batch: Mapping, channels_last: bool) -> Callable:
    """Make a function that draws a step's random numbers, or takes those given as arrays."""
    import torch

    shapes = {k: v.shape for k, v in jax.eval_shape(model.draw, batch, jax.random.key(0)).items()}
    at = {"device": torch.get_default_device()}
    draw = {  # all others are uniform
        "timestep": lambda shape, **at: torch.randint(1, model.timesteps, shape, **at),
        "mask_rate": lambda shape, **at: torch.nn.init.trunc_normal_(
            torch.empty(shape, **at), 0.55, 0.25, 0.5, 1
        ),
        "noise": torch.randn,
        "hole_noise": torch.randn,
    }

    def drawn(given=None):
        if given:
            return {k: to_torch(x, channels_last) for k, x in given.items()}
        made = {k: draw.get(k, torch.rand)(shape, **at) for k, shape in shapes.items()}
        return {k: as_images(x, channels_last) for k, x in made.items()}

    return drawn


def has_torch(name: str) -> bool:
    """Tell whether everything is installed that the model in PyTorch needs."""
    needed = ("torch",) + (("transformers",) if name == "mae" else ())
    return all(map(importlib.util.find_spec, needed))


def measure(name: str, size: int, seconds: float) -> str:
    """Measure the model; return a line of JSON; raise AssertionError if the two losses differ."""
    config = importlib.import_module(f"configs.cifar10_{name}").get_config()
    masks = {"masking": "random"} if name == "mae" else {}
    model = models.build(**config.model.to_dict() | masks)
    params, batch = jax.jit(model.init)(jax.random.key(0)), autoencoder.make_batch(size)
    ours, theirs = autoencoder.jax_step(model, params, batch), None
    if has_torch(name):
        autoencoder.default_threads()  # before anything sets another
        make_step = partial(torch_step, name, model, params, batch)
        step, draw = make_step(channels_last=False), jax.jit(model.draw)
        for number in range(3):
            draws = draw(batch, jax.random.fold_in(jax.random.key(0), number))
            loss = step({k: np.array(x) for k, x in draws.items()})
            # Codes that are equally near are chosen by rounding, hence not 1e-4.
            np.testing.assert_allclose(float(ours()), float(loss), rtol=1e-3)
        theirs = autoencoder.torch_rounds(make_step, size)
    return autoencoder.compare(name, ours, theirs, size, seconds)


def main(argv: list[str]) -> None:
    """Measure one model after the other."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments {argv[1:]}; options start with --.")
    logging.set_verbosity(logging.WARNING)
    for name in ONLY.value:
        print(measure(name, autoencoder.BATCH_SIZE.value, autoencoder.SECONDS.value), flush=True)


if __name__ == "__main__":
    cli.keep_freed_memory()
    app.run(main)
