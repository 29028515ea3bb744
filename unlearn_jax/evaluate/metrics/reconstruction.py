"""Reconstruction metrics, per example: errors, PSNR, SSIM and displacement."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy
import skimage
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from unlearn_jax import distributed, sharding
from unlearn_jax.data import transforms
from unlearn_jax.models import Batch, Model, Params
from unlearn_jax.models.distances import displacement, masked_mse

IMAGE_RANGE = 2.0  # images are in [-1, 1]

METRICS = {
    "mse_hole": {
        "label": "Error on the hole",
        "unit": "mean squared error on the generated part, images in [-1, 1]",
        "better": "lower",
    },
    "mse_visible": {
        "label": "Error on the visible part",
        "unit": "mean squared error on the visible part, images in [-1, 1]",
        "better": "lower",
    },
    "psnr": {"label": "PSNR", "unit": "dB, whole image", "better": "higher"},
    "ssim": {
        "label": "SSIM",
        "unit": "whole image, Gaussian window of 1.5 pixels (Wang et al. 2004)",
        "better": "higher",
    },
    "displacement": {
        "label": "Displacement",
        "unit": "RMS distance to the original's output on the generated part",
        "better": None,
    },
}


@jax.jit
def pixel_metrics(
    output: Float[Array, "b h w c"], original: Float[Array, "b h w c"], batch: Batch
) -> dict[str, Float[Array, "b"]]:
    """Compute all metrics of `METRICS` but SSIM, per example."""
    image, mask = batch["image"], batch["mask"]
    mse = jnp.square(output - image).mean((1, 2, 3))
    return {
        "mse_hole": masked_mse(output, image, mask),
        "mse_visible": masked_mse(output, image, 1 - mask),
        "psnr": 10 * jnp.log10(IMAGE_RANGE**2 / mse),
        "displacement": displacement(output, original, mask),
    }


def ssim(output: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Compute SSIM per example [b], with the original parameters (Wang et al. 2004)."""
    compare = partial(
        skimage.metrics.structural_similarity,
        channel_axis=-1,
        data_range=IMAGE_RANGE,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return np.array([compare(a, b) for a, b in zip(output, image, strict=True)], np.float32)


def measure(
    model: Model,
    params: Mapping[str, Params],
    batches: Iterator[Mapping[str, np.ndarray]],
    mesh: Mesh,
    key: PRNGKeyArray,
    *,
    keep: int = 0,
    seen: Callable[[int], Any] = lambda rows: None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Measure every example under every model; keep the images of the first few.

    Args:
      model: the architecture.
      params: of each model by name; "original" is what displacement is measured from.
      batches: from `data.make_eval`; each is decoded once for all models.
      mesh: where batches are put.
      key: all models draw the same randomness from it.
      keep: of how many examples the images are returned.
      seen: told the number of rows after each batch.

    Returns:
      {"index": [n], "label": [n], "MODEL/METRIC": [n]} and {"index": [keep], "input", "truth",
      MODEL: uint8 [keep, h, w, c]}; in the input the part to be generated is mid-grey.
    """
    generate = sharding.jit_rows(model.generate, mesh)
    columns: dict[str, list[np.ndarray]] = {}
    images: dict[str, list[np.ndarray]] = {}
    kept = 0
    for number, batch in enumerate(batches):
        valid = batch["valid"]
        device_batch = sharding.split_batch(batch, mesh)
        batch_key = jax.random.fold_in(key, number)
        outputs = {name: generate(p, device_batch, batch_key) for name, p in params.items()}
        row = {"index": batch["index"], "label": batch["label"]}
        original = outputs["original"]
        for name, output in list(outputs.items()):
            values = pixel_metrics(output, original, device_batch)
            values = distributed.fetch(values)
            outputs[name] = output = distributed.fetch(output)
            values |= {"ssim": ssim(output[valid], batch["image"][valid])}
            if name == "original":
                del values["displacement"]
            row |= {f"{name}/{metric}": value for metric, value in values.items()}
        for name, value in row.items():
            columns.setdefault(name, []).append(value if name.endswith("/ssim") else value[valid])
        if kept < keep:
            shown = {"index": batch["index"], "input": batch["image"] * (1 - batch["mask"])}
            shown |= {"truth": batch["image"]} | outputs
            for name, value in shown.items():
                value = value[valid][: keep - kept]
                value = value if name == "index" else transforms.to_uint8(value)
                images.setdefault(name, []).append(value)
            kept += len(images["index"][-1])
        seen(int(valid.sum()))
    return tuple({n: np.concatenate(v) for n, v in part.items()} for part in (columns, images))


def interval(*samples: np.ndarray, confidence: float, resamples: int, seed: int) -> dict[str, Any]:
    """Return a sample's mean, or the difference of two means, with a bootstrap interval.

    Percentile bootstrap over examples: {"mean", "ci_low", "ci_high", "n"} (n of the first sample).
    It covers the choice of examples, not the variation between training runs.
    """

    def statistic(*x, axis):
        return x[0].mean(axis) - (x[1].mean(axis) if len(x) > 1 else 0)

    samples = tuple(np.asarray(sample, np.float64) for sample in samples)
    mean = float(statistic(*samples, axis=-1))
    low = high = mean
    if all(len(sample) > 1 for sample in samples):
        low, high = scipy.stats.bootstrap(
            samples,
            statistic,
            n_resamples=resamples,
            confidence_level=confidence,
            method="percentile",
            vectorized=True,
            batch=100,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return {"mean": mean, "ci_low": float(low), "ci_high": float(high), "n": len(samples[0])}
