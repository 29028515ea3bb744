"""Lists of labelled, encoded images, and folders of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from unlearn_jax.registry import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


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


def folder_splits(path: Path) -> dict[str, Path]:
    """Find the folder of each split: those in `path` with class folders, else `path` as "train".

    Raises:
        UserError: no such folder.
    """
    if not path.is_dir():
        raise UserError(f"data.path: expected a folder with class sub-folders, got {str(path)!r}.")
    with_splits = any(folders(child) for child in folders(path))
    return {d.name: d for d in folders(path)} if with_splits else {"train": path}


def list_folder(path: Path, splits: Sequence[str]) -> Listing:
    """List the image files in `path/class/` (one split, "train") or `path/split/class/`, sorted.

    A folder with images only, such as COCO's train2017, is one class of that name.

    Raises:
        UserError: no such folder or split, a split without images, files that are no images.
    """
    split_dirs = folder_splits(path)
    check_splits(splits, split_dirs, str(path))
    names = sorted({d.name for parent in split_dirs.values() for d in folders(parent)})
    files, labels, counts = [], [], []
    for split in splits:
        before = len(files)
        for folder in folders(split_dirs[split]) if names else [path]:
            inside = visible(folder)
            files += inside
            labels += [names.index(folder.name) if names else 0] * len(inside)
        counts.append(len(files) - before)
        if not counts[-1]:
            raise UserError(f"{path}: no images of split {split!r}; expected class/image.png.")
    other = [str(f) for f in files if f.suffix.lower() not in IMAGE_SUFFIXES or f.is_dir()]
    if other:
        raise UserError(
            f"{path}: expected only images {IMAGE_SUFFIXES} in path/class or path/split/class, "
            f"found {some(other)}. Move them away or convert them."
        )
    return Listing(
        name=path.resolve().name,
        class_names=tuple(names or [path.resolve().name]),
        ids=[f.relative_to(path).as_posix() for f in files],
        labels=np.array(labels, np.int32),
        splits=split_ranges(splits, counts),
        encoded=lambda rows: [files[row].read_bytes() for row in rows],
    )


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


def folders(path: Path) -> list[Path]:
    """List the folders inside a folder, sorted, without hidden ones."""
    return [child for child in visible(path) if child.is_dir()]


def visible(path: Path) -> list[Path]:
    """List what is inside a folder, sorted, without hidden files."""
    return sorted(child for child in path.iterdir() if not child.name.startswith("."))


def numbers(n: int) -> tuple[str, ...]:
    """Name classes that have no names: "0", "1", ..."""
    return tuple(str(i) for i in range(n))


def some(names: Sequence[str], limit: int = 5) -> str:
    """Quote the first few names and say how many more there are; for messages."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more


def brief(error: Exception) -> str:
    """Describe an error in one line: its kind and its first line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
