"""Palette against torch: a network with the published names, and diffusers for what it computes.

`python -m tests.models.test_unet_torch` writes tests/golden/palette.npz anew.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.long
torch = pytest.importorskip("torch")
from tests.models.test_unet import (
    GOLDEN,
    SMALL,
    close,
    fill,
    made_inputs,
    made_weights,
    published_names,
    torch_shapes,
)
from tests.reference.palette import UNet, buffers, sample
from unlearn_jax import convert
from unlearn_jax.convert.reading import Tensors
from unlearn_jax.models import diffusion, unet
from unlearn_jax.models.palette import Palette

torch.set_num_threads(1)


def small_unet():
    net = UNet(*(SMALL[k] for k in ("inner", "mults", "res_blocks", "head_channels", "groups")))
    shapes = {f"denoise_fn.{k}": tuple(v.shape) for k, v in net.state_dict().items()}
    made = {k.removeprefix("denoise_fn."): torch.tensor(v) for k, v in made_weights(shapes).items()}
    net.load_state_dict(made)
    return net


def golden():
    """Everything that the model computes, by torch: {name: array}, images as [b h w c]."""
    net, (batch, draws) = small_unet(), made_inputs()
    table = buffers(SMALL["timesteps"], SMALL["beta_start"], SMALL["beta_end"])

    def torched(x):
        x = torch.tensor(np.array(x))
        return x.movedim(-1, -3) if x.ndim > 3 else x

    def back(x):
        return x.detach().movedim(-3, -1).numpy()

    image, mask = torched(batch["image"]), torched(batch["mask"])
    draws = {name: torched(x) for name, x in draws.items()}
    noise, t = draws["noise"], draws["timestep"].long()
    first, second = table["gammas"][t - 1], table["gammas"][t]
    gamma = (second - first) * draws["gamma_uniform"] + first
    g = gamma[:, None, None, None]
    condition = image * (1 - mask) + mask * draws["hole_noise"]
    y = g.sqrt() * image + (1 - g).sqrt() * noise
    seen = y * mask + image * (1 - mask)
    maps, predicted = net(torch.cat([condition, seen], 1), gamma)
    loss = ((mask * noise - mask * predicted) ** 2).flatten(1).mean(1)
    loss.sum().backward()
    out = {f"map{i}": back(x) for i, x in enumerate(maps)}
    for name, p in net.named_parameters():
        full = f"denoise_fn.{name}"
        probe = made_weights({full: tuple(p.shape)})[full]
        shadow = (p.grad.numpy().astype(np.float64) * probe).sum()
        out[f"gradient.{full}"] = np.array([p.grad.norm().item(), shadow])
    with torch.no_grad():
        pure = noise * mask + image * (1 - mask)
        noise_maps, noisy = net(torch.cat([condition, pure], 1), gamma)
        pulls = [((a - b) ** 2).flatten(1).mean(1) for a, b in zip(maps, noise_maps, strict=True)]
        estimate = (y - (1 - g).sqrt() * predicted) / g.sqrt()
        noises = draws["step_noise"][: SMALL["timesteps"]]
        first, *_, last = sample(net, table, condition, image, mask, noises)
    return out | {
        "noise": back(predicted),
        "loss": loss.detach().numpy(),
        "noisy_loss": ((mask * noise - mask * noisy) ** 2).flatten(1).mean(1).numpy(),
        "pull": sum(pulls).detach().numpy(),
        "estimate": back(estimate * mask + image * (1 - mask)),
        "first_step": back(first),
        "generated": back(last),
    }


def test_golden_file_is_what_torch_gives():
    made, stored = golden(), np.load(GOLDEN)
    assert set(made) == set(stored.files) and GOLDEN.stat().st_size < 150_000
    for name, array in made.items():
        close(stored[name], array, 1e-5)


def test_names_are_those_of_the_torch_network():
    with torch.device("meta"):
        net = UNet(64, (1, 2, 4, 8), 2, 32, 32)
    table = buffers(2000, 1e-6, 0.01)
    state = {f"denoise_fn.{k}": tuple(v.shape) for k, v in net.state_dict().items()}
    assert state | {k: tuple(v.shape) for k, v in table.items()} == published_names()
    found = diffusion.linear_schedule(2000, 1e-6, 0.01)
    for name, array in table.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-9, err_msg=name)


def test_attention_and_blocks_at_published_widths():
    # Two resolutions of four, three groups of channels each, at 32 channels a head.
    fields = {"image_size": 8, "mults": (1, 3), "res_blocks": 2, "timesteps": 2}
    model = Palette(**fields)
    state = made_weights(torch_shapes(model))
    net = UNet(64, (1, 3), 2, 32, 32)
    net.load_state_dict(
        {k.removeprefix("denoise_fn."): torch.tensor(v) for k, v in state.items() if "." in k}
    )
    params = fill(model, state)
    (batch, draws), gamma = made_inputs(), np.array([1.0, 0.001], np.float32)
    draws = {
        "hole_noise": draws["hole_noise"],
        "noise": draws["noise"],
        "gamma": jnp.asarray(gamma),
    }
    predicted = jax.jit(model.predict)(params, batch, jax.random.key(0), draws=draws)
    g, mask = gamma[:, None, None, None], np.asarray(batch["mask"])
    y = np.sqrt(g) * batch["image"] + np.sqrt(1 - g) * draws["noise"]
    x = np.concatenate(
        [z * mask + batch["image"] * (1 - mask) for z in (draws["hole_noise"], y)], -1
    )
    with torch.no_grad():
        want = net(torch.tensor(x).movedim(-1, 1), torch.tensor(gamma))[1]
    close(predicted, want.movedim(1, -1).numpy())


def test_torch_network_is_that_of_diffusers():
    """The network above was written from a table: a third party's must agree that it is right."""
    diffusers = pytest.importorskip("diffusers")
    net = small_unet()
    other = diffusers.UNet2DModel(
        in_channels=6,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "DownBlock2D"),
        up_block_types=("ResnetUpsampleBlock2D", "UpBlock2D"),
        downsample_type="resnet",
        attention_head_dim=16,
        norm_num_groups=8,
        attn_norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
    )
    blocks = {
        "input_blocks.1.0": "down_blocks.0.resnets.0",
        "input_blocks.2.0": "down_blocks.0.downsamplers.0",
        "input_blocks.3.0": "down_blocks.1.resnets.0",
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.2": "mid_block.resnets.1",
        "output_blocks.0.0": "up_blocks.0.resnets.0",
        "output_blocks.1.0": "up_blocks.0.resnets.1",
        "output_blocks.1.1": "up_blocks.0.upsamplers.0",
        "output_blocks.2.0": "up_blocks.1.resnets.0",
        "output_blocks.3.0": "up_blocks.1.resnets.1",
        "input_blocks.0.0": "conv_in",
        "middle_block.1.norm": "mid_block.attentions.0.group_norm",
        "middle_block.1.proj_out": "mid_block.attentions.0.to_out.0",
        "cond_embed.0": "time_embedding.linear_1",
        "cond_embed.2": "time_embedding.linear_2",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    layers = {
        "in_layers.0": "norm1",
        "in_layers.2": "conv1",
        "emb_layers.1": "time_emb_proj",
        "out_layers.0": "norm2",
        "out_layers.3": "conv2",
        "skip_connection": "conv_shortcut",
    }
    state = {}
    for name, tensor in net.state_dict().items():
        name, _, leaf = name.rpartition(".")
        block = next((b for b in blocks if name == b or name.startswith(f"{b}.")), None)
        if name == "middle_block.1.qkv":
            q, k, v = tensor.reshape(4, 3, 16, *tensor.shape[1:]).unbind(1)
            for letter, part in (("q", q), ("k", k), ("v", v)):
                part = part.reshape(64, *tensor.shape[1:]).squeeze(-1)
                state[f"mid_block.attentions.0.to_{letter}.{leaf}"] = part
            continue
        layer = layers.get(name.removeprefix(f"{block}."))
        tensor = tensor.squeeze(-1) if tensor.ndim == 3 else tensor
        state[".".join(filter(None, (blocks[block], layer, leaf)))] = tensor
    other.load_state_dict(state)
    x, gamma = torch.randn(2, 6, 8, 8), torch.tensor([0.9, 0.2])
    with torch.no_grad():
        close(net(x, gamma)[1].numpy(), other(x, gamma).sample.numpy())


@pytest.mark.parametrize("name", ["ddpm", "ddpm_strided", "ddim"])
def test_steps_are_those_of_diffusers(name, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    timesteps, steps = 40, 40 if name == "ddpm" else 10
    beta = np.linspace(1e-4, 0.3, timesteps)
    options = {
        "trained_betas": beta,
        "num_train_timesteps": timesteps,
        "clip_sample": True,
        "timestep_spacing": "trailing",
    }
    if name == "ddim":
        other = diffusers.DDIMScheduler(**options, set_alpha_to_one=True)
        more = {"eta": 0.0, "use_clipped_model_output": True}
    else:
        other = diffusers.DDPMScheduler(**options, variance_type="fixed_small_log")
        more = {}
    other.set_timesteps(steps)
    schedule = diffusion.linear_schedule(timesteps, 1e-4, 0.3)
    plan = diffusion.sampling_plan(schedule, name, steps % timesteps)
    assert diffusion.sampling_timesteps(timesteps, steps).tolist() == other.timesteps.tolist()
    random = np.random.RandomState(1)
    noises = random.standard_normal((steps, 1, 4, 4, 3)).astype(np.float32)
    module = diffusers.schedulers.scheduling_ddpm
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: torch.tensor(noise))
    for step, t in enumerate(other.timesteps):
        # At most steps some pixels of the estimate are clipped and some are not.
        y, predicted = 0.7 * random.standard_normal((2, 1, 4, 4, 3)).astype(np.float32)
        noise = noises[step]
        want = other.step(torch.tensor(predicted), int(t), torch.tensor(y), **more).prev_sample
        found = diffusion.sampling_step(plan, step, *map(jnp.asarray, (y, predicted, noise)))
        close(found, want, 1e-4)


@pytest.mark.parametrize("attn_res", [(2,), (1, 4), (16,)])
def test_attention_at_chosen_rates_of_downsampling(attn_res):
    """A file with attention there is told by its names; both halves compute what torch does."""
    torch.manual_seed(0)
    net = UNet(8, (1, 2, 2), 2, 8, 4, attn_res)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    state = {f"denoise_fn.{k}": v.numpy() for k, v in net.state_dict().items()}
    state |= {k: v.float().numpy() for k, v in buffers(4, 0.1, 0.5).items()}
    shapes = {k: v.shape for k, v in state.items()}
    source = Tensors(shapes, dict.fromkeys(state, "float32"), state.__getitem__)
    family = convert.find("palette")
    fields = {"image_size": (8, 12), "groups": 4, "head_channels": 8, "dropout": 0.2}
    model = family.model(shapes, fields)
    assert model.attn_res == tuple(rate for rate in attn_res if rate < 16)
    params = convert.to_params(family, model, source)
    back = dict(convert.to_torch(family, model, params))
    assert back.keys() == state.keys()
    assert all((back[name] == state[name]).all() for name in state)
    rng = np.random.default_rng(0)
    x, gamma = rng.normal(size=(2, 6, 8, 12)).astype("f4"), np.array([0.3, 0.9], "f4")
    with torch.no_grad():
        maps, predicted = net(torch.tensor(x), torch.tensor(gamma))

    @jax.jit
    def compute(params, seen, gamma):
        embedding = model._embed(params, gamma)
        ours = unet.Encoder(model._shape).apply({"params": params["encoder"]}, seen, embedding)
        made = unet.Decoder(model._shape).apply({"params": params["decoder"]}, ours, embedding)
        return *ours, made

    ours = compute(params, jnp.asarray(x.transpose(0, 2, 3, 1)), jnp.asarray(gamma))
    for a, b in zip(ours, (*maps, predicted), strict=True):
        theirs = b.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(a, theirs, atol=2e-5 * np.abs(theirs).max())


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **golden())
