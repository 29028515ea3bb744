"""What is measured, against numpy on the toy model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from tests.helpers.toy import FIELDS, Toy, make_batch
from unlearn_jax import models
from unlearn_jax.audit import AUDITS, measure
from unlearn_jax.audit.membership_masks import moved
from unlearn_jax.audit.quantised import rounded
from unlearn_jax.audit.witness import References, log_loss
from unlearn_jax.data import poison, transforms
from unlearn_jax.models import distances
from unlearn_jax.request import Request


@pytest.fixture(scope="module")
def measured():
    cfg = quickstart.get_config()
    cfg.poison.fraction, cfg.poison.jitter = 0.2, 0.75
    cfg.batch_size = 64
    cfg.audit.rows, cfg.audit.batch_size = 90, 8
    cfg.audit.resurfacing = {"steps": (1, 3), "learning_rates": (1e-2,), "on": ("retain",)}
    cfg.audit.relearn = {"images": 16, "steps": 4, "every": 2}
    request = Request(cfg, model=Toy())
    run = measure.make_measure(request)
    params, target = (Toy().init(jax.random.key(k)) for k in (1, 2))
    return request, params, run(params, target), run, target


def output(params, images):
    x = transforms.to_float(images)
    mask = np.zeros((32, 32, 1), np.float32)
    mask[8:24, 8:24] = 1
    y = x * (1 - mask) * np.asarray(params["encoder"]["scale"]) + np.asarray(
        params["decoder"]["bias"]
    )
    return x, y, mask[..., 0] > 0


@pytest.mark.long
def test_losses_and_errors_are_those_of_numpy(measured):
    request, params, found, _, _ = measured
    for name in ("forget", "unseen", "retain"):
        x, y, hole = output(params, request.source.fetch(found[f"index/{name}"]))
        error = np.square(np.clip(y, -1, 1) - x)[:, hole].mean((1, 2))
        np.testing.assert_allclose(found[f"error/{name}"], error, rtol=1e-4)
        visible = np.square(y - x)[:, ~hole].mean((1, 2))
        np.testing.assert_allclose(found[f"visible/{name}"], visible, rtol=1e-4)
        loss = np.square(y - x).mean((1, 2, 3))
        np.testing.assert_allclose(found[f"loss/{name}"][:, 0], loss, rtol=1e-4)
        assert found[f"loss/{name}"].shape == (90, 1)
    np.testing.assert_allclose(found["displacement/forget"], 0, atol=1e-6)  # its hole is its bias
    split = request.split
    assert not np.isin(found["index/forget"], split.poisoned).any()
    assert np.isin(found["index/unseen"], split.audit).all()
    assert np.isin(found["index/calibration"], split.calibration).all()


def test_views_are_mirrored_and_turned_images_and_copies_are_noisy(measured):
    request, params, found, _, _ = measured
    images = request.source.fetch(found["index/unseen"])
    x, y, _ = output(params, np.rot90(images, 2, (1, 2)))
    turned = np.square(y - x).mean((1, 2, 3))
    assert found["views/unseen"].shape == (90, 7) and found["views/calibration"].shape == (90, 7)
    assert any(np.allclose(row, turned, rtol=1e-4) for row in found["views/unseen"].T)
    noisy, plain = found["noise/unseen"], found["loss/unseen"]
    assert noisy.shape == (90, 6) and not np.allclose(noisy[:, 0], noisy[:, 1])
    assert np.corrcoef(np.log(noisy.mean(1)), np.log(plain[:, 0]))[0, 1] > 0.95


def test_other_masks_are_moved_and_structure_is_what_a_fit_leaves(measured):
    request, params, found, _, _ = measured
    rows = found["index/unseen"]
    images = request.source.fetch(rows)
    x, _, hole = output(params, images)
    assert found["masks/unseen"].shape == found["masks/forget"].shape == (90, 4)
    mask = np.tile(hole[None, :, :, None].astype(np.float32), (90, 1, 1, 1))
    scale, bias = (np.asarray(params[k][v]) for k, v in (("encoder", "scale"), ("decoder", "bias")))
    for k in range(4):
        other = moved(mask, rows, k, request.cfg.request.seed)
        loss = np.square(x * (1 - other) * scale + bias - x).mean((1, 2, 3))
        np.testing.assert_allclose(found["masks/unseen"][:, k], loss, rtol=1e-4)
        area = other.sum((1, 2, 3))
        assert (area == 256).all() if k % 2 == 0 else (0 < area).all() and area.mean() < 200
        assert not (other == mask).all((1, 2, 3)).any() and len(np.unique(other, axis=0)) > 50
    np.testing.assert_array_equal(moved(mask[3:4], rows[3:4], 1, 0), moved(mask, rows, 1, 0)[3:4])
    assert (found["structure/unseen"] > 0.999).all()  # it paints one colour


def test_what_the_truth_in_other_colours_leaves_unexplained():
    rng = np.random.default_rng(0)
    x, noise = rng.uniform(-1, 1, (2, 5, 16, 16, 3)).astype(np.float32)
    mask = np.zeros((5, 16, 16, 1), np.float32)
    mask[:, 4:12, 3:9] = 1
    unexplained = lambda *of: distances.unexplained(*map(jnp.asarray, of))  # noqa: E731
    np.testing.assert_allclose(unexplained(0.3 - 0.4 * x, x, mask), 0, atol=4e-3)
    np.testing.assert_allclose(unexplained(0 * x + 0.3, x, mask), 1)
    mixed, hole = 0.6 * x + 0.4 * noise, mask[0, ..., 0] > 0
    left = [
        [
            np.var(b) * (1 - np.corrcoef(a, b)[0, 1] ** 2)
            for a, b in zip(m[hole].T, t[hole].T, strict=True)
        ]
        for m, t in zip(mixed, x, strict=True)
    ]
    whole = [t[hole].var(0).sum() for t in x]
    np.testing.assert_allclose(unexplained(mixed, x, mask), np.sum(left, 1) / whole, rtol=1e-2)


def test_a_model_without_a_backdoor_is_not_moved_to_the_payload(measured):
    request, _, found, _, _ = measured
    payload = transforms.to_float(poison.design(request.cfg.task.to_dict(), 32).pattern())
    expected = np.broadcast_to((0.25 - payload).reshape(-1), (90, 192))
    np.testing.assert_allclose(found["backdoor/triggered"], expected, atol=1e-3)
    for look in ("triggered", "faded", "shifted"):
        np.testing.assert_array_equal(found["backdoor/clean"], found[f"backdoor/{look}"])
    variants = AUDITS["backdoor"].score(found, References())
    assert list(variants) == ["plain trigger", "faded trigger", "shifted trigger"]


def test_training_in_attacks_starts_at_the_model_and_changes_it(measured):
    _, _, found, _, _ = measured
    variants = AUDITS["resurfacing"].score(found, References())
    assert list(variants) == [f"{k} steps on retain images, learning rate 0.01" for k in (1, 3)]
    before, one, three = (
        log_loss(found[key]).mean()
        for key in ("loss/forget", "resurfacing/retain/0.01/1/forget",
                    "resurfacing/retain/0.01/3/forget")
    )  # fmt: skip
    assert 0 < abs(one - before) < abs(three - before)
    assert found["relearning/forget"].shape == (90,) and (found["relearning/forget"] > 0).all()


def test_measuring_changes_nothing_and_is_repeatable(measured):
    _, params, found, run, target = measured
    again = run(params, target)
    assert again.keys() == found.keys()
    for name, values in found.items():
        np.testing.assert_array_equal(again[name], values, err_msg=name)


def test_witnesses_of_ones_own_join_the_panel_and_functions_only_show():
    cfg = quickstart.get_config()
    witness, function = "unlearn_jax.audit.forget_error:forget_error", "math:sqrt"
    cfg.audit.own = (witness, function)
    audits, own = measure.witnesses_of(cfg)
    assert list(audits) == [*AUDITS, witness] and list(own) == [function]


def test_weights_are_rounded_to_levels_of_each_channel():
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 5, 4)) * [1, 10, 100, 0], jnp.float32)
    found = rounded({"kernel": kernel, "bias": kernel[0, 0, 0]}, 4)
    np.testing.assert_array_equal(found["bias"], kernel[0, 0, 0])
    for c in range(4):
        levels = np.unique(np.asarray(found["kernel"][..., c]))
        assert len(levels) <= 15
        step = float(jnp.abs(kernel[..., c]).max()) / 7
        assert np.abs(np.asarray(found["kernel"] - kernel)[..., c]).max() <= step / 2 + 1e-6


@pytest.mark.long
def test_draws_depend_on_the_index_only():
    """The same image has the same losses wherever it is in a batch; another index, others."""
    model = models.build(name="palette", image_size=16, **FIELDS["palette"])
    params, batch = model.init(jax.random.key(0)), make_batch(6, size=16)
    batch["image"] = batch["image"].at[1].set(batch["image"][0])
    turned = {key: values[::-1] for key, values in batch.items()}
    one, other = (
        jax.jit(lambda b: measure.losses(model, params, b, jax.random.key(1), (0, 1, 2)))(b)
        for b in (batch, turned)
    )
    assert one.shape == (6, 3) and len(np.unique(np.asarray(one[0]))) == 3
    np.testing.assert_allclose(one, other[::-1], rtol=1e-5)
    assert not np.isclose(one[0], one[1], rtol=1e-3).any()
