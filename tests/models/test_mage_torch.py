"""MAGE against one written in torch from its description, with the published names.

`python -m tests.models.test_mage_torch` writes golden/mage.npz anew.
"""

import numpy as np
import pytest

pytestmark = pytest.mark.long
torch = pytest.importorskip("torch")

import jax.numpy as jnp

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
from tests.models.test_vqgan_torch import load
from tests.reference import mage as reference
from tests.reference.vqgan import nchw

torch.set_num_threads(1)
CLASS, MASK = 32 + 76, 32 + 100


def model():
    sizes = ("dim", "depth", "heads", "decoder_dim", "decoder_depth", "decoder_heads")
    words = {"tokens": TOKENS, "class_id": CLASS, "mask_id": MASK}
    sizes = {name: SMALL[name] for name in sizes}
    return load(reference.Mage(SMALL["tokenizer"], **words, **sizes))


def given():
    return {k: torch.tensor(np.asarray(v)) for k, v in draws().items()}


def of_torch():
    """(golden arrays, gradients by name, state dict)."""
    mage, batch, d = model(), make_batch(), given()
    image = (np.asarray(batch["image"]) + 1) / 2
    ids = reference.tokens(mage, nchw(image))
    dropped, masked = reference.masks(d["mask_noise"], 0.7)
    latent = mage.encoder(ids, dropped, masked, d["dropout_keep"])
    logits = mage.decoder(latent, dropped, masked)
    _, noisy = reference.smoothed(mage, logits, d["random_ids"].long(), masked)
    loss, each = reference.smoothed(mage, logits, ids, masked)
    torch.testing.assert_close(loss, each.mean())
    (2 * loss).backward()  # the sum of the images' losses
    grads = {k: p.grad.numpy() for k, p in mage.named_parameters() if p.grad is not None}
    with torch.no_grad():
        unknown = torch.stack([torch.tensor(reference.hole_tokens(np.asarray(m[..., 0])))
                               for m in batch["mask"]])  # fmt: skip
        start = torch.where(unknown, MASK, ids)
        sampled, again = reference.step(
            mage, start, 1, MODEL.num_iter, d["gumbel_sample"][1], d["gumbel"][1]
        )
        whole = [
            reference.generate(mage, image[i], np.asarray(batch["mask"][i, ..., 0]),
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
