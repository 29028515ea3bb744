"""Training speed of the small MAE, MAGE and Palette of configs/, ours against PyTorch.

python -m benchmarks.models [--batch_size=64] [--seconds=20] [--only=mae,mage,palette]

Prints one line of JSON per model. Both sides take the same steps: new random masks or noise, the
training loss, its gradient, Adam; in float32 and from the same parameters. That they do is checked
by three updates with our draws before anything is measured. In PyTorch:
* MAE is transformers' ViTMAE. Ours masks at random here, as it does.
* MAGE is made of the parts in tests/models/test_mage_torch.py, and tokenizes without gradients.
  Like ours, it computes the logits of the codes only.
* Palette is the U-Net of tests/models/test_unet_torch.py.
The settings and rounds are those of benchmarks/autoencoder.py; without the packages that its tests
need (torch, pytest, and transformers for MAE), a model's PyTorch figures are null.
"""

import importlib.util
import re
from collections.abc import Mapping
from functools import partial
from unittest import mock

import jax
import numpy as np
from absl import app, flags, logging

from benchmarks import autoencoder
from unlearn_jax import cli, convert, models

_NAMES = ("mae", "mage", "palette")
_ONLY = flags.DEFINE_list("only", list(_NAMES), "Models to measure.")
flags.register_validator(_ONLY, lambda names: set(names) <= set(_NAMES), f"must be of {_NAMES}")
flags.set_default(autoencoder.BATCH_SIZE, 64)


def mae(model: models.MAE, state: Mapping):
    """(network, loss(image, mask, draws)), from the tensors of the exported checkpoint."""
    import torch
    import transformers

    from tests.models.test_mae_torch import published

    config = transformers.ViTMAEConfig(
        image_size=model.image_size, patch_size=model.patch, mask_ratio=model.mask_ratio,
        hidden_size=model.dim, num_hidden_layers=model.depth, num_attention_heads=model.heads,
        intermediate_size=4 * model.dim, decoder_intermediate_size=4 * model.decoder_dim,
        decoder_hidden_size=model.decoder_dim, decoder_num_hidden_layers=model.decoder_depth,
        decoder_num_attention_heads=model.decoder_heads, layer_norm_eps=1e-6,
    )  # fmt: skip
    net = transformers.ViTMAEForPreTraining(config)
    for name, value in net.state_dict().items():
        (target,) = published({name: value.cpu()})
        part = re.search(r"([qkv])_proj", name)
        value.copy_(state[target].chunk(3)["qkv".index(part[1])] if part else state[target])
    mean, std = (torch.tensor(x)[:, None, None] for x in (model.mean, model.std))

    def loss(image, _, draws):
        return net(((image + 1) / 2 - mean) / std, noise=draws["mask_noise"]).loss

    return net, loss


def mage(model: models.MAGE, state: Mapping):
    """`mae`, for MAGE."""
    import torch
    from torch.nn import functional as F

    from tests.models import test_mage_torch as reference

    vqgan, n = model.vqgan, model.vqgan.num_tokens
    fields = ("ch", "ch_mult", "z_dim", "codebook", "groups", "res_blocks")
    small = {"tokenizer": {name: getattr(vqgan, name) for name in fields}}
    with mock.patch.multiple(reference, SMALL=small, TOKENS=n, MASK=model.mask_id):
        fields = ("dim", "depth", "heads", "decoder_dim", "decoder_depth", "decoder_heads")
        net = reference.Mage(**{name: getattr(model, name) for name in fields})
    del net.patch_embed, net.decoder_pred  # never used
    net.load_state_dict({name: state[name] for name in net.state_dict()})
    net.vqgan.requires_grad_(False)

    def loss(image, _, draws):
        with torch.no_grad():
            z = net.vqgan.encoder((image + 1) / 2).permute(0, 2, 3, 1).flatten(0, 2)
            words = net.vqgan.quantize.embedding.weight
            ids = ((words**2).sum(1) - 2 * z @ words.T).argmin(1).reshape(len(image), n)
        rank = draws["mask_noise"].argsort(1).argsort(1)
        dropped = rank < (n + 1) // 2
        masked = dropped | (rank < torch.ceil(n * draws["mask_rate"]))
        there = F.pad(~dropped, (1, 0), value=True)
        emb = net.token_emb
        x = F.pad(torch.where(masked, model.mask_id, ids), (1, 0), value=model.class_id)
        x = emb.LayerNorm(emb.word_embeddings(x) + emb.position_embeddings.weight)
        x = x[there].reshape(len(x), -1, model.dim)
        for block in net.blocks:
            x = block(x)
        x = net.decoder_embed(net.norm(x))
        full = x[:, :1].repeat(1, n + 1, 1)
        full[there] = x.flatten(0, 1)
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

    return net, loss


def palette(model: models.Palette, state: Mapping):
    """`mae`, for Palette."""
    import torch
    from torch.nn import functional as F

    from tests.models.test_unet_torch import UNet

    net = UNet(model.inner, model.mults, model.res_blocks, model.head_channels, model.groups)
    net.load_state_dict({name: state[f"denoise_fn.{name}"] for name in net.state_dict()})
    gammas = state["gammas"]

    def loss(image, mask, draws):
        noise, t = draws["noise"], draws["timestep"].long()
        gamma = torch.lerp(gammas[t - 1], gammas[t], draws["gamma_uniform"])
        g, visible = gamma[:, None, None, None], image * (1 - mask)
        y = g.sqrt() * image + (1 - g).sqrt() * noise
        x = torch.cat([visible + mask * draws["hole_noise"], visible + mask * y], 1)
        return F.mse_loss(mask * net(x, gamma)[1], mask * noise)

    return net, loss


def torch_step(name: str, model: models.Model, params: dict, batch: Mapping, channels_last: bool):
    """`autoencoder.jax_step` in PyTorch; the random numbers of a step can be given as arrays."""
    import torch

    layout = torch.channels_last if channels_last else torch.contiguous_format
    state = convert.to_torch(convert.find(name), model, params)
    make = {"mae": mae, "mage": mage, "palette": palette}[name]
    net, loss = make(model, {k: torch.tensor(v) for k, v in state})
    net.to(memory_format=layout)
    optimizer = torch.optim.Adam(net.parameters(), autoencoder.LEARNING_RATE, fused=True)
    shapes = {k: v.shape for k, v in jax.eval_shape(model.draw, batch, jax.random.key(0)).items()}
    draw = {  # all others are uniform
        "timestep": lambda shape: torch.randint(1, model.timesteps, shape),
        "mask_rate": lambda _: torch.nn.init.trunc_normal_(torch.empty(()), 0.55, 0.25, 0.5, 1),
        "noise": torch.randn,
        "hole_noise": torch.randn,
    }

    def nchw(x):
        return x.permute(0, 3, 1, 2).contiguous(memory_format=layout) if x.ndim == 4 else x

    image, mask = (nchw(torch.tensor(batch[k])) for k in ("image", "mask"))

    def step(given=None):
        given = given or {k: draw.get(k, torch.rand)(shape) for k, shape in shapes.items()}
        optimizer.zero_grad(set_to_none=True)
        value = loss(image, mask, {k: nchw(torch.as_tensor(x)) for k, x in given.items()})
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def measure(name: str, size: int, seconds: float) -> str:
    """The model's line of JSON; an AssertionError if the losses of the two sides differ."""
    config = importlib.import_module(f"configs.cifar10_{name}").get_config()
    masks = {"masking": "random"} if name == "mae" else {}
    model = models.build(**config.model.to_dict() | masks)
    params, batch = jax.jit(model.init)(jax.random.key(0)), autoencoder.make_batch(size)
    ours, theirs = autoencoder.jax_step(model, params, batch), None
    needed = ("torch", "pytest") + (("transformers",) if name == "mae" else ())
    if all(map(importlib.util.find_spec, needed)):
        autoencoder.default_threads()  # remembered before modules of the tests set 1
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
    """Measures one model after the other."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments {argv[1:]}; options start with --.")
    logging.set_verbosity(logging.WARNING)
    for name in _ONLY.value:
        print(measure(name, autoencoder.BATCH_SIZE.value, autoencoder.SECONDS.value), flush=True)


if __name__ == "__main__":
    cli.keep_freed_memory()
    app.run(main)
