"""Lists of labelled, encoded images: prepared tfds datasets (without TensorFlow), folders."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# Names for prepared datasets that come without their label file (label.labels.txt).
CLASS_NAMES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer")
    + ("dog", "frog", "horse", "ship", "truck"),
}


@dataclass(frozen=True)
class Listing:
    """A dataset before its images are decoded; `encoded(rows)` gives their image files."""

    name: str
    class_names: tuple[str, ...]
    ids: Sequence[str]
    labels: Int32[np.ndarray, "n"]
    splits: Mapping[str, range]
    encoded: Callable[[Sequence[int]], list[bytes]]


def list_tfds(name: str, data_dir: str, splits: Sequence[str], keep: bool) -> Listing:
    """The images of a prepared dataset, `keep`ing the encoded bytes in memory after listing them.

    Raises:
        ValueError: no such dataset or split, or a damaged one; the message names the record.
    """
    import tensorflow_datasets as tfds  # here: the other kinds do not need it

    folder = _find_prepared(name, data_dir)
    name = f"{folder.parent.name}/{folder.name}"
    try:
        builder = tfds.builder_from_directory(folder)
        features = builder.info.features
        sizes = {s: info.num_examples for s, info in builder.info.splits.items()}
    except Exception as error:
        raise ValueError(
            f"{name}: its metadata cannot be read ({brief(error)}). Prepare it again."
        ) from error
    check_splits(splits, sizes, name)
    if not {"image", "label"} <= set(features):
        raise ValueError(f"{name}: expected features image and label, found {sorted(features)}.")
    ranges = split_ranges(splits, [sizes[split] for split in splits])

    def open_records(split: str) -> Any:
        try:
            # Skipping the decoder makes ids and labels cheap, and PIL decodes for every kind.
            decoders = {"image": tfds.decode.SkipDecoding()}
            records = builder.as_data_source(split, decoders=decoders)
            records[sizes[split] - 1]  # files are opened by the first read
            return records
        except Exception as error:
            raise ValueError(
                f"{name}: split {split!r} cannot be opened ({brief(error)}): truncated, missing, "
                'or not prepared with file_format="array_record". Prepare it again.'
            ) from error

    def read_records(split: str, rows: Sequence[int]) -> list[dict[str, Any]]:
        try:
            return records[split].__getitems__(rows)
        except Exception as error:
            if len(rows) > 1:  # which one is it?
                return [read_records(split, [row])[0] for row in rows]
            raise ValueError(
                f"{name}: split {split!r}, record {rows[0]} is damaged ({brief(error)}). "
                "Prepare the dataset again."
            ) from error

    records = {split: open_records(split) for split in splits}
    ids, labels, encoded = [], [], []
    for split in splits:
        for first in range(0, sizes[split], 1024):
            rows = range(first, min(first + 1024, sizes[split]))
            for row, record in zip(rows, read_records(split, rows), strict=True):
                ids.append(record["id"].decode() if "id" in record else f"{split}_{row}")
                labels.append(int(record["label"]))
                if keep:
                    encoded.append(record["image"])

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

    names = tuple(features["label"].names)
    if names == numbers(len(names)):  # the label file is missing
        names = CLASS_NAMES.get(folder.parent.name, names)
    return Listing(
        name=name,
        class_names=names,
        ids=ids,
        labels=np.array(labels, np.int32),
        splits=ranges,
        encoded=read_images,
    )


def _find_prepared(name: str, data_dir: str) -> Path:
    """The one folder with the dataset_info.json of this dataset."""
    bundled = Path(str(resources.files("unlearn_jax.data"))) / "sample"
    root = Path(data_dir) if data_dir else bundled
    found = sorted(f.parent for f in (root / name).glob("dataset_info.json")) or sorted(
        f.parent for f in (root / name).glob("*/dataset_info.json")
    )
    if name and len(found) == 1:
        return found[0].resolve()
    there = sorted({str(f.parent.relative_to(root)) for f in root.glob("*/*/dataset_info.json")})
    if name and found:
        raise ValueError(f"data.name: {name!r} is there in several versions; choose one: {there}.")
    call = f"tfds.builder({name or 'cifar10'!r}, data_dir={data_dir or 'DIR'!r}, "
    raise ValueError(
        f"data: no prepared dataset {name!r} in {root}; found {there}. Prepare it once (this needs "
        'tensorflow) with: python -c "import tensorflow_datasets as tfds; '
        f"{call}file_format='array_record').download_and_prepare()\" and set data.data_dir, or "
        'use the bundled data.name="cifar10_sample" with data.data_dir="".'
    )


def list_folder(path: Path, splits: Sequence[str]) -> Listing:
    """The image files in `path/class/` (one split, "train") or `path/split/class/`, sorted.

    Raises:
        ValueError: no such folder or split, a split without images, files that are no images.
    """
    if not path.is_dir():
        raise ValueError(f"data.path: expected a folder with class sub-folders, got {str(path)!r}.")
    with_splits = any(_folders(child) for child in _folders(path))
    split_dirs = {d.name: d for d in _folders(path)} if with_splits else {"train": path}
    check_splits(splits, split_dirs, str(path))
    class_names = sorted({d.name for parent in split_dirs.values() for d in _folders(parent)})
    files, labels, counts = [], [], []
    for split in splits:
        before = len(files)
        for folder in _folders(split_dirs[split]):
            inside = [f for f in sorted(folder.iterdir()) if not f.name.startswith(".")]
            files += inside
            labels += [class_names.index(folder.name)] * len(inside)
        counts.append(len(files) - before)
        if not counts[-1]:
            raise ValueError(f"{path}: no images of split {split!r}; expected class/image.png.")
    other = [str(f) for f in files if f.suffix.lower() not in IMAGE_SUFFIXES or f.is_dir()]
    if other:
        raise ValueError(
            f"{path}: expected only images {IMAGE_SUFFIXES} in path/class or path/split/class, "
            f"found {some(other)}. Move them away or convert them."
        )
    return Listing(
        name=path.resolve().name,
        class_names=tuple(class_names),
        ids=[f.relative_to(path).as_posix() for f in files],
        labels=np.array(labels, np.int32),
        splits=split_ranges(splits, counts),
        encoded=lambda rows: [files[row].read_bytes() for row in rows],
    )


def check_splits(wanted: Sequence[str], found: Iterable[str], where: str) -> None:
    """Nothing if every wanted split was found; raises ValueError if not."""
    missing = [split for split in wanted if split not in found]
    if missing or len(set(wanted)) != len(wanted):
        raise ValueError(
            f"{where}: expected splits {tuple(wanted)}, each once; found {tuple(found)}. Set "
            "data.splits to splits that are there."
        )


def split_ranges(splits: Sequence[str], sizes: Sequence[int]) -> dict[str, range]:
    """The rows of each split when they lie one after the other."""
    ends = np.cumsum([0, *sizes]).tolist()
    return {s: range(a, b) for s, a, b in zip(splits, ends[:-1], ends[1:], strict=True)}


def _folders(path: Path) -> list[Path]:
    return sorted(d for d in path.iterdir() if d.is_dir() and not d.name.startswith("."))


def numbers(n: int) -> tuple[str, ...]:
    """The class names of classes without names: "0", "1", ..."""
    return tuple(str(i) for i in range(n))


def some(names: Sequence[str], limit: int = 5) -> str:
    """The first few names, quoted, and how many more there are; for messages."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more


def brief(error: Exception) -> str:
    """The kind of error and its first line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
