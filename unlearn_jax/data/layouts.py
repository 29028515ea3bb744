"""The files of a dataset as it is distributed: which image, which split, which class.

Nothing is read but names and lists. Hidden files are skipped, links are followed.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unlearn_jax.data.names import Ids, closest, find_images, read_text
from unlearn_jax.data.published import read_classes
from unlearn_jax.data.readers import folder_splits, list_folder, some, split_ranges
from unlearn_jax.registry import UserError

LAYOUTS = ("imagenet", "places365", "folder")
# Split -> folders that it may be called; the first that is there is taken.
_IMAGENET = {"train": ("train",), "validation": ("val", "validation")}
_PLACES = {
    "train": ("train_256", "data_256", "data_256_standard", "train_large", "data_large", "train"),
    "validation": ("val_256", "val_large", "val", "validation"),
}
_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True, slots=True)
class File:
    """One image file: its id and its path inside the source, which differ if it had no folder."""

    id: str
    path: str
    label: int


@dataclass(frozen=True)
class Found:
    """The classes in alphabetical order, and the files of each split, sorted by id.

    Notes say what a user should check.
    """

    class_names: tuple[str, ...]
    splits: Mapping[str, Sequence[File]]
    notes: tuple[str, ...] = ()


def find(
    layout: str,
    source: Path,
    *,
    val_labels: str = "",
    classes: str = "",
    lists: Sequence[str] = (),
) -> Found:
    """Return the files of a dataset.

    Args:
        layout: "imagenet", `{train,val}/{wnid}/*`, splits "train" and "validation";
            "places365", `{train_256,val_256}/{path}/*`, where a path such as b/bakery/shop is the
            class, or other names that its folders have (data_256, val_large, train, ...);
            "folder", `class/*`, `split/class/*` or, one class, images only.
            Of the first two, validation images may lie flat in their folder.
        source: the folder.
        val_labels: for flat validation images, a file with lines `name class` or `name label`;
            labels count the classes in alphabetical order from 0. Other columns are not read, and
            commas separate as well, so ImageNet's LOC_val_solution.csv is one. Places365's
            places365_val.txt is found in the source.
        classes: a list, see `published.read_classes`; only these classes are taken.
        lists: files of image paths, see `names.find_images`; only these images are taken.

    Raises:
        UserError: another layout, classes without images, files without a class, labels that do
            not count them, two files of one name, an unknown class or image.
    """
    if not source.is_dir():
        raise UserError(f"--source: expected a folder, got {str(source)!r}.")
    if layout not in LAYOUTS:
        raise UserError(f"--layout: expected one of {LAYOUTS}, got {layout!r}.")
    if layout == "folder":
        found = _folder(source)
    else:
        found = _splits_of_classes(layout, source, val_labels)
    if classes:
        found = _only_classes(found, classes)
    if layout != "folder":
        _check_classes(source, found)
        _check_names(layout, found)
    return _only_listed(found, lists) if lists else found


def _folder(source: Path) -> Found:
    listing = list_folder(source, list(folder_splits(source)))
    files = [
        File(id, id, int(label)) for id, label in zip(listing.ids, listing.labels, strict=True)
    ]
    splits = {split: files[rows.start : rows.stop] for split, rows in listing.splits.items()}
    return Found(listing.class_names, splits)


def _splits_of_classes(layout: str, source: Path, val_labels: str) -> Found:
    names = _IMAGENET if layout == "imagenet" else _PLACES
    there = {
        split: [n for n in choices if (source / n).is_dir()] for split, choices in names.items()
    }
    there = {split: found for split, found in there.items() if found}
    several = [found for found in there.values() if len(found) > 1]
    if several or not there:
        raise UserError(
            f"--source: {source} is not laid out like {layout}: expected one folder of each of "
            f"{tuple(names.values())}, found "
            f"{some(several[0] if several else _names(source)) or 'nothing'}. " + _hint(source)
        )
    paths: dict[str, list[tuple[str, str]]] = {}  # split -> (class, path inside the source)
    flat: dict[str, list[str]] = {}
    for split, (name,) in there.items():
        paths[split], flat[split] = _walk(source, name)
    known = sorted({c for found in paths.values() for c, _ in found})
    if layout == "imagenet":
        wrong = [c for c in known if not _WNID.fullmatch(c)]
        if wrong:
            raise UserError(
                f"{source}: expected class folders like n01440764, found {some(wrong)}. For other "
                "class folders use --layout=folder."
            )
    if flat.get("train"):
        raise UserError(
            f"{source}: expected train/CLASS/image, found files outside class folders: "
            f"{some(flat['train'])}. Unpack every archive into a folder of its own name."
        )
    notes: tuple[str, ...] = ()
    if flat.get("validation"):
        (name,) = there["validation"]
        beside = source / "places365_val.txt"
        if not val_labels and layout == "places365" and beside.exists():
            val_labels = str(beside)
        classes, notes = _read_val_labels(val_labels, source / name, flat["validation"], known)
        paths["validation"] += zip(classes, flat["validation"], strict=True)
    names_of = tuple(sorted({c for found in paths.values() for c, _ in found}))
    label = {c: i for i, c in enumerate(names_of)}
    splits = {}
    for split, found in paths.items():
        (name,) = there[split]
        files = [File(_id(p, c, name), p, label[c]) for c, p in found]
        splits[split] = sorted(files, key=lambda file: file.id)
    return Found(names_of, splits, notes)


def _walk(source: Path, name: str) -> tuple[list[tuple[str, str]], list[str]]:
    """List (class, path) of the files in class folders, and the paths of files outside of them."""
    inside, outside = [], []
    for folder, children, files in os.walk(source / name, followlinks=True):
        children[:] = sorted(c for c in children if not c.startswith("."))
        relative = Path(folder).relative_to(source / name).as_posix()
        for file in sorted(f for f in files if not f.startswith(".")):
            if relative == ".":
                outside.append(f"{name}/{file}")
            else:
                inside.append((relative, f"{name}/{relative}/{file}"))
    return inside, outside


def _id(path: str, class_name: str, folder: str) -> str:
    """Return the path as an id; a path without a folder gets its class as one."""
    if path.startswith(f"{folder}/{class_name}/"):
        return path
    return f"{folder}/{class_name}/{path.rpartition('/')[2]}"


def _read_val_labels(
    file: str, folder: Path, paths: Sequence[str], known: Sequence[str]
) -> tuple[list[str], tuple[str, ...]]:
    """Read the class of every path, and what numbers in the file mean, if it has some."""
    if not file:
        raise UserError(
            f"{folder}: {len(paths)} images lie outside class folders, such as {paths[0]!r}. Give "
            "their classes with --val_labels=FILE: lines `name class` or `name label`. ImageNet's "
            "LOC_val_solution.csv and Places365's places365_val.txt are such files."
        )
    table: dict[str, str] = {}
    for line in read_text(file, "--val_labels").splitlines():
        fields = re.split(r"[\s,]+", line.strip())
        if len(fields) < 2 or fields == ["ImageId", "PredictionString"]:
            continue
        name, value = fields[0].rpartition("/")[2], fields[1].strip("/")
        if name in table:
            raise UserError(f"--val_labels: {file} names {name} more than once.")
        table[name] = value
    missing = [p for p in paths if _stem(p) not in table and p.rpartition("/")[2] not in table]
    if missing:
        raise UserError(
            f"--val_labels: {file} does not have {len(missing)} of {len(paths)} images, such as "
            f"{missing[0]!r}. Its lines must be `name class` or `name label`."
        )
    whole = {path: path.rpartition("/")[2] for path in paths}
    values = [table[name if name in table else _stem(path)] for path, name in whole.items()]
    if not any(value.isdecimal() for value in {*values} - {*known}):
        return values, ()
    _check_numbers(file, table.values(), values, known)
    labels = [int(value) for value in values]
    examples = (
        f"label {label} means class {known[label]}, such as {paths[labels.index(label)]}"
        for label in sorted({min(labels), max(labels)})
    )
    note = (
        f"{file}: {'; '.join(examples)}. Labels are places in the sorted class folders, not "
        "in the order of a devkit; if one of these is wrong, write lines `name class`."
    )
    return [known[label] for label in labels], (note,)


def _check_numbers(
    file: str, every: Iterable[str], used: Sequence[str], known: Sequence[str]
) -> None:
    """Check that the labels of a file, and those of the images at hand, count the classes."""
    names = [value for value in used if not value.isdecimal()]
    numbers = [int(value) for value in every if value.isdecimal()]
    low, high = min(numbers), max(numbers)
    if names:
        wrong = f"names of classes, such as {names[0]!r}, and numbers, such as {high}"
    elif (low, high) == (0, len(known) - 1):
        return
    else:
        wrong = f"labels {low}..{high}, but the training split has {len(known)} classes"
        wrong += ": they count from 1" if (low, high) == (1, len(known)) else ""
    raise UserError(
        f"--val_labels: {file} has {wrong}; expected labels 0..{len(known) - 1} for all of them, "
        "sorted. Have all class folders there, or write lines `name class` (a devkit's numbers are "
        "in another order)."
    )


def _stem(path: str) -> str:
    return Path(path).stem


def _check_classes(source: Path, found: Found) -> None:
    """Check that every split has images of every class."""
    for split, files in found.splits.items():
        missing = sorted({*range(len(found.class_names))} - {file.label for file in files})
        if missing:
            names = [found.class_names[label] for label in missing]
            raise UserError(
                f"{source}: the {split} split has no image of {len(missing)} of "
                f"{len(found.class_names)} classes: {some(names)}. Complete the copy, or leave "
                "them out with --classes=FILE, a list of those to take."
            )


def _check_names(layout: str, found: Found) -> None:
    """Check that no two files share a name where the original names are unique."""
    seen: dict[str, str] = {}
    twice = []
    for split, files in found.splits.items():
        for file in files:
            name = file.id.rpartition("/")[2]
            if layout == "places365":
                if split == "train":  # numbered anew in every class
                    continue
                name = name[name.find("Places365_val_") :] if "Places365_val_" in name else name
            if name in seen:
                twice.append(f"{seen[name]} and {file.path}")
            seen[name] = file.path
    if twice:
        raise UserError(
            f"{len(twice)} file names occur twice, so an image is there twice, or in a wrong "
            f"class: {some(twice)}. Remove one of each."
        )


def _only_classes(found: Found, file: str) -> Found:
    wanted = read_classes(file)
    unknown = [name for name in wanted if name not in found.class_names]
    if unknown:
        raise UserError(
            f"--classes: {file}: there is no class {unknown[0]!r}."
            f"{closest(unknown[0], found.class_names)} {len(unknown)} such names."
        )
    names = tuple(sorted(wanted))
    label = {found.class_names.index(name): i for i, name in enumerate(names)}
    splits = {
        split: [File(f.id, f.path, label[f.label]) for f in files if f.label in label]
        for split, files in found.splits.items()
    }
    return replace(found, class_names=names, splits=splits)


def _only_listed(found: Found, lists: Sequence[str]) -> Found:
    files = [file for of_split in found.splits.values() for file in of_split]
    ranges = split_ranges(list(found.splits), [len(files) for files in found.splits.values()])
    ids = Ids([file.id for file in files], ranges)
    kept = {
        ids.ids[row] for file in lists for row in find_images(file, ids, "--list", "the source")[0]
    }
    splits = {s: [f for f in of_split if f.id in kept] for s, of_split in found.splits.items()}
    return replace(found, splits={s: of_split for s, of_split in splits.items() if of_split})


def _names(path: Path) -> list[str]:
    return sorted(name for name in os.listdir(path) if not name.startswith("."))


def _hint(source: Path) -> str:
    if any(_WNID.fullmatch(name) for name in _names(source)):
        return "It has class folders itself: give the folder above it, or use --layout=folder."
    return "Give the folder that holds them, or use --layout=folder for class folders of any name."
