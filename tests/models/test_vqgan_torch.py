"""The VQ-GAN against one written in torch from its description, with the published names.

`python -m tests.models.test_vqgan_torch` writes golden/vqgan.npz anew.
"""

import numpy as np
import pytest

pytestmark = pytest.mark.long
torch = pytest.importorskip("torch")

import jax.numpy as jnp
from torch import nn
from torch.nn import functional as F

from tests.models.test_vqgan import (
    FAMILY,
    GOLDEN,
    MODEL,
    SMALL,
    close,
    fill,
    filled,
    flat,
    images,
    numbers,
    published,
)

torch.set_num_threads(1)


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


def load(module):
    """Fill a module; buffers stay."""
    names = dict(module.named_parameters())
    state = module.state_dict()
    state |= {k: torch.tensor(fill(k, v.shape)) for k, v in state.items() if k in names}
    module.load_state_dict(state, strict=True)
    return module


def of_torch():
    """(golden arrays, gradients by name, state dict)."""
    module = load(Tokenizer(**SMALL))
    image = nchw(images())
    z = module.encoder((image + 1) / 2)
    ids = module.tokens(z)
    decoded, code = module.decode(ids)
    output = 2 * module.decoder(z + (code - z).detach()) - 1
    errors = [F.mse_loss(a, b, reduction="none").mean((1, 2, 3)) for a, b in (
        (output, image), (code, z.detach()), (code.detach(), z))]  # fmt: skip
    loss = errors[0] + errors[1] + 0.25 * errors[2]
    loss.sum().backward()
    grads = {name: p.grad.numpy() for name, p in module.named_parameters()}
    return {
        "latent": nhwc(z),
        "tokens": ids.numpy().astype(np.int32),
        "decoded": nhwc(decoded),
        "loss": loss.detach().numpy(),
        "names": np.array(sorted(grads)),
        "gradient": np.array(
            [np.vdot(grads[k], fill("direction." + k, grads[k].shape)) for k in sorted(grads)],
            np.float32,
        ),
    }, grads, {k: v.numpy() for k, v in module.state_dict().items()}  # fmt: skip


def test_golden_file_is_what_torch_gives():
    want, _, _ = of_torch()
    with np.load(GOLDEN / "vqgan.npz") as file:
        assert set(file) == set(want)
        for name in want:
            if want[name].dtype == np.float32:
                close(file[name], want[name], 1e-5)
            else:
                np.testing.assert_array_equal(file[name], want[name])


def test_gradients_of_every_parameter():
    _, grads, state = of_torch()
    shapes = published(SMALL["ch"], SMALL["ch_mult"], SMALL["z_dim"], SMALL["codebook"])
    assert {k: v.shape for k, v in state.items()} == shapes
    params = filled(FAMILY, MODEL, state)
    for path, grad in flat(numbers(params)[0]).items():
        want = FAMILY.layout(path, grad.ndim).to_leaf(grads[FAMILY.torch_name(path)])
        assert np.abs(want).max() > 1e-6
        close(grad, want)


def test_bare_values_go_there_and_back():
    state = {k: v.numpy() for k, v in load(Tokenizer(**SMALL)).state_dict().items()}
    params = filled(FAMILY, MODEL, state)
    for path, leaf in flat(params).items():
        back = FAMILY.layout(path, jnp.ndim(leaf)).to_torch(np.asarray(leaf))
        np.testing.assert_array_equal(back, state[FAMILY.torch_name(path)])


if __name__ == "__main__":
    np.savez_compressed(GOLDEN / "vqgan.npz", **of_torch()[0])
