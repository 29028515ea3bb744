"""Prepared tfds datasets, read without TensorFlow.

Listing a large one once means reading all of its records. What was found is kept in
`$XDG_CACHE_HOME/unlearn_jax/` (`~/.cache/unlearn_jax/`), in a file named by a hash of the dataset's
metadata and of its files' names, sizes and times; deleting it costs one more reading.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from unlearn_jax import files
from unlearn_jax.data import index
from unlearn_jax.data.readers import Listing, check_splits, numbers, split_ranges
from unlearn_jax.files import cache_folder
from unlearn_jax.registry import UserError, brief

_WORTH_CACHING = 20_000  # records; fewer are listed in a second
_FEATURES, _MAX_FEATURES = "tensorflow_datasets.core.features.", 2**20  # classes; bytes
_CACHED = "v1"  # of how ids are made
# Names for prepared datasets that come without their label file (label.labels.txt).
CLASS_NAMES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer")
    + ("dog", "frog", "horse", "ship", "truck"),
}


def list_tfds(name: str, data_dir: str, splits: Sequence[str], keep: bool) -> Listing:
    """List the images of a prepared dataset; with `keep`, their encoded bytes stay in memory.

    The id of an image is its feature id; or its path, of the features file_name (imagenet2012,
    whose class folder is put before it) and filename (places365_small); or its split and number.

    Raises:
        UserError: no such dataset or split, or a damaged one; the message names the record.
    """
    import tensorflow_datasets as tfds  # here: the other kinds do not need it

    folder = find_prepared(name, data_dir)
    name = f"{folder.parent.name}/{folder.name}"
    _check_classes(folder / "features.json", name)
    try:
        builder = tfds.builder_from_directory(folder)
        features = dict(builder.info.features)
        sizes = {s: info.num_examples for s, info in builder.info.splits.items()}
    except Exception as error:
        raise UserError(
            f"{name}: its metadata cannot be read ({brief(error)}). Prepare it again."
        ) from error
    check_splits(splits, sizes, name)
    if "image" not in features or not isinstance(features.get("label"), tfds.features.ClassLabel):
        raise UserError(
            f"{name}: expected an image and a label of a class, found features {sorted(features)}."
        )
    ranges = split_ranges(splits, [sizes[split] for split in splits])

    names = tuple(features["label"].names)
    if names == numbers(len(names)):  # the label file is missing
        names = CLASS_NAMES.get(folder.parent.name, names)
    if folder.parent.name == "places365_small":  # tfds leaves out the first folder, a letter
        names = tuple(f"{name[0]}/{name}" for name in names)
    read_records = _Records(name, builder, {split: sizes[split] for split in splits}).read
    n, encoded = sum(sizes[split] for split in splits), []

    def list_all() -> index.Index:
        ids, labels = [], []
        bar = tqdm(desc=f"listing {name}", total=n, delay=2, unit="image", disable=None)
        for split in splits:
            for first in range(0, sizes[split], 1024):
                rows = range(first, min(first + 1024, sizes[split]))
                for row, record in zip(rows, read_records(split, rows), strict=True):
                    label = int(record["label"])
                    named = names[label] if 0 <= label < len(names) else ""
                    ids.append(_id(record, f"{split}_{row}", named))
                    labels.append(label)
                    if keep:
                        encoded.append(record["image"])
                bar.update(len(rows))
        bar.close()
        return index.Index(ids, np.array(labels, np.int32), np.zeros((n, 2), np.int32))

    cached = None if keep or n < _WORTH_CACHING else _cache_file(folder, splits)
    listed = _read_cached(cached, n) if cached else None
    if listed is None:
        listed = list_all()
        if cached:
            cached.parent.mkdir(parents=True, exist_ok=True)
            index.write(cached, listed)

    def read_images(rows: Sequence[int]) -> list[bytes]:
        if keep:
            return [encoded[row] for row in rows]
        images = {}
        for split, range_ in ranges.items():
            here = [row for row in rows if row in range_]
            if here:
                found = read_records(split, [row - range_.start for row in here])
                images.update(zip(here, (record["image"] for record in found), strict=True))
        return [images[row] for row in rows]

    return Listing(
        name=name,
        class_names=names,
        ids=listed.ids,
        labels=listed.labels,
        splits=ranges,
        encoded=read_images,
    )


def _check_classes(features: Path, name: str) -> None:
    """Check that all classes that features.json names are of tfds, which would import any."""
    of: list[Any] = []
    try:
        for path in sorted(features.parent.iterdir()):  # tfds would wait for a pipe
            files.regular(path, math.inf if "array_record" in path.name else _MAX_FEATURES)
        json.loads(
            features.read_text("utf-8"), object_hook=lambda o: of.append(o.get("pythonClassName"))
        )
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{name}: {features.name} cannot be read ({brief(error)}). Prepare it again."
        ) from error
    other = [kind for kind in of if kind and not str(kind).startswith(_FEATURES)]
    if other:
        raise UserError(
            f"{name}: expected classes of {_FEATURES}* in features.json, got {other[0]!r}, which "
            "would be imported. Prepare it again from where you trust it."
        )


class _Records:
    """Undecoded records of the splits of a data set, by split and number."""

    def __init__(self, name: str, builder: Any, sizes: Mapping[str, int]):
        """Open them; raise UserError for a split that cannot be read."""
        import tensorflow_datasets as tfds

        self._name, self._of = name, {}
        # Skipping the decoder makes ids and labels cheap, and PIL decodes for every kind.
        decoders = {"image": tfds.decode.SkipDecoding()}
        for split, size in sizes.items():
            try:
                records = builder.as_data_source(split, decoders=decoders)
                records[size - 1]  # files are opened by the first read
            except Exception as error:
                raise UserError(
                    f"{name}: split {split!r} cannot be opened ({brief(error)}): truncated, "
                    'missing, or not prepared with file_format="array_record". Prepare it again.'
                ) from error
            self._of[split] = records

    def read(self, split: str, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Return records; raise UserError that names the first damaged one."""
        try:
            return self._of[split].__getitems__(rows)
        except Exception as error:
            if len(rows) > 1:  # which one is it?
                return [self.read(split, [row])[0] for row in rows]
            raise UserError(
                f"{self._name}: split {split!r}, record {rows[0]} is damaged ({brief(error)}). "
                "Prepare the dataset again."
            ) from error


def _id(record: dict[str, Any], number: str, class_name: str) -> str:
    for feature in ("id", "file_name", "filename"):
        if feature in record:
            id = record[feature].decode()
            named_only = feature != "id" and "/" not in id and class_name
            return f"{class_name}/{id}" if named_only else id
    return number


def _cache_file(folder: Path, splits: Sequence[str]) -> Path:
    """Return the path at which the index of these splits of a dataset is kept."""
    facts = hashlib.sha256(repr((_CACHED, str(folder), tuple(splits))).encode())
    for file in sorted(folder.iterdir()):
        stat = file.stat()
        facts.update(repr((file.name, stat.st_size, stat.st_mtime_ns)).encode())
        if file.suffix in (".json", ".txt"):
            facts.update(file.read_bytes())
    return cache_folder() / f"{folder.parent.name}-{facts.hexdigest()[:32]}.index.gz"


def _read_cached(path: Path, n: int) -> index.Index | None:
    """Read the index at the path; None if there is none, or a damaged one, which is made again."""
    try:
        found = index.read(path)
    except (FileNotFoundError, ValueError):
        return None
    return found if len(found.ids) == n else None


def find_prepared(name: str, data_dir: str) -> Path:
    """Find the one folder with the dataset_info.json of this dataset."""
    bundled = Path(str(resources.files("unlearn_jax.data"))) / "sample"
    root = Path(data_dir) if data_dir else bundled
    found = sorted(f.parent for f in (root / name).glob("dataset_info.json")) or sorted(
        f.parent for f in (root / name).glob("*/dataset_info.json")
    )
    if name and len(found) == 1:
        return found[0].resolve()
    there = sorted({str(f.parent.relative_to(root)) for f in root.glob("*/*/dataset_info.json")})
    if name and found:
        raise UserError(f"data.name: {name!r} is there in several versions; choose one: {there}.")
    call = f"tfds.builder({name or 'cifar10'!r}, data_dir={data_dir or 'DIR'!r}, "
    raise UserError(
        f"data: no prepared dataset {name!r} in {root}; found {there}. Prepare it once (this needs "
        'tensorflow) with: python -c "import tensorflow_datasets as tfds; '
        f"{call}file_format='array_record').download_and_prepare()\" and set data.data_dir, or "
        'use the bundled data.name="cifar10_sample" with data.data_dir="".'
    )
