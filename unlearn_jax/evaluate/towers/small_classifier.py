"""A small classifier of CIFAR-10 as a feature tower, for images too small for Inception.

    python -m unlearn_jax.evaluate.towers.small_classifier --data_dir=DIR --out=FILE.npz

trains it on the 50,000 training images and writes its weights; DIR is a tfds data directory in
which cifar10 is prepared. The weights that come with the package were made so; `load()` gives them.
Numbers made with it are not FID or Inception Score, and are never called so (`towers.metric_name`).
"""

import dataclasses
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import traverse_util
from jaxtyping import Array, Float, PRNGKeyArray, UInt8
from tqdm import tqdm

import unlearn_jax
from unlearn_jax import checkpoint, cli, files
from unlearn_jax.data import sources
from unlearn_jax.evaluate.towers.resnet50 import apply, check_fields, init
from unlearn_jax.registry import UserError

WEIGHTS = "cifar10_classifier.npz"
_BATCH = 128
_PEAK = 4e-3  # learning rate
_LARGEST_SHIFT = 3  # pixels


class _Net(nn.Module):
    """3 x 3 convolutions to 4 x 4 pixels; norms only while training, see `_fold`."""

    width: int
    classes: int
    dtype: Any
    train: bool = False

    @nn.compact
    def __call__(self, x):
        for i, (channels, strides, pool) in enumerate(((1, 2, 1), (2, 1, 2), (4, 1, 2), (4, 1, 1))):
            x = nn.Conv(
                channels * self.width,
                (3, 3),
                strides,
                use_bias=not self.train,
                dtype=self.dtype,
                name=f"conv{i}",
            )(x)
            if self.train:
                x = nn.BatchNorm(use_running_average=False, momentum=0.95, name=f"norm{i}")(x)
            x = nn.relu(x.astype(jnp.float32))
            x = nn.max_pool(x, (pool, pool), (pool, pool))
        pool = x.mean((1, 2))
        return {"pool": pool, "logits": nn.Dense(self.classes, name="fc")(pool)}


@dataclasses.dataclass(frozen=True)
class SmallClassifier:
    """Four convolutions: pooled features and logits, for inference.

    Raises:
      UserError: a field is out of range.
    """

    image_size: int = 32
    classes: int = 10
    width: int = 32
    """Channels of the first convolution; there are 4 times as many pooled features."""
    mean: tuple[float, ...] | list[float] = (0.4914, 0.4822, 0.4465)
    """Mean of red, green and blue in [0, 1], subtracted inside."""
    std: tuple[float, ...] | list[float] = (0.247, 0.2435, 0.2616)
    """By which is then divided."""
    dtype: str = "float32"
    """Type of the convolutions, or "bfloat16". Parameters and outputs are float32."""

    def __post_init__(self):
        check_fields(self, positive=("image_size", "classes", "width"))

    @property
    def _module(self) -> nn.Module:
        return _Net(self.width, self.classes, self.dtype)

    def init(self, key: PRNGKeyArray) -> dict[str, Any]:
        """Draw fresh float32 parameters."""
        return init(self, key)

    def features(
        self, params: Mapping[str, Any], images: Float[Array, "b h w 3"]
    ) -> dict[str, Float[Array, "b _"]]:
        """Compute features of images in [-1, 1]: "pool" [b 4 * width], and "logits" [b classes].

        Raises:
          UserError: the images are not image_size x image_size.
        """
        return apply(self, params, images)


def load(path: Path | None = None) -> tuple[SmallClassifier, dict[str, Any], dict[str, Any]]:
    """Load (tower, params, provenance) from a weights file, by default the one in the package.

    provenance: {"family", "command", "seed", "epochs", "test_accuracy", "n_test", "unlearn_jax"}.

    Raises:
      FileNotFoundError: there is none.
      UserError: it is something else, or damaged.
    """
    path = path or Path(str(resources.files("unlearn_jax.evaluate.towers") / WEIGHTS))
    arrays, provenance = files.read_arrays(path)
    params = traverse_util.unflatten_dict(arrays, sep="/")
    try:
        width, classes = params["conv0"]["bias"].size, params["fc"]["bias"].size
        tower = SmallClassifier(width=width, classes=classes)
        like = jax.eval_shape(tower.init, jax.random.key(0))
        assert not checkpoint.differences(like, jax.tree.map(jnp.float32, params))
    except (AssertionError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected weights of the small classifier, found {sorted(arrays)[:5]}. Make "
            "them with python -m unlearn_jax.evaluate.towers.small_classifier."
        ) from error
    return tower, jax.tree.map(jnp.float32, params), provenance


def save(path: Path, params: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Write params as float16, whole or not at all."""
    leaves = traverse_util.flatten_dict(params, sep="/")
    files.write_arrays(path, {name: np.float16(leaf) for name, leaf in leaves.items()}, provenance)


def train(
    images: UInt8[np.ndarray, "n h w 3"],
    labels: np.ndarray,
    *,
    seed: int,
    epochs: int,
    tower: SmallClassifier,
    batch_size: int = _BATCH,
) -> dict[str, Any]:
    """Train the tower to tell the labels; the same parameters for the same seed.

    AdamW with a one-cycle learning rate, cross-entropy with labels smoothed by 0.1, images mirrored
    and shifted by up to 3 pixels at random. Rows that do not fill a batch are left out of an epoch.

    Raises:
      UserError: fewer images than a batch holds.
    """
    per_epoch = len(images) // batch_size
    if not per_epoch:
        raise UserError(f"Expected {batch_size} or more training images, got {len(images)}.")
    steps = per_epoch * epochs
    net = tower._module.clone(train=True)
    key = jax.random.key(seed)
    size = tower.image_size
    variables = jax.jit(net.init)(key, jnp.zeros((1, size, size, 3)))
    params, statistics = variables["params"], variables["batch_stats"]
    schedule = optax.cosine_onecycle_schedule(steps, _PEAK, pct_start=0.25)
    decayed = lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)  # noqa: E731
    optimizer = optax.adamw(schedule, b2=0.99, weight_decay=0.05, mask=decayed)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, statistics, opt_state, pixels, label, key):
        x = _augment(pixels.astype(jnp.float32) / 255, key)
        x = (x - jnp.asarray(tower.mean)) / jnp.asarray(tower.std)

        def loss(params):
            outputs, changed = net.apply(
                {"params": params, "batch_stats": statistics}, x, mutable=["batch_stats"]
            )
            target = optax.smooth_labels(jax.nn.one_hot(label, tower.classes), 0.1)
            cross_entropy = optax.softmax_cross_entropy(outputs["logits"], target).mean()
            return cross_entropy, changed["batch_stats"]

        (value, changed), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), changed, opt_state, value

    rng = np.random.default_rng(seed)
    with tqdm(
        desc="training", total=steps * batch_size, unit="img", dynamic_ncols=True, disable=None
    ) as bar:
        for i in range(steps):
            if i % per_epoch == 0:
                order = rng.permutation(len(images))
            rows = order[i % per_epoch * batch_size :][:batch_size]
            state = params, statistics, opt_state
            batch = images[rows], labels[rows], jax.random.fold_in(key, i)
            params, statistics, opt_state, value = step(*state, *batch)
            if i % 20 == 0:
                bar.set_postfix_str(f"loss {float(value):.3f}", refresh=False)
            bar.update(batch_size)
    return _fold(params, statistics)


def accuracy(
    tower: SmallClassifier,
    params: Mapping[str, Any],
    images: UInt8[np.ndarray, "n h w 3"],
    labels: np.ndarray,
) -> float:
    """Compute the share of images whose largest logit is that of their label."""
    features = jax.jit(tower.features)
    right = 0
    for first in range(0, len(images), 500):
        pixels = images[first : first + 500].astype(np.float32) / np.float32(127.5) - 1
        found = features(params, pixels)["logits"].argmax(-1)
        right += int((np.asarray(found) == labels[first : first + 500]).sum())
    return right / len(images)


def _augment(images: Float[Array, "b h w 3"], key: PRNGKeyArray) -> Float[Array, "b h w 3"]:
    mirror, shift = jax.random.split(key)
    mirrored = jax.random.bernoulli(mirror, shape=(len(images), 1, 1, 1))
    images = jnp.where(mirrored, images[:, :, ::-1], images)
    margin = _LARGEST_SHIFT
    padded = jnp.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)), "reflect")
    corners = jax.random.randint(shift, (len(images), 2), 0, 2 * margin + 1)
    crop = lambda x, at: jax.lax.dynamic_slice(x, (at[0], at[1], 0), images.shape[1:])  # noqa: E731
    return jax.vmap(crop)(padded, corners)


def _fold(params: Mapping[str, Any], statistics: Mapping[str, Any]) -> dict[str, Any]:
    """Fold norms into convolutions: (conv(x) - mean) * scale + bias is one with a bias."""
    folded = {"fc": params["fc"]}
    for name in (name for name in params if name.startswith("conv")):
        norm, found = (tree[name.replace("conv", "norm")] for tree in (params, statistics))
        scale = norm["scale"] / jnp.sqrt(found["var"] + 1e-5)
        bias = norm["bias"] - found["mean"] * scale
        folded[name] = {"kernel": params[name]["kernel"] * scale, "bias": bias}
    return folded


def main(data_dir: str, out: str) -> None:
    """Run the command."""
    source = sources.open_source(kind="tfds", name="cifar10", data_dir=data_dir, image_size=32)
    rows = {split: np.array(found) for split, found in source.splits.items()}
    images = {split: source.fetch(found) for split, found in rows.items()}
    seed, epochs = flags.FLAGS.seed, flags.FLAGS.epochs
    tower = SmallClassifier(classes=len(source.class_names))
    params = train(
        images["train"], source.labels[rows["train"]], seed=seed, epochs=epochs, tower=tower
    )
    stored = jax.tree.map(lambda leaf: leaf.astype(jnp.float16).astype(jnp.float32), params)
    right = accuracy(tower, stored, images["test"], source.labels[rows["test"]])
    provenance = {
        "family": "cifar10_classifier",
        "command": "python -m unlearn_jax.evaluate.towers.small_classifier --data_dir=DIR "
        f"--out={WEIGHTS} --seed={seed} --epochs={epochs}",
        "seed": seed,
        "epochs": epochs,
        "test_accuracy": right,
        "n_test": len(images["test"]),
        "unlearn_jax": unlearn_jax.__version__,
    }
    save(Path(out), params, provenance)
    print(f"Test accuracy {right:.4f} (n = {len(images['test'])}). Wrote {out}.")


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "tfds data directory with cifar10 prepared.")
    flags.DEFINE_string("out", None, "Where to write the weights, an .npz file.")
    flags.DEFINE_integer("seed", 0, "Seed of weights, order and augmentation.")
    flags.DEFINE_integer("epochs", 7, "Passes over the training images.", lower_bound=1)
    example = "--data_dir=~/tensorflow_datasets --out=cifar10_classifier.npz"
    cli.start(main, needs=("data_dir", "out"), example=example)
