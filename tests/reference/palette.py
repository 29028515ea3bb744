"""The U-Net of Palette in PyTorch, written from its description, with the published names."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Res(nn.Module):
    def __init__(self, i, o, emb, groups, resample=None):
        super().__init__()
        self.resample = resample or (lambda x: x)
        norm = nn.GroupNorm(groups, i)
        self.in_layers = nn.Sequential(norm, nn.SiLU(), nn.Conv2d(i, o, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * o))
        last = nn.Conv2d(o, o, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(groups, o), nn.SiLU(), nn.Dropout(0.0), last)
        self.skip_connection = nn.Conv2d(i, o, 1) if i != o else nn.Identity()

    def forward(self, x, emb):
        h = self.in_layers[2](self.resample(self.in_layers[1](self.in_layers[0](x))))
        scale, shift = self.emb_layers(emb)[..., None, None].chunk(2, dim=1)
        h = self.out_layers[0](h) * (1 + scale) + shift
        return self.skip_connection(self.resample(x)) + self.out_layers[1:](h)


class Attention(nn.Module):
    def __init__(self, channels, head_channels, groups):
        super().__init__()
        self.heads = channels // head_channels
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        flat = x.reshape(b, c, h * w)
        out = []
        for head in self.qkv(self.norm(flat)).chunk(self.heads, dim=1):  # q, k, v of one head
            q, k, v = head.chunk(3, dim=1)
            scale = q.shape[1] ** -0.25
            weight = torch.softmax((q * scale).transpose(1, 2) @ (k * scale), dim=-1)
            out.append(v @ weight.transpose(1, 2))
        return (flat + self.proj_out(torch.cat(out, dim=1))).reshape(b, c, h, w)


class UNet(nn.Module):
    def __init__(self, inner, mults, res_blocks, head_channels, groups, attn_res=()):
        super().__init__()
        self.inner, emb = inner, 4 * inner
        self.cond_embed = nn.Sequential(nn.Linear(inner, emb), nn.SiLU(), nn.Linear(emb, emb))

        def res(i, o, resample=None):
            return Res(i, o, emb, groups, resample)

        def attended(level):
            width = inner * mults[level]
            return [Attention(width, head_channels, groups)] * (2**level in attn_res)

        widths = [inner * mults[0]]
        blocks = [nn.ModuleList([nn.Conv2d(6, widths[0], 3, padding=1)])]
        for level, mult in enumerate(mults):
            for _ in range(res_blocks):
                blocks.append(nn.ModuleList([res(widths[-1], inner * mult), *attended(level)]))
                widths.append(inner * mult)
            if level + 1 < len(mults):
                half = lambda x: F.avg_pool2d(x, 2)  # noqa: E731
                blocks.append(nn.ModuleList([res(widths[-1], widths[-1], half)]))
                widths.append(widths[-1])
        self.input_blocks = nn.ModuleList(blocks)
        c = widths[-1]
        self.middle_block = nn.ModuleList(
            [res(c, c), Attention(c, head_channels, groups), res(c, c)]
        )
        blocks = []
        for level, mult in list(enumerate(mults))[::-1]:
            for i in range(res_blocks + 1):
                layers = [res(c + widths.pop(), inner * mult), *attended(level)]
                c = inner * mult
                if level and i == res_blocks:
                    double = lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest")  # noqa: E731
                    layers.append(res(c, c, double))
                blocks.append(nn.ModuleList(layers))
        self.output_blocks = nn.ModuleList(blocks)
        self.out = nn.Sequential(nn.GroupNorm(groups, c), nn.SiLU(), nn.Conv2d(c, 3, 3, padding=1))

    def embed(self, gamma):
        half = self.inner // 2
        steps = torch.arange(half, device=gamma.device) / half
        angles = gamma[:, None] * torch.exp(-math.log(10000) * steps)[None]
        return self.cond_embed(torch.cat([angles.cos(), angles.sin()], dim=-1))

    def encode(self, x, gamma):
        emb, maps = self.embed(gamma), []
        for block in self.input_blocks:
            x = block[0](x, emb) if maps else block[0](x)
            for attention in block[1:]:
                x = attention(x)
            maps.append(x)
        x = self.middle_block[0](x, emb)
        x = self.middle_block[2](self.middle_block[1](x), emb)
        return [*maps, x], emb

    def forward(self, x, gamma):
        every, emb = self.encode(x, gamma)
        *maps, x = every
        for block in self.output_blocks:
            x = torch.cat([x, maps.pop()], dim=1)
            for layer in block:
                x = layer(x) if isinstance(layer, Attention) else layer(x, emb)
        return every, self.out(x)


def buffers(timesteps, start, end):
    """The six of the release, by the textbook, in float64."""
    beta = torch.linspace(start, end, timesteps, dtype=torch.float64)
    gamma = torch.cumprod(1 - beta, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), gamma[:-1]])
    variance = beta * (1 - before) / (1 - gamma)
    made = {
        "gammas": gamma,
        "sqrt_recip_gammas": gamma**-0.5,
        "sqrt_recipm1_gammas": (1 / gamma - 1).sqrt(),
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": beta * before.sqrt() / (1 - gamma),
        "posterior_mean_coef2": (1 - before) * (1 - beta).sqrt() / (1 - gamma),
    }
    return {name: array.float() for name, array in made.items()}


def sample(net, table, condition, image, mask, noises):
    """Yield the image after every step, from the last timestep to the first.

    table: `buffers`; images are [b c h w]; noises: of the steps, [timesteps b c h w].
    """
    y = condition
    for step in range(len(noises)):
        t = len(noises) - 1 - step
        seen_noise = net(torch.cat([condition, y], 1), table["gammas"][t].expand(len(y)))[1]
        clean = table["sqrt_recip_gammas"][t] * y - table["sqrt_recipm1_gammas"][t] * seen_noise
        clean = clean.clamp(-1, 1)
        mean = table["posterior_mean_coef1"][t] * clean + table["posterior_mean_coef2"][t] * y
        std = (0.5 * table["posterior_log_variance_clipped"][t]).exp() * (t > 0)
        y = (mean + std * noises[step]) * mask + image * (1 - mask)
        yield y
