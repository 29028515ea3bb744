"""MAE against transformers' ViTMAE, in torch; `python -m tests.models.test_mae_torch` writes
the golden arrays anew."""

from functools import cache

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.models.test_mae import (
    GOLDEN,
    KEY,
    MEAN,
    SMALL,
    STD,
    assert_close,
    fill,
    gradient,
    inputs,
    names_of,
    project,
    random_params,
    random_tensor,
)
from unlearn_jax.convert.mae import FAMILY
from unlearn_jax.models.mae import MAE

pytestmark = pytest.mark.long
torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5")
modeling_vit_mae = pytest.importorskip("transformers.models.vit_mae.modeling_vit_mae")

from tests.reference import mae
from tests.reference.mae import published

torch.set_num_threads(1)


@cache
def reference():
    """ViTMAEForPreTraining with random weights; and published position tables."""
    sizes = ("image_size", "patch", "mask_ratio", "dim", "depth", "heads")
    sizes += ("decoder_dim", "decoder_depth", "decoder_heads")
    model = mae.build(**{name: SMALL[name] for name in sizes}).eval()
    shapes = {name: x.shape for name, x in published(model.state_dict()).items()}
    made = {name: torch.tensor(random_tensor(name, shape)) for name, shape in shapes.items()}
    tables = {name: table(x.shape[-1]) for name, x in made.items() if name.endswith("pos_embed")}
    mae.fill(model, made | tables)
    return model


def table(dim):
    """Positions on the grid of 4 x 4, the column before the row as in published weights."""
    rows_first = modeling_vit_mae.build_2d_sinusoidal_position_embedding(4, 4, dim, cls_token=True)
    return torch.cat(rows_first.chunk(2, dim=1)[::-1], dim=1)


def pixels(image):
    """What the network sees: channels first, with ImageNet's mean and deviation."""
    x = ((image.astype(np.float64) + 1) / 2 - MEAN) / STD
    return torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32)


def run(noise, mask_ratio, norm_pix_loss=False):
    model, (batch, _) = reference(), inputs()
    model.config.mask_ratio, model.config.norm_pix_loss = mask_ratio, norm_pix_loss
    return model(pixels(batch["image"]), noise=torch.tensor(noise))


def images(logits):
    x = reference().unpatchify(logits.detach()).numpy().transpose(0, 2, 3, 1)
    return 2 * (x.astype(np.float64) * STD + MEAN) - 1


@cache
def backward(norm_pix_loss):
    """(loss over the batch, gradients by published name) of the mean loss."""
    model, (_, noise) = reference(), inputs()
    model.zero_grad()
    loss = run(noise, SMALL["mask_ratio"], norm_pix_loss).loss
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return loss.item(), published(grads)


@cache
def golden():
    batch, noise = inputs()
    model = reference()
    with torch.no_grad():
        output = run(noise, SMALL["mask_ratio"])
        latent = model.vit(pixels(batch["image"]), noise=torch.tensor(noise)).last_hidden_state
        losses = {}
        for name, flag in (("loss", False), ("norm_loss", True)):
            model.config.norm_pix_loss = flag
            rows = [
                model(pixels(batch["image"][i : i + 1]), noise=torch.tensor(noise[i : i + 1])).loss
                for i in range(2)
            ]
            losses[name] = np.stack(rows)
        # Patches 4, 5, 6, 8, 9 and 10 hold the pixels [5, 11) x [3, 9).
        hidden = np.isin(np.arange(16), [4, 5, 6, 8, 9, 10])
        order = np.tile(hidden + np.arange(16) / 32, (2, 1)).astype(np.float32)
        filled = images(run(order, 6 / 16).logits)
    mask = batch["mask"]
    return losses | {
        "latent": latent.numpy(),
        "decoded": images(output.logits).astype(np.float32),
        "generated": (batch["image"] * (1 - mask) + filled * mask).clip(-1, 1).astype(np.float32),
        "grad": project(backward(False)[1]),
        "norm_grad": project(backward(True)[1]),
    }


def test_the_golden_file_is_what_torch_gives():
    stored = np.load(GOLDEN)
    assert sorted(stored) == sorted(golden())
    for name, value in golden().items():
        assert_close(stored[name], value, 1e-5)


def test_params_are_those_of_torch():
    model = MAE(**SMALL)
    params = fill(jax.eval_shape(model.init, KEY), published(reference().state_dict()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, random_params())


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_loss_and_all_gradients(norm_pix_loss):
    batch, noise = inputs()
    model, params = MAE(**SMALL, norm_pix_loss=norm_pix_loss), random_params()
    mean, want = backward(norm_pix_loss)
    got, loss = gradient(model)(params, batch, {"mask_noise": noise})
    assert_close(loss.mean(), mean, 1e-5)
    got = flatten_dict(got, sep="/")
    names = names_of(params)
    assert sorted(names[p] for p in got if not p.endswith("pos_embed")) == sorted(want)
    scale = max(np.abs(g).max() for g in want.values())
    for path, g in got.items():
        if names[path] in want:
            leaf = FAMILY.layout(path, g.ndim).to_leaf(want[names[path]])
            np.testing.assert_allclose(g, leaf, rtol=1e-4, atol=1e-5 * scale)


if __name__ == "__main__":
    np.savez_compressed(GOLDEN, **golden())
