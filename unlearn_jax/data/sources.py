"""Random access to labelled images: prepared tfds datasets, records, image folders, arrays.

A source has one index space: row 0..n-1, over its splits one after the other. No TensorFlow.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int32, Shaped, UInt8, UInt64
from PIL import Image
from tqdm import tqdm

from unlearn_jax import files, registry
from unlearn_jax.data import photos, preprocess
from unlearn_jax.data.mask_files import Masks
from unlearn_jax.data.preprocess import Crops, View
from unlearn_jax.data.readers import (
    AS_IT_IS,
    Listing,
    Survey,
    check_splits,
    list_folder,
    numbers,
    some,
    split_ranges,
)
from unlearn_jax.data.records import list_records
from unlearn_jax.data.sizes import Size, settled, sides
from unlearn_jax.data.tfds_records import list_tfds
from unlearn_jax.registry import UserError, brief

Keys = UInt64[np.ndarray, "b 2"] | None
_MOST_CLASSES = 100_000  # without names; a label above is no class but a mistake
NPZ_NAMES = ("id", "split", "class_names")  # optional text arrays of an .npz file


@dataclass(frozen=True)
class Source:
    """Labelled images by row; everything but the pixels is in memory.

    Attributes:
        name: of the dataset, for messages and manifests.
        class_names: name of label 0, 1, ...; the label's own number where nothing else is known.
        ids: one unique name per row, stable when the dataset is prepared again.
        labels: one class per row.
        splits: rows of each split, by name.
        read: the images of some rows; call `fetch`, which checks the rows first.
        augmented: whether training shall see random views, which `fetch` makes of keys.
        original: the image of a row as it is stored, before it is made to fit.
        root: the folder that ids are paths in; "" if there is none.
        proxy: name of the data set in the split "proxy"; "" if there is none.
        survey: files that could not be read, and what was done to others.
    """

    name: str
    class_names: tuple[str, ...]
    ids: Sequence[str]
    labels: Int32[np.ndarray, "n"]
    splits: Mapping[str, range]
    read: Callable[[Int[np.ndarray, "b"], Keys], UInt8[np.ndarray, "b h w 3"]]
    augmented: bool = False
    original: Callable[[int], UInt8[np.ndarray, "h w 3"]] | None = None
    root: str = ""
    proxy: str = ""
    survey: Survey = AS_IT_IS
    masks: Masks | None = None

    def __post_init__(self) -> None:
        n = len(self.labels)
        if len(self.ids) != n:
            raise UserError(f"{self.name}: expected one id per label, got {len(self.ids)} and {n}.")
        if len(set(self.ids)) != n:
            twice = [i for i, count in Counter(self.ids).items() if count > 1]
            raise UserError(f"{self.name}: ids must be unique; {some(twice)} occur more than once.")
        if len(set(self.class_names)) != len(self.class_names):
            raise UserError(f"{self.name}: class names must be unique, got {self.class_names}.")
        bad = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.class_names)))
        if bad.size:
            raise UserError(
                f"{self.name}: expected labels in 0..{len(self.class_names) - 1} (there are "
                f"{len(self.class_names)} class names), got {self.labels[bad[0]]} at index "
                f"{bad[0]}; {bad.size} such labels."
            )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.labels)

    def fetch(
        self, indices: Int[np.ndarray, "b"], keys: Keys = None
    ) -> UInt8[np.ndarray, "b h w 3"]:
        """Fetch the images of these rows, in this order, values 0..255.

        Args:
            indices: the rows.
            keys: Philox keys, one per row, for the random views of an augmented source.
        """
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(
                f"{self.name}: expected rows in 0..{len(self) - 1}, got {indices.min()}.."
                f"{indices.max()}. A split made for another dataset?"
            )
        if keys is not None and not self.augmented:
            raise UserError(f"{self.name}: it was opened without random views (crops).")
        return self.read(indices, keys)


def open_source(
    *,
    kind: str,
    name: str = "",
    data_dir: str = "",
    path: str = "",
    image_size: Size,
    splits: Sequence[str] = ("train", "test"),
    cache: bool = True,
    resize: str = "none",
    crops: Crops | None = None,
    exif: bool = False,
) -> Source:
    """Open a source of RGB images of the height and width `image_size`.

    Args:
        kind: "tfds", a dataset prepared with file_format="array_record" under
            `data_dir/name/version`; name "cifar10_sample" with no data_dir is the bundled one.
            "records", what `python -m unlearn_jax.prepare` wrote to `path`; the id is the path of
            the original image.
            "folder", images (`photos.FORMATS`) in `path/class/` (one split, "train"),
            `path/split/class/` or, one class, `path/`; the id is the path inside `path`. Every file
            is read once at the start; those that are no images are left out, see `photos.survey`.
            "arrays", an .npz file at `path` with `image` (uint8, or float in [0, 1]), `label` and
            optionally `id`, `split`, `class_names`.
        name: of the tfds dataset, optionally with its version: "cifar10" or "cifar10/3.0.2".
        data_dir: the tfds data directory.
        path: the folder or the .npz file.
        image_size: of the images, in pixels: one number for squares, or (height, width).
        splits: the splits wanted, in this order.
        cache: decode (and resize) every image now, into memory, which makes `fetch` an array
            look-up. Otherwise images are decoded on every fetch.
        resize: how images of another size are made to fit, see `preprocess.fit`; "none": they are
            an error.
        crops: the random views that training sees; they are cut from the original images.
        exif: turn images as the camera says.

    Raises:
        UserError: missing, damaged or unsuitable data; the message names it and says what to do.
    """
    if not splits:
        raise UserError('data.splits: expected at least one split, such as ("train", "test").')
    view = View(settled(image_size), resize, crops, exif)
    if crops and cache and resize != "none":
        raise UserError(
            f"data.augment: views are cut from original images, but data.cache=True keeps what "
            f"data.resize={resize!r} makes of them. Set data.cache=False."
        )
    where = Where(name, data_dir, path, tuple(splits), cache)
    return find(kind)(where, view)


def from_arrays(
    images: Shaped[np.ndarray, "..."],
    labels: Shaped[np.ndarray, "..."],
    *,
    ids: Sequence[str] | None = None,
    split: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "arrays",
    splits: Sequence[str] | None = None,
) -> Source:
    """Make a source of arrays in memory.

    Args:
        images: [n, h, w, 3], uint8, or float with values in [0, 1].
        labels: [n], the integer class of each image.
        ids: unique names; "train_0", "train_1", ... (split and row) if None.
        split: the split of each image; all "train" if None.
        class_names: "0", "1", ... if None.
        name: of the dataset.
        splits: the splits wanted, in this order; all, in order of appearance, if None.

    Raises:
        UserError: values, types or lengths that do not fit; the message names the first index.
    """
    if images.ndim != 4 or images.shape[3] != 3:
        raise UserError(f"{name}: expected images [n, h, w, 3], got {list(images.shape)}.")
    images = _as_uint8(images, name)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{name}: expected integer labels [n], got {labels.dtype} {list(labels.shape)}."
        )
    of_row = ["train"] * len(labels) if split is None else [str(s) for s in split]
    if not len(images) == len(labels) == len(of_row) > 0:
        raise UserError(
            f"{name}: expected the same number (> 0) of images, labels and splits, got "
            f"{len(images)}, {len(labels)} and {len(of_row)}."
        )
    most = _MOST_CLASSES if class_names is None else len(class_names)
    bad = np.flatnonzero((labels < 0) | (labels >= most))
    if bad.size:
        expected = f"{most} class names" if class_names is not None else f"at most {most} classes"
        row = int(bad[0])
        raise UserError(
            f"{name}: expected labels from 0 for {expected}, got {labels[row]} at index {row}. "
            "Number the classes 0, 1, 2, … or give class_names."
        )
    ids = [f"{s}_{i}" for i, s in enumerate(of_row)] if ids is None else [str(i) for i in ids]
    if len(ids) != len(labels):
        raise UserError(f"{name}: expected {len(labels)} ids, got {len(ids)}.")
    if class_names is None:
        class_names = numbers(int(labels.max()) + 1)
    found = list(dict.fromkeys(of_row))
    wanted = found if splits is None else list(splits)
    check_splits(wanted, found, name)
    rows = [[i for i, s in enumerate(of_row) if s == w] for w in wanted]
    order = np.array([i for part in rows for i in part], np.int64)
    images = images[order]
    return Source(
        name=name,
        class_names=tuple(str(c) for c in class_names),
        ids=[ids[i] for i in order],
        labels=labels[order].astype(np.int32),
        splits=split_ranges(wanted, [len(part) for part in rows]),
        read=lambda indices, keys: images[indices],
        original=lambda row: images[row],
    )


def _open_npz(path: Path, view: View, splits: Sequence[str]) -> Source:
    try:
        arrays = files.unzip(files.regular(path))
    except Exception as error:  # no file, no zip, a bare .npy, truncated, pickled objects
        raise UserError(
            f"data.path: expected an .npz file without Python objects, got {str(path)!r} "
            f"({brief(error)}). Write it with np.savez(path, image=..., label=...)."
        ) from error
    if not {"image", "label"} <= set(arrays):
        raise UserError(f"{path}: expected arrays image and label, found {sorted(arrays)}.")
    image, (height, width) = arrays["image"], sides(view.size)
    if image.ndim != 4 or image.shape[1:] != (height, width, 3):
        raise UserError(
            f"{path}: expected image [n, {height}, {width}, 3], got {image.shape}. Set "
            "data.image_size, or resize and repeat channels beforehand."
        )
    with files.of_others(path, f"names in the arrays {', '.join(NPZ_NAMES)}"):
        given = {key: arrays[key].astype(str) for key in NPZ_NAMES if key in arrays}
        names = {key: values.tolist() for key, values in given.items()}
    for key, values in names.items():
        if given[key].ndim != 1:
            raise UserError(
                f"{path}: expected {key} as a list of names, got one value, {values!r}."
            )
    source = from_arrays(
        image,
        arrays["label"],
        ids=names.get("id"),
        split=names.get("split"),
        class_names=names.get("class_names"),
        name=path.stem,
        splits=splits,
    )
    if not view.crops:
        return source
    return replace(source, read=_with_views(source.fetch, view), augmented=True)


def _from_listing(listing: Listing, view: View, cache: bool) -> Source:
    """Make the source of a listing; it decodes images now if `cache`, else on every fetch."""
    shape = (len(listing.ids), *sides(view.size), 3)
    if listing.sizes is not None:
        for row in np.flatnonzero((listing.sizes != view.pixels).any(1))[:1].tolist():
            width, height = listing.sizes[row].tolist()
            preprocess.check_size((width, height), listing.ids[row], view)

    def decode(rows: Int[np.ndarray, "b"], keys: Keys = None) -> UInt8[np.ndarray, "b h w 3"]:
        images = np.empty((len(rows), *shape[1:]), np.uint8)
        for i, (row, data) in enumerate(zip(rows, listing.encoded(rows.tolist()), strict=True)):
            image = photos.decode(data, listing.ids[row], view.exif)
            images[i] = (
                preprocess.fit(image, view, listing.ids[row])
                if keys is None
                else preprocess.random_view(image, view, keys[i])
            )
        return images

    known = {f.name: getattr(listing, f.name) for f in fields(listing)}
    del known["encoded"], known["sizes"]
    known["augmented"] = view.crops is not None

    def original(row: int) -> UInt8[np.ndarray, "h w 3"]:
        return np.asarray(photos.decode(listing.encoded([row])[0], listing.ids[row], view.exif))

    known["original"] = original
    if not cache:
        return Source(**known, read=decode)
    memory = files.memory()
    if math.prod(shape) > memory / 2:
        raise UserError(
            f"{listing.name}: {math.prod(shape) / 2**30:.0f} GiB of decoded images are too much "
            f"for {memory / 2**30:.0f} GiB of memory. Set data.cache=False."
        )
    images = np.empty(shape, np.uint8)

    def decode_into_cache(row: int) -> None:
        images[row] = decode(np.array([row]))[0]

    _for_all_rows(listing, decode_into_cache)
    return Source(**known, read=_with_views(lambda rows: images[rows], view))


def _with_views(fetch: Callable[..., Any], view: View) -> Callable[..., Any]:
    """Return the `read` function of a source whose images, of the right size, are in memory."""

    def read(rows: Int[np.ndarray, "b"], keys: Keys) -> UInt8[np.ndarray, "b h w 3"]:
        images = fetch(rows)
        for i, key in enumerate(() if keys is None else keys):
            images[i] = preprocess.random_view(Image.fromarray(images[i]), view, key)
        return images

    return read


def _for_all_rows(listing: Listing, function: Callable[[int], Any]) -> None:
    """Call the function for every row, in threads; raise one error that lists all failed rows."""

    def attempt(row: int) -> str | None:
        try:
            function(row)
        except (ValueError, OSError) as error:
            return str(error)

    n = len(listing.ids)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(attempt, range(n))
        bar = tqdm(results, f"reading {listing.name}", total=n, delay=2, unit="image", disable=None)
        errors = [error for error in bar if error]
    if errors:
        more = f"\n  and {len(errors) - 10} more" if len(errors) > 10 else ""
        listed = "".join(f"\n  {error}" for error in errors[:10])
        raise UserError(f"{listing.name}: {len(errors)} of {n} images are bad:{listed}{more}")


def _as_uint8(images: Shaped[np.ndarray, "n h w 3"], name: str) -> UInt8[np.ndarray, "n h w 3"]:
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise UserError(f"{name}: expected uint8 images or floats in [0, 1], got {images.dtype}.")
    good = (images >= 0) & (images <= 1)  # False for NaN, too
    bad = np.flatnonzero(~good.all(axis=(1, 2, 3)))
    if bad.size:
        raise UserError(
            f"{name}: expected finite floats in [0, 1] (or uint8), got other values in {bad.size} "
            f"images, the first at index {bad[0]}: range {images[bad[0]].min()} to "
            f"{images[bad[0]].max()}."
        )
    return np.rint(images * 255).astype(np.uint8)


class Where(NamedTuple):
    """Where images are, as `config.data` says it; see `open_source`."""

    name: str
    data_dir: str
    path: str
    splits: tuple[str, ...]
    cache: bool


def _open_tfds(where: Where, view: View) -> Source:
    listing = list_tfds(where.name, where.data_dir, where.splits, keep=where.cache)
    return _from_listing(listing, view, where.cache)


def _open_folder(where: Where, view: View) -> Source:
    if not where.path:  # which would be the current folder
        raise UserError(
            "data.path: expected a folder of images, got ''. Set --config.data.path=DIR."
        )
    listing = photos.survey(list_folder(Path(where.path), where.splits), where.path, view.exif)
    return replace(_from_listing(listing, view, where.cache), root=where.path)


SOURCES: dict[str, Callable[[Where, View], Source]] = {
    "tfds": _open_tfds,
    "records": lambda of, view: _from_listing(
        list_records(Path(of.path), of.splits), view, of.cache
    ),
    "folder": _open_folder,
    "arrays": lambda where, view: _open_npz(Path(where.path), view, where.splits),
}


def find(kind: str) -> Callable[[Where, View], Source]:
    """Return what opens a kind of data: one of `SOURCES`, or that of a "package.module:function".

    One of your own gets a `Where` and a `preprocess.View`, and returns a `Source`, for example by
    `from_arrays`.
    """
    return registry.find(SOURCES, kind, "data source")
