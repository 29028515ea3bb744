"""Published lists of classes and images, and the evaluation set of the published protocol.

The lists are those of Li et al. (ICLR 2024), protocol part 3: a JSON file of ImageNet's classes, a
text file of Places365's, CSV files of image paths.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from unlearn_jax import files
from unlearn_jax.data.names import Ids, find_images, labels_of, read_text
from unlearn_jax.data.readers import some
from unlearn_jax.data.sampling import Rows, first_per_class
from unlearn_jax.data.sources import Source
from unlearn_jax.registry import UserError

_PLACES = {"forget": slice(50, 100), "retain": slice(0, 50)}


def read_classes(file: str | Path, role: str = "") -> tuple[str, ...]:
    """Read the classes that a list names, for a config's `request.classes` or `retain.classes`.

    * JSON, `{"n01443537": 0, ...}`: numbers below 100 are to be forgotten, others kept.
    * 365 lines like `/b/badlands`, the release's order of Places365: lines 51 to 100 are to be
      forgotten, lines 1 to 50 kept.
    * Any other text: one class per line; all of them, whatever the role.

    Args:
        file: the list.
        role: "forget", "retain", or "" for every class in it.

    Raises:
        UserError: not such a file, or a class twice.
    """
    text = read_text(file, "classes")
    if text.lstrip().startswith("{"):
        try:
            numbers = files.parse(text.encode())
            names = [
                name
                for name, number in sorted(numbers.items(), key=lambda item: item[1])
                if not role or (number < 100) == (role == "forget")
            ]
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{file}: expected JSON like {{'n01443537': 0}} ({error}). Write one class a line."
            ) from error
    else:
        names = [line.strip() for line in text.splitlines()]
        names = [name for name in names if name and not name.startswith("#")]
        if role and len(names) == 365 and all(name.startswith("/") for name in names):
            names = names[_PLACES[role]]
        names = [name.lstrip("/") for name in names]
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice or not names:
        raise UserError(f"{file}: expected every class once, got {some(twice) or 'none'}.")
    return tuple(names)


def evaluation_rows(
    source: Source,
    *,
    forget: Iterable[str | int],
    retain: Iterable[str | int],
    split: str = "validation",
    per_class: int = 0,
    list_file: str | Path = "",
) -> Mapping[str, Rows]:
    """Select the images that the protocol evaluates on (part 3): {"forget": rows, "retain": rows}.

    ImageNet: all 50 validation images of the 100 + 100 classes, in the order of the published list
    of 10,000 if it is given. Places365: `per_class=100`, the first 100 of the 50 + 50 classes.

    Args:
        source: must have the split.
        forget: classes, by name or number.
        retain: classes.
        split: where the images are.
        per_class: the first so many of each class, in the source's order; 0: all.
        list_file: ids or paths of images; only these, in this order.

    Returns:
        Rows in the order of the list, else class by class in the order given.

    Raises:
        UserError: an unknown class or image, a class in both or without images there.
    """
    if split not in source.splits:
        raise UserError(
            f"evaluation: {source.name} has no split {split!r}, only {tuple(source.splits)}. Add "
            "it to data.splits."
        )
    rows = np.array(source.splits[split], np.int64)
    if list_file:
        ids = Ids([source.ids[row] for row in rows], {split: range(len(rows))}, source.root)
        rows = rows[find_images(list_file, ids, "evaluation: list_file", source.name)[0]]
    labels = {
        role: list(dict.fromkeys(labels_of(source, names, f"evaluation: {role}").values()))
        for role, names in (("forget", tuple(forget)), ("retain", tuple(retain)))
    }
    both = sorted(set(labels["forget"]) & set(labels["retain"]))
    if both:
        names = [source.class_names[label] for label in both]
        raise UserError(f"evaluation: {some(names)} cannot be both forget and retain classes.")
    chosen = {}
    for role, wanted in labels.items():
        missing = np.setdiff1d(wanted, source.labels[rows])
        if missing.size:
            names = [source.class_names[label] for label in missing]
            raise UserError(
                f"evaluation: no {split} image of the {role} classes {some(names)} in "
                f"{list_file or source.name}."
            )
        if list_file:
            of_role = rows[np.isin(source.labels[rows], wanted)]
            chosen[role] = first_per_class(of_role, source.labels, per_class or len(rows))
        else:
            parts = [rows[source.labels[rows] == label] for label in wanted]
            chosen[role] = np.concatenate([part[: per_class or None] for part in parts])
    return chosen
