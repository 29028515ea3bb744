"""MAGE against one written in torch from its description, with the published names.

`python -m tests.models.test_mage_torch` writes golden/mage.npz anew.
"""

import numpy as np
import pytest
from PIL import Image, ImageFilter

pytestmark = pytest.mark.long
torch = pytest.importorskip("torch")

import jax.numpy as jnp
from torch import nn
from torch.nn import functional as F

from tests.models.test_mage import (
    FAMILY,
    GOLDEN,
    MODEL,
    SMALL,
    TOKENS,
    close,
    draws,
    flat,
    make_batch,
    numbers,
)
from tests.models.test_vqgan import fill, filled
from tests.models.test_vqgan_torch import Tokenizer, load, nchw, nhwc

torch.set_num_threads(1)
CODES, CLASS, MASK = 32, 32 + 76, 32 + 100
GREY = np.array([0.485, 0.456, 0.406], np.float32)


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weight = (q @ k.transpose(-1, -2) * (d // self.heads) ** -0.5).softmax(-1)
        return self.proj((weight @ v).transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-6), Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=1e-6), nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class Mage(nn.Module):
    def __init__(self, dim, depth, heads, decoder_dim, decoder_depth, decoder_heads):
        super().__init__()

        def parameter(*shape):
            return nn.Parameter(torch.zeros(*shape))

        vocabulary, length = MASK + 1, TOKENS + 1
        self.cls_token, self.mask_token = parameter(1, 1, dim), parameter(1, 1, decoder_dim)
        self.pos_embed = parameter(1, length, dim)
        self.decoder_pos_embed = parameter(1, length, decoder_dim)
        self.decoder_pos_embed_learned = parameter(1, length, decoder_dim)
        self.vqgan = Tokenizer(**SMALL["tokenizer"])
        self.token_emb = nn.Module()
        self.token_emb.register_buffer("position_ids", torch.arange(length)[None])
        self.token_emb.word_embeddings = nn.Embedding(vocabulary, dim)
        self.token_emb.position_embeddings = nn.Embedding(length, dim)
        self.token_emb.LayerNorm = nn.LayerNorm(dim, eps=1e-6)
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, dim, 2, 2)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.decoder_embed = nn.Linear(dim, decoder_dim)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_dim, decoder_heads) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_dim, 2 * 2 * 3)
        self.mlm_layer = nn.Module()
        self.mlm_layer.fc, self.mlm_layer.ln = nn.Linear(decoder_dim, dim), nn.LayerNorm(dim)
        self.mlm_layer.bias = parameter(1, 1, vocabulary)

    def encoder(self, ids, dropped, masked, keep=None):
        """Latents of what is not dropped."""
        emb = self.token_emb
        ids = F.pad(torch.where(masked, MASK, ids), (1, 0), value=CLASS)
        x = emb.word_embeddings(ids) + emb.position_embeddings(emb.position_ids)
        x = emb.LayerNorm(x)
        if keep is not None:
            x = torch.where(keep, x / 0.75, 0)
        x = torch.stack([row[~gone] for row, gone in zip(x, F.pad(dropped, (1, 0)), strict=True)])
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def decoder(self, latent, dropped, masked):
        x = self.decoder_embed(latent)
        full = x[:, :1].repeat(1, TOKENS + 1, 1)
        full[F.pad(~dropped, (1, 0), value=True)] = x.flatten(0, 1)
        x = torch.where(F.pad(masked, (1, 0))[..., None], x[:, :1], full)
        x = x + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            x = block(x)
        x = F.gelu(self.mlm_layer.fc(self.decoder_norm(x)))
        words = self.token_emb.word_embeddings.weight.detach()
        return self.mlm_layer.ln(x) @ words.T + self.mlm_layer.bias


def model():
    return load(Mage(**{k: SMALL[k] for k in (
        "dim", "depth", "heads", "decoder_dim", "decoder_depth", "decoder_heads")}))  # fmt: skip


def tokens(mage, image01):
    with torch.no_grad():
        return mage.vqgan.tokens(mage.vqgan.encoder(image01))


def smoothed(logits, labels, masked):
    """The batch's loss as published, and the images'."""
    errors = F.cross_entropy(
        logits[:, 1:, :CODES].transpose(1, 2), labels, label_smoothing=0.1, reduction="none"
    )
    return (errors * masked).sum() / masked.sum(), (errors * masked).sum(1) / masked.sum(1)


def given():
    return {k: torch.tensor(np.asarray(v)) for k, v in draws().items()}


def masks(noise, rate):
    ordered = noise.sort(dim=1).values
    cut = [ordered[:, number - 1 : number] for number in (TOKENS // 2, int(np.ceil(TOKENS * rate)))]
    return noise <= cut[0], noise <= cut[1]


def step(mage, ids, number, sample_noise, noise):
    unknown, nothing = ids == MASK, torch.zeros_like(ids, dtype=torch.bool)
    logits = mage.decoder(mage.encoder(ids, nothing, unknown), nothing, unknown)[:, 1:, :CODES]
    sampled = torch.where(unknown, (logits + sample_noise).argmax(-1), ids)
    p = logits.softmax(-1).gather(2, sampled.clamp(max=CODES - 1)[..., None])[..., 0]
    u = (number + 1) / MODEL.num_iter
    confidence = torch.where(unknown, p, 1e20).log() + 6 * (1 - u) * noise
    again = sampled.clone()
    for row in range(len(ids)):
        length = int(TOKENS * np.cos(np.pi / 2 * u))
        k = max(1, min(int(unknown[row].sum()) - 1, length))
        again[row][confidence[row] <= confidence[row].sort().values[k - 1]] = MASK
    return sampled, again


def hole_tokens(mask):
    """Of a mask [h w] with one rectangle, patches of 2 pixels."""
    box = np.zeros((8, 8), bool)
    spans = []
    for axis in (1, 0):
        on = np.flatnonzero(mask.any(axis))
        spans.append(slice(max(on[0] // 2 - 1, 0), (on[-1] + 1) // 2 + 1))
    box[tuple(spans)] = True
    return box.ravel()


def generate(mage, image, mask, sample_noise, noise):
    """One image [h w 3] in [0, 1], mask [h w], as released: one at a time, steps skipped."""
    filled_image = np.where(mask[..., None] == 1, GREY, image)
    unknown = torch.tensor(hole_tokens(mask))[None]
    ids = torch.where(unknown, MASK, tokens(mage, nchw(filled_image[None])))
    for s in range(MODEL.num_iter):
        if np.cos(np.pi / 2 * (s + 1) / MODEL.num_iter) >= unknown.float().mean():
            continue
        sampled, ids = step(mage, ids, s, sample_noise[s][None], noise[s][None])
    generated = nhwc(mage.vqgan.decode(sampled)[0])[0]
    wide = np.zeros(mask.shape, np.uint8)
    for y, x in np.argwhere(mask):  # 14 pixels at 256 are 1 at 16
        wide[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = 255
    blurred = Image.fromarray(wide).filter(ImageFilter.GaussianBlur(7 / 16))
    weight = np.asarray(blurred, np.float32)[..., None] / 255
    return (weight * generated + (1 - weight) * filled_image).clip(0, 1)


def of_torch():
    """(golden arrays, gradients by name, state dict)."""
    mage, batch, d = model(), make_batch(), given()
    image = (np.asarray(batch["image"]) + 1) / 2
    ids = tokens(mage, nchw(image))
    dropped, masked = masks(d["mask_noise"], 0.7)
    latent = mage.encoder(ids, dropped, masked, d["dropout_keep"])
    logits = mage.decoder(latent, dropped, masked)
    _, noisy = smoothed(logits, d["random_ids"].long(), masked)
    loss, each = smoothed(logits, ids, masked)
    torch.testing.assert_close(loss, each.mean())
    (2 * loss).backward()  # the sum of the images' losses
    grads = {k: p.grad.numpy() for k, p in mage.named_parameters() if p.grad is not None}
    with torch.no_grad():
        unknown = torch.stack([torch.tensor(hole_tokens(np.asarray(m[..., 0])))
                               for m in batch["mask"]])  # fmt: skip
        start = torch.where(unknown, MASK, ids)
        sampled, again = step(mage, start, 1, d["gumbel_sample"][1], d["gumbel"][1])
        whole = [
            generate(mage, image[i], np.asarray(batch["mask"][i, ..., 0]),
                     d["gumbel_sample"][:, i], d["gumbel"][:, i])
            for i in range(2)
        ]  # fmt: skip
    names = sorted(grads)
    return {
        "latent": latent.detach().numpy(),
        "logits": logits.detach().numpy(),
        "loss": each.detach().numpy(),
        "noisy_loss": noisy.detach().numpy(),
        "names": np.array(names),
        "gradient": np.array(
            [np.vdot(grads[k], fill("direction." + k, grads[k].shape)) for k in names], np.float32
        ),
        "ids": start.numpy().astype(np.int32),
        "sampled": sampled.numpy().astype(np.int32),
        "masked_again": again.numpy().astype(np.int32),
        "generated": 2 * np.stack(whole) - 1,
    }, grads, {k: v.numpy() for k, v in mage.state_dict().items()}  # fmt: skip


def test_golden_file_is_what_torch_gives():
    want, _, _ = of_torch()
    with np.load(GOLDEN / "mage.npz") as file:
        assert set(file) == set(want)
        for name in want:
            if want[name].dtype == np.float32:
                close(file[name], want[name], 1e-5)
            else:
                np.testing.assert_array_equal(file[name], want[name])


def test_gradients_of_every_parameter():
    _, grads, state = of_torch()
    params = filled(FAMILY, MODEL, state)
    for path, grad in flat(numbers(params)[0]).items():
        name = FAMILY.torch_name(path)
        if name in grads:
            want = FAMILY.layout(path, grad.ndim).to_leaf(grads[name])
            # A key's bias moves all logits of a softmax alike: there is nothing but rounding.
            close(grad, want) if np.abs(want).max() > 1e-6 else None
        else:
            assert path.split("/")[0] in ("unused", "vqgan") and not np.abs(grad).any()


def test_export_has_the_names_and_the_buffer():
    state = {k: v.numpy() for k, v in model().state_dict().items()}
    params = filled(FAMILY, MODEL, state)
    back = {k: np.asarray(v) for k, v in FAMILY.buffers(MODEL).items()}
    for path, leaf in flat(params).items():
        layout = FAMILY.layout(path, jnp.ndim(leaf))
        back[FAMILY.torch_name(path)] = layout.to_torch(np.asarray(leaf))
    assert set(back) == set(state)
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype
        np.testing.assert_array_equal(back[name], tensor)


def test_the_noise_of_torch_can_be_given():
    """A categorical sample is the argmax of p / E, which is that of logits - log E."""
    logits = torch.randn(256, 50, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    sample = torch.distributions.Categorical(logits=logits).sample()
    torch.manual_seed(0)
    noise = -torch.empty_like(logits).exponential_().log()
    np.testing.assert_array_equal((logits + noise).argmax(-1), sample)


if __name__ == "__main__":
    np.savez_compressed(GOLDEN / "mage.npz", **of_torch()[0])
