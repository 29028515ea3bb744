"""Write the bundled sample: a class-balanced part of CIFAR-10, 2,500 training and 500 test images.

    python -m tools.make_sample --source_dir=DIR --out=unlearn_jax/data/sample

DIR is a tfds data directory in which cifar10 is prepared with file_format="array_record". Needs no
TensorFlow, and gives the same files every time. Source of the images: A. Krizhevsky, "Learning
multiple layers of features from tiny images", 2009, https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from absl import app, flags
from PIL import Image

from unlearn_jax.data import sources

PER_CLASS = {"train": 250, "test": 50}
SOURCE_DIR = flags.DEFINE_string("source_dir", None, "tfds data directory.", required=True)
OUT = flags.DEFINE_string("out", None, "Where to write cifar10_sample/1.0.0.", required=True)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the choice.")


class Cifar10Sample(tfds.core.GeneratorBasedBuilder):
    """A class-balanced part of CIFAR-10, with the ids of the original."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, source: sources.Source, seed: int, **options: object) -> None:
        """Take the options of the tfds builder."""
        self._source, self._seed = source, seed
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=self._source.class_names),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="{train} training and {test} test images of each class of CIFAR-10.".format(
                **PER_CLASS
            ),
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            citation="Alex Krizhevsky, Learning multiple layers of features from tiny images, 2009",
        )

    def _split_generators(self, _: object) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in PER_CLASS}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        rows = np.asarray(self._source.splits[split])
        rng = np.random.Generator(np.random.Philox(self._seed))
        for label in range(len(self._source.class_names)):
            of_class = rows[self._source.labels[rows] == label]
            chosen = np.sort(rng.permutation(of_class)[: PER_CLASS[split]])
            for row, pixels in zip(chosen, self._source.fetch(chosen), strict=True):
                png = io.BytesIO()
                Image.fromarray(pixels).save(png, "png", optimize=True)
                png.seek(0)
                id = self._source.ids[row]
                yield id, {"id": id, "image": png, "label": label}


def main(argv: list[str]) -> None:
    """Read CIFAR-10, write the sample."""
    if len(argv) > 1:
        raise app.UsageError(f"Expected only flags, got {argv[1:]}.")
    source = sources.open_source(
        kind="tfds", name="cifar10", data_dir=SOURCE_DIR.value, image_size=32
    )
    builder = Cifar10Sample(source, SEED.value, data_dir=OUT.value, file_format="array_record")
    builder.download_and_prepare()


if __name__ == "__main__":
    app.run(main)
