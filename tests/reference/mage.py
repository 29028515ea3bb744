"""MAGE in PyTorch, written from its description, with the published names."""

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import nn
from torch.nn import functional as F

from tests.reference.vqgan import Tokenizer, nchw, nhwc

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
    """`tokens`: how many an image has; `class_id` and `mask_id`: words, the last is `mask_id`."""

    def __init__(self, tokenizer, tokens, class_id, mask_id,
                 dim, depth, heads, decoder_dim, decoder_depth, decoder_heads):  # fmt: skip
        super().__init__()
        self.tokens, self.class_id, self.mask_id = tokens, class_id, mask_id
        self.codes = tokenizer["codebook"]

        def parameter(*shape):
            return nn.Parameter(torch.zeros(*shape))

        vocabulary, length = mask_id + 1, tokens + 1
        self.cls_token, self.mask_token = parameter(1, 1, dim), parameter(1, 1, decoder_dim)
        self.pos_embed = parameter(1, length, dim)
        self.decoder_pos_embed = parameter(1, length, decoder_dim)
        self.decoder_pos_embed_learned = parameter(1, length, decoder_dim)
        self.vqgan = Tokenizer(**tokenizer)
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
        ids = F.pad(torch.where(masked, self.mask_id, ids), (1, 0), value=self.class_id)
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
        full = x[:, :1].repeat(1, self.tokens + 1, 1)
        full[F.pad(~dropped, (1, 0), value=True)] = x.flatten(0, 1)
        x = torch.where(F.pad(masked, (1, 0))[..., None], x[:, :1], full)
        x = x + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            x = block(x)
        x = F.gelu(self.mlm_layer.fc(self.decoder_norm(x)))
        words = self.token_emb.word_embeddings.weight.detach()
        return self.mlm_layer.ln(x) @ words.T + self.mlm_layer.bias


def tokens(mage, image01):
    with torch.no_grad():
        return mage.vqgan.tokens(mage.vqgan.encoder(image01))


def smoothed(mage, logits, labels, masked):
    """The batch's loss as published, and the images'."""
    errors = F.cross_entropy(
        logits[:, 1:, : mage.codes].transpose(1, 2), labels, label_smoothing=0.1, reduction="none"
    )
    return (errors * masked).sum() / masked.sum(), (errors * masked).sum(1) / masked.sum(1)


def masks(noise, rate):
    """(dropped, masked) of noise [b tokens]: half of the tokens, and a share of them."""
    ordered = noise.sort(dim=1).values
    n = noise.shape[1]
    cut = [ordered[:, number - 1 : number] for number in (n // 2, int(np.ceil(n * rate)))]
    return noise <= cut[0], noise <= cut[1]


def step(mage, ids, number, of, sample_noise, noise):
    """One step, the `number`-th `of` so many: (tokens, tokens of which some are masked again)."""
    unknown, nothing = ids == mage.mask_id, torch.zeros_like(ids, dtype=torch.bool)
    logits = mage.decoder(mage.encoder(ids, nothing, unknown), nothing, unknown)
    logits = logits[:, 1:, : mage.codes]
    sampled = torch.where(unknown, (logits + sample_noise).argmax(-1), ids)
    p = logits.softmax(-1).gather(2, sampled.clamp(max=mage.codes - 1)[..., None])[..., 0]
    u = (number + 1) / of
    confidence = torch.where(unknown, p, 1e20).log() + 6 * (1 - u) * noise
    again = sampled.clone()
    for row in range(len(ids)):
        length = int(mage.tokens * np.cos(np.pi / 2 * u))
        k = max(1, min(int(unknown[row].sum()) - 1, length))
        again[row][confidence[row] <= confidence[row].sort().values[k - 1]] = mage.mask_id
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
    ids = torch.where(unknown, mage.mask_id, tokens(mage, nchw(filled_image[None])))
    steps = len(noise)
    for s in range(steps):
        if np.cos(np.pi / 2 * (s + 1) / steps) >= unknown.float().mean():
            continue
        sampled, ids = step(mage, ids, s, steps, sample_noise[s][None], noise[s][None])
    generated = nhwc(mage.vqgan.decode(sampled)[0])[0]
    wide = np.zeros(mask.shape, np.uint8)
    for y, x in np.argwhere(mask):  # 14 pixels at 256 are 1 at 16
        wide[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = 255
    blurred = Image.fromarray(wide).filter(ImageFilter.GaussianBlur(7 / 16))
    weight = np.asarray(blurred, np.float32)[..., None] / 255
    return (weight * generated + (1 - weight) * filled_image).clip(0, 1)
