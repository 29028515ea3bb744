import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.metrics
from scipy import stats

from tests.helpers.toy import Toy, make_batch
from unlearn_jax import sharding
from unlearn_jax.evaluate.metrics import reconstruction
from unlearn_jax.models import distances


def images(n=8, size=16, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.uniform(-1, 1, (n, size, size, 3)).astype(np.float32)
    output = np.clip(image + rng.normal(0, 0.2, image.shape), -1, 1).astype(np.float32)
    mask = np.zeros((n, size, size, 1), np.float32)
    mask[:, 4:12, 3:13] = 1
    return image, output, mask


def test_pixel_metrics_are_those_of_independent_code():
    image, output, mask = images()
    original = images(seed=1)[1]
    batch = make_batch(8) | {"image": jnp.asarray(image), "mask": jnp.asarray(mask)}
    found = reconstruction.pixel_metrics(jnp.asarray(output), jnp.asarray(original), batch)
    for i in range(8):
        hole, visible = np.s_[i, 4:12, 3:13], mask[i, :, :, 0] == 0
        mse = skimage.metrics.mean_squared_error
        np.testing.assert_allclose(found["mse_hole"][i], mse(image[hole], output[hole]), rtol=1e-5)
        np.testing.assert_allclose(
            found["mse_visible"][i], mse(image[i][visible], output[i][visible]), rtol=1e-5
        )
        psnr = skimage.metrics.peak_signal_noise_ratio(image[i], output[i], data_range=2)
        np.testing.assert_allclose(found["psnr"][i], psnr, rtol=1e-5)
        rms = np.linalg.norm((output - original)[hole]) / np.sqrt(8 * 10 * 3)
        np.testing.assert_allclose(found["displacement"][i], rms, rtol=1e-5)


def test_displacement_and_errors_obey_the_triangle_inequality():
    image, output, mask = map(jnp.asarray, images())
    original = jnp.asarray(images(seed=1)[1])
    error = jnp.sqrt(distances.masked_mse(output, image, mask))
    error_0 = jnp.sqrt(distances.masked_mse(original, image, mask))
    moved = distances.displacement(output, original, mask)
    assert (abs(error - error_0) <= moved + 1e-6).all() and (moved <= error + error_0).all()


def test_ssim_is_one_for_equal_images_and_falls_with_noise():
    image, output, _ = images()
    np.testing.assert_allclose(reconstruction.ssim(image, image), np.ones(8), rtol=1e-6)
    assert (reconstruction.ssim(output, image) < 0.99).all()


def test_measure_drops_padding_and_keeps_images():
    model, mesh = Toy(), sharding.make_mesh()
    params = {
        name: model.init(jax.random.key(i)) for i, name in enumerate(["original", "unlearned"])
    }
    batches = [
        jax.tree.map(np.array, make_batch(8, invalid=i * 3, seed=i, size=16)) for i in (0, 1)
    ]
    for batch in batches:
        batch["image"][~batch["valid"]] = np.nan
    seen = []
    columns, shown = reconstruction.measure(
        model, params, iter(batches), mesh, jax.random.key(0), keep=10, seen=seen.append
    )
    assert seen == [8, 5]
    assert {len(values) for values in columns.values()} == {13}
    assert "original/displacement" not in columns and "unlearned/displacement" in columns
    assert all(np.isfinite(values).all() for values in columns.values())
    expected = np.concatenate([b["index"][b["valid"]] for b in batches])
    np.testing.assert_array_equal(columns["index"], expected)
    assert {len(values) for values in shown.values()} == {10}
    np.testing.assert_array_equal(
        shown["truth"][0], np.rint((batches[0]["image"][0] + 1) * 127.5).astype(np.uint8)
    )
    assert (shown["input"][:, 1:-1, 1:-1] == 128).all()


def test_interval_agrees_with_the_normal_approximation():
    rng = np.random.default_rng(0)
    a, b = rng.normal(2, 1, 900), rng.normal(1, 2, 400)
    settings = dict(confidence=0.95, resamples=2000, seed=0)
    one = reconstruction.interval(a, **settings)
    assert one["n"] == 900 and one["mean"] == pytest.approx(a.mean())
    half = stats.norm.ppf(0.975) * a.std() / 30
    assert one["ci_low"] == pytest.approx(a.mean() - half, abs=0.15 * half)
    assert one["ci_high"] == pytest.approx(a.mean() + half, abs=0.15 * half)
    two = reconstruction.interval(a, b, **settings)
    half = stats.norm.ppf(0.975) * np.sqrt(a.var() / 900 + b.var() / 400)
    assert two["mean"] == pytest.approx(a.mean() - b.mean())
    assert two["ci_high"] - two["ci_low"] == pytest.approx(2 * half, rel=0.15)


def test_interval_of_one_example_is_a_point():
    found = reconstruction.interval(np.ones(1), confidence=0.95, resamples=10, seed=0)
    assert found == {"mean": 1.0, "ci_low": 1.0, "ci_high": 1.0, "n": 1}
