"""The VQ-GAN in PyTorch, written from its description, with the published names."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def conv(i, o, size, bias=False):
    return nn.Conv2d(i, o, size, padding=size // 2, bias=bias)


def widths(i, o, res_blocks):
    return [(i, o), *[(o, o)] * (res_blocks - 1)]


class Res(nn.Module):
    def __init__(self, i, o, groups):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, i, eps=1e-6), conv(i, o, 3)
        self.norm2, self.conv2 = nn.GroupNorm(groups, o, eps=1e-6), conv(o, o, 3)
        self.nin_shortcut = None if i == o else conv(o, o, 1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return x + h if self.nin_shortcut is None else h + self.nin_shortcut(h)


class Half(nn.Module):
    """Encoder or decoder."""

    def __init__(self, groups, first, last, middle, into, out):
        super().__init__()
        self.conv_in, self.conv_out = first, last
        levels = []
        for level in into:
            holder = nn.Module()
            holder.block = nn.ModuleList(Res(i, o, groups) for i, o in level)
            levels.append(holder)
        self.levels = levels
        self.mid = nn.Module()
        self.mid.block_1, self.mid.block_2 = (Res(middle, middle, groups) for _ in range(2))
        self.norm_out = nn.GroupNorm(groups, out, eps=1e-6)

    def run(self, level, x):
        for block in level.block:
            x = block(x)
        return x

    def middle(self, x):
        return self.mid.block_2(self.mid.block_1(x))

    def end(self, x):
        return self.conv_out(F.silu(self.norm_out(x)))


class Encoder(Half):
    def __init__(self, ch, ch_mult, z_dim, groups, res_blocks):
        c = [ch * m for m in ch_mult]
        into = [widths(i, o, res_blocks) for i, o in zip([ch, *c], c, strict=False)]
        last = conv(c[-1], z_dim, 1, bias=True)
        super().__init__(groups, conv(3, ch, 3), last, c[-1], into, c[-1])
        self.down = nn.ModuleList(self.levels)

    def forward(self, x):
        x = self.conv_in(x)
        for number, level in enumerate(self.down):
            x = self.run(level, F.avg_pool2d(x, 2) if number else x)
        return self.end(self.middle(x))


class Decoder(Half):
    def __init__(self, ch, ch_mult, z_dim, groups, res_blocks):
        c = [ch * m for m in ch_mult]
        into = [widths(i, o, res_blocks) for i, o in zip([*c[1:], c[-1]], c, strict=True)]
        last = conv(c[0], 3, 3, bias=True)
        super().__init__(groups, conv(z_dim, c[-1], 3, bias=True), last, c[-1], into, c[0])
        self.up = nn.ModuleList(self.levels)
        for number, level in enumerate(self.up):
            if number:
                level.upsample = nn.Module()
                level.upsample.conv = conv(c[number], c[number], 3, bias=True)

    def forward(self, x):
        x = self.middle(self.conv_in(x))
        for number in reversed(range(len(self.up))):
            x = self.run(self.up[number], x)
            if number:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
                x = self.up[number].upsample.conv(x)
        return self.end(x)


class Tokenizer(nn.Module):
    def __init__(self, ch, ch_mult, z_dim, codebook, groups, res_blocks=2, image_size=None):
        super().__init__()
        self.encoder = Encoder(ch, ch_mult, z_dim, groups, res_blocks)
        self.decoder = Decoder(ch, ch_mult, z_dim, groups, res_blocks)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(codebook, z_dim)

    def tokens(self, z):
        distance = torch.cdist(z.permute(0, 2, 3, 1).flatten(0, 2), self.quantize.embedding.weight)
        nearest = distance.sort(dim=1).values
        assert (nearest[:, 1] - nearest[:, 0]).min() > 1e-4  # no ids that rounding decides
        return distance.argmin(1).reshape(len(z), -1)

    def decode(self, ids):
        side = round(ids.shape[1] ** 0.5)
        code = self.quantize.embedding(ids).reshape(len(ids), side, side, -1).permute(0, 3, 1, 2)
        return self.decoder(code), code


def nchw(x):
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def nhwc(x):
    return x.detach().permute(0, 2, 3, 1).numpy()
