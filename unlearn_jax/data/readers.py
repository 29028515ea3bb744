"""Lists of labelled, encoded images, and folders of them."""

import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, NoReturn

import numpy as np
from jaxtyping import Int32

from unlearn_jax.registry import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
IMAGE_SUFFIXES += (".pgm", ".pbm", ".avif", ".heic", ".heif")
MAX_BYTES = 2**30  # of an image file
_SPLIT = re.compile("(train|test)(ing)?([^a-z].*)?|val(id|idation)?([^a-z].*)?", re.I)


class Survey(NamedTuple):
    """What was found when all files were read: reasons of bad ones by id, how others were changed.

    Attributes:
        bad: why a file is in no split, by its id.
        composed: how many images have something transparent, which was composed on a colour.
        exif: whether images were turned as the camera says.
    """

    bad: Mapping[str, str] = MappingProxyType({})
    composed: int = 0
    exif: bool = False


AS_IT_IS = Survey()


@dataclass(frozen=True)
class Listing:
    """A dataset before its images are decoded; `encoded(rows)` gives their image files.

    Sizes are (width, height), where they are known without reading the files.
    """

    name: str
    class_names: tuple[str, ...]
    ids: Sequence[str]
    labels: Int32[np.ndarray, "n"]
    splits: Mapping[str, range]
    encoded: Callable[[Sequence[int]], list[bytes]]
    sizes: Int32[np.ndarray, "n 2"] | None = None
    survey: Survey = AS_IT_IS


def folder_splits(path: Path, wanted: Sequence[str] = ()) -> dict[str, Path]:
    """Find the folder of each split: those in `path` that hold classes, else `path` as "train".

    A folder that holds images is a class, whatever folders are inside it.

    Args:
        path: the folder.
        wanted: names of splits; if none is there, folders of other names than splits have, such as
            2024/05, are classes.

    Raises:
        UserError: no such folder, or a split with images outside its classes.
    """
    if not path.is_dir():
        raise UserError(f"data.path: expected a folder with class sub-folders, got {str(path)!r}.")
    there = {name: path / name for name in _inside(path)[0]}
    nested = {name: _inside(folder) for name, folder in there.items()}
    images = {name: [f for f in files if is_image(f)] for name, (_, files) in nested.items()}
    nested = {name for name, (folders, _) in nested.items() if folders}
    named = {name for name in nested if name in wanted or _SPLIT.fullmatch(name)}
    for name in sorted(named):
        if images[name]:
            raise UserError(
                f"{path / name}: holds images, such as {images[name][0]!r}, and folders, so it may "
                "be a class or a split of classes. Move the images into a class folder, or the "
                "folders away."
            )
    classes = "train" in wanted and not {*wanted} & {*there}
    if named or (nested and not any(images.values()) and not classes):
        return there
    return {"train": path}


def list_folder(path: Path, splits: Sequence[str]) -> Listing:
    """List the files in `path/class/` (one split, "train") or `path/split/class/`, sorted.

    Folders inside a class belong to it. Images in `path` itself, such as COCO's train2017, are a
    class of its name. Files that are no images are listed, too.

    Raises:
        UserError: no such folder or split, a split without files.
    """
    found = folder_splits(path, splits)
    check_splits(splits, found, str(path))
    own, loose = path.resolve().name, []
    names = sorted({name for folder in found.values() for name in _inside(folder)[0]})
    if found == {"train": path}:
        loose = _inside(path)[1]
        if names and not any(map(is_image, loose)):
            loose = []  # a list, a README
        names = sorted({*names, own}) if loose or not names else names
    ids, labels, counts = [], [], []
    for split in splits:
        before = len(ids)
        for label, name in enumerate(names):
            inside = _walk(found[split], name) + (loose if name == own else [])
            prefix = "" if found[split] == path else f"{split}/"
            ids += [f"{prefix}{file}" for file in inside]
            labels += [label] * len(inside)
        counts.append(len(ids) - before)
        if not counts[-1]:
            raise UserError(f"{path}: no images of split {split!r}; expected class/image.png.")
    return Listing(
        name=own,
        class_names=tuple(names),
        ids=ids,
        labels=np.array(labels, np.int32),
        splits=split_ranges(splits, counts),
        encoded=lambda rows: [read_file(path / ids[row], ids[row]) for row in rows],
    )


def read_file(path: Path, id: str) -> bytes:
    """Return the bytes of a regular file or a link to one; never wait for a pipe.

    Raises:
        UserError: it is none, or larger than MAX_BYTES; the message starts with the id.
        OSError: it is not there, or cannot be read.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{id}: expected an image file, got a folder, a pipe or a device.")
    if found.st_size > MAX_BYTES:
        raise UserError(f"{id}: expected {MAX_BYTES} bytes at most, got {found.st_size}.")
    return path.read_bytes()


def is_image(name: str) -> bool:
    """Tell whether a file is an image, by its name only."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def _inside(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the other entries of a folder, without hidden ones."""
    with os.scandir(folder) as entries:
        shown = sorted((e.name, e.is_dir()) for e in entries if not e.name.startswith("."))
    return [name for name, is_dir in shown if is_dir], [n for n, is_dir in shown if not is_dir]


def _walk(root: Path, name: str) -> list[str]:
    """Return the paths from root of all files in a folder of it, and of links to folders."""
    found: list[list[str]] = []
    if not (root / name).is_dir():  # a class that another split has
        return []
    for folder, inside, names in os.walk(root / name, onerror=_raise):
        links = [n for n in inside if os.path.islink(os.path.join(folder, n))]
        inside[:] = [n for n in inside if not n.startswith(".")]
        at = os.path.relpath(folder, root)
        found += [f"{at}/{n}".split("/") for n in (*names, *links) if not n.startswith(".")]
    return ["/".join(parts) for parts in sorted(found)]


def _raise(error: OSError) -> NoReturn:
    raise error


def check_splits(wanted: Sequence[str], found: Iterable[str], where: str) -> None:
    """Check that every wanted split was found; raise UserError if not."""
    missing = [split for split in wanted if split not in found]
    if missing or len(set(wanted)) != len(wanted):
        raise UserError(
            f"{where}: expected splits {tuple(wanted)}, each once; found {tuple(found)}. Set "
            "data.splits to splits that are there."
        )


def split_ranges(splits: Sequence[str], sizes: Sequence[int]) -> dict[str, range]:
    """Return the rows of each split when they lie one after the other."""
    ends = np.cumsum([0, *sizes]).tolist()
    return {s: range(a, b) for s, a, b in zip(splits, ends[:-1], ends[1:], strict=True)}


def numbers(n: int) -> tuple[str, ...]:
    """Name classes that have no names: "0", "1", ..."""
    return tuple(str(i) for i in range(n))


def some(names: Sequence[str], limit: int = 5) -> str:
    """Quote the first few names and say how many more there are; for messages."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more
