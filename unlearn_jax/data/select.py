"""Rows to forget and rows to keep, as sections of a config name them.

The protocol repeats the smaller of the two sets until both are equally large. There is no need to:
batches have a fixed share of forget rows (`data.make_train`), whatever the sizes of the sets.
"""

import difflib
import hashlib
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unlearn_jax.data import copies
from unlearn_jax.data.copies import Hashes
from unlearn_jax.data.names import explain, find_images, ids_of, labels_of, line_in
from unlearn_jax.data.readers import some
from unlearn_jax.data.sampling import Rows, first_per_class, sample_fraction, sample_per_class
from unlearn_jax.data.sources import Source
from unlearn_jax.registry import UserError

_FORGET, _RETAIN = 1, 2  # random streams
COPIES = ("refuse", "forget", "keep")
_PAIRS = 200  # of copies, that a manifest lists
KINDS = ("complement", "subset", "classes", "other_classes", "ids", "proxy", "none")


def select(
    source: Source, request: Mapping[str, Any], trainable: Rows
) -> tuple[Rows, dict[str, Any], list[str]]:
    """Return the rows that a request names, its record, and what was understood, in lines.

    Args:
        source: the data set.
        request: the section of a config, see `splits.resolve`.
        trainable: the rows that a model may have been trained on, which classes, fractions and
            predicates choose from. Ids name any row of the training split.

    Raises:
        UserError: an unknown class, id or option, or a predicate that fails.
    """
    said: list[str] = []
    match choice(request, "request", "kind", ("classes", "random", "ids", "predicate")):
        case "classes":
            labels = labels_of(source, option(request, "request", "classes"), "request.classes")
            if not labels:
                raise UserError('request.classes: expected names, as ("cat",), got none.')
            chosen = _of_classes(source, trainable, list(labels.values()))
            said = explain(source, labels, trainable)
            record = {"classes": [source.class_names[c] for c in sorted({*labels.values()})]}
        case "random":
            fraction = fraction_of(request, "request")
            seed = option(request, "request", "seed")
            chosen = sample_fraction(trainable, source.labels, fraction, [seed, _FORGET])
            record = {"fraction": fraction, "seed": seed}
        case "ids":
            chosen, record, said = _listed(source, request, "request", "forget")
        case _:
            record = _file(request, "request")
            answers = [_predicate(source, Path(request["file"]), trainable) for _ in range(2)]
            if answers[0] != answers[1]:
                raise UserError(
                    f"request.file: {record['file']}: forget answers otherwise when it is asked "
                    "again. It must depend on its arguments only."
                )
            chosen = trainable[answers[0]]
    chosen, limit = _limit(source, chosen, request, request.get("seed", 0), _FORGET)
    return chosen, {"kind": request["kind"], **record, **limit}, said


def keep(
    source: Source, remaining: Rows, forget: Rows, whole_classes: bool, retain: Mapping[str, Any]
) -> tuple[Rows, dict[str, Any]]:
    """Return the rows that unlearning may use, and the section as a manifest has it.

    Args:
        source: with proxy data, if any, in the split "proxy".
        remaining: the training rows not to be forgotten.
        forget: those to be.
        whole_classes: whether the request is for classes, which proxy data must not have then.
        retain: the section.
    """
    seed = retain.get("seed", 0)
    match choice(retain, "retain", "kind", KINDS):
        case "complement":
            rows, record = remaining, {}
        case "subset":
            fraction = fraction_of(retain, "retain")
            rows = sample_fraction(remaining, source.labels, fraction, [seed, _RETAIN])
            record = {"fraction": fraction, "seed": seed}
        case "classes":
            labels = _labels(source, retain)
            names = [source.class_names[label] for label in labels]
            if whole_classes and np.isin(labels, source.labels[forget]).any():
                both = [n for n in names if source.class_names.index(n) in source.labels[forget]]
                raise UserError(f"retain.classes: {some(both)} are to be forgotten. Remove them.")
            rows, record = _of_classes(source, remaining, labels), {"classes": names}
        case "other_classes":
            labels = _labels(source, retain)
            excluded = np.union1d(labels, source.labels[forget])
            rows = remaining[~np.isin(source.labels[remaining], excluded)]
            record = {"classes": [source.class_names[label] for label in labels]}
        case "ids":
            rows, record, _ = _listed(source, retain, "retain", "retain")
            taken = np.setdiff1d(rows, remaining)
            if taken.size:
                raise UserError(
                    f"retain.file: {some([source.ids[row] for row in taken])} are forgotten or "
                    "held out, by this request or an earlier one. Remove them."
                )
        case "none":
            rows, record = remaining[:0], {}
        case _:
            rows, record = np.array(source.splits.get("proxy", ()), np.int64), {}
            if whole_classes:
                rows = rows[~np.isin(source.labels[rows], source.labels[forget])]
    rows, limit = _limit(source, rows, retain, seed, _RETAIN)
    return rows, {"kind": retain["kind"], **record, **limit}


def still_there(
    forget: Rows, gone: Rows, pool: Sequence[Rows], said: list[str]
) -> tuple[Rows, Rows, list[str]]:
    """Return the rows to forget, the rows that leave the holdout, and what was understood.

    Args:
        forget: what the request names.
        gone: rows of earlier requests.
        pool: the parts of the holdout.
        said: what was understood until now.

    Raises:
        UserError: nothing is left.
    """
    before, held = np.intersect1d(forget, gone), np.intersect1d(forget, np.concatenate(pool))
    if len(before):
        said = [*said, f"{len(before)} images were forgotten by earlier requests already"]
    if len(held):
        said = [
            *said,
            f"{len(held)} images were held out, never trained on: they leave the holdout",
        ]
    forget = np.setdiff1d(forget, np.union1d(before, held))
    if not len(forget):
        why = f" ({'; '.join(said)})" if said else ""
        raise UserError(
            "split: the forget set is empty: the request matches no training example that is still "
            f"there{why}; check the request."
        )
    return forget, held, said


def of_requested_classes(source: Source, request: Mapping[str, Any], held: Rows) -> Rows:
    """Return the held-out rows of the classes of a request for whole classes; else none.

    Args:
        source: the data set.
        request: its record.
        held: rows of the training split that were held out.
    """
    if request["kind"] != "classes" or "per_class" in request:
        return held[:0]
    labels = [source.class_names.index(name) for name in request["classes"]]
    return _of_classes(source, held, labels)


def copies_of(
    source: Source,
    hashes: Hashes | None,
    request: Mapping[str, Any],
    forget: Rows,
    among: Rows,
    cache: Path | None,
) -> tuple[Rows, dict[str, Any] | None, list[list[Any]]]:
    """Return the rows that are copies and must go, too, a record, and near copies as a report.

    Args:
        source: the data set.
        hashes: of its images; None: nobody looks for copies.
        request: its `copies` and `near_copies` say what becomes of them.
        forget: the rows to be forgotten.
        among: the rows whose copies count: trained on, held out, or proxies.
        cache: see `copies.near_once`.

    Raises:
        UserError: copies although they are refused, or confirmed ones that are none.
    """
    policy = choice({"copies": "keep"} | {**request}, "request", "copies", COPIES)
    confirmed = request.get("near_copies", "")
    if hashes is None:
        if confirmed:
            raise UserError("request.near_copies: nobody looked for copies of these images.")
        return forget[:0], None, []
    others = np.setdiff1d(among, forget)
    same = copies.exact(hashes, forget, others)
    alike = copies.near_once(hashes, forget, others, cache)
    rows = forget[:0]
    if confirmed:
        rows, _ = find_images(confirmed, ids_of(source), "request.near_copies", source.name)
        if not len(rows):
            raise UserError(f"request.near_copies: {confirmed} names no image.")
        wrong = np.setdiff1d(rows, np.concatenate([same[:, 1], alike[:, 1], forget]))
        if len(wrong):
            raise UserError(
                f"request.near_copies: {some([source.ids[row] for row in wrong])} were not found "
                "to be like an image of the request. Take names from its list of near copies."
            )
        rows = np.setdiff1d(rows, forget)
        # Copies of those that go, too, must not stay either.
        twins = copies.exact(hashes, rows, np.setdiff1d(others, rows))
        same = np.concatenate([same, twins[~np.isin(twins[:, 1], same[:, 1])]])
    listed = [[source.ids[a], source.ids[b]] for a, b in same[:_PAIRS].tolist()]
    if policy == "refuse" and len(same):
        shown = "".join(f"\n  {a!r} has the pixels of {b!r}" for b, a in listed[:10])
        more = f"\n  and {len(same) - 10} more" if len(same) > 10 else ""
        raise UserError(
            f"request.copies: {len(np.unique(same[:, 1]))} images that are not to be forgotten are "
            f'copies of images that are:{shown}{more}\nSet request.copies to "forget" (them, '
            'too), or to "keep" if they may stay.'
        )
    copied = np.union1d(same[:, 1], rows) if policy == "forget" else rows
    record = {"policy": policy, "exact": len(same), "pairs": listed, "confirmed": len(rows)}
    report = [[source.ids[a], source.ids[b], d] for a, b, d in alike[:_PAIRS].tolist()]
    return copied, record, report


def _limit(
    source: Source, rows: Rows, section: Mapping[str, Any], seed: int, stream: int
) -> tuple[Rows, dict[str, Any]]:
    """Limit the rows to `per_class` of every class; return them and their entry in the manifest."""
    n, pick = section.get("per_class", 0), section.get("pick", "random")
    if not n:
        return rows, {}
    if pick == "first":
        return first_per_class(rows, source.labels, n), {"per_class": n, "pick": pick}
    chosen = sample_per_class(rows, source.labels, n, [seed, stream])
    return chosen, {"per_class": n, "pick": pick, "seed": seed}


def _of_classes(source: Source, rows: Rows, labels: Sequence[int]) -> Rows:
    return rows[np.isin(source.labels[rows], labels)]


def _labels(source: Source, retain: Mapping[str, Any]) -> list[int]:
    """Return the sorted labels of a retain section's classes."""
    classes = option(retain, "retain", "classes")
    return sorted({*labels_of(source, classes, "retain.classes").values()})


def _file(section: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Describe a section's file as the manifest does."""
    file = Path(option(section, where, "file"))
    if not file.is_file():
        raise UserError(f"{where}.file: expected a file, there is none at {str(file)!r}.")
    return {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def _listed(
    source: Source, section: Mapping[str, Any], where: str, role: str
) -> tuple[Rows, dict[str, Any], list[str]]:
    """Find the training rows of a list of ids or paths.

    Return the rows, their record for the manifest, and notes on how names were understood.
    """
    file, options = option(section, where, "file"), {"column": section.get("column", "")}
    rows, read = find_images(
        file, ids_of(source), f"{where}.file", source.name, role=role, **options
    )
    train = source.splits["train"]
    outside = [source.ids[row] for row in rows.tolist() if row not in train]
    if outside:
        raise UserError(
            f"{where}.file: {some(outside)} are not in the training split of {source.name}, so no "
            "model was trained on them. Remove them."
        )
    said = [f"{Path(file).name}: {read['named']} names of {len(rows)} images"]
    if read["repeated"]:
        said.append(f"{read['repeated']} names repeat an image that is named before")
    if "of_another_role" in read:
        said.append(f"{read['of_another_role']} rows have labels of the other sign: not to forget")
    if read["by_path"]:
        written, id = read.pop("example")
        said.append(f"{read['by_path']} names are other paths to an image: {written!r} is {id!r}")
    return np.sort(rows), _file(section, where) | read, said


def _predicate(source: Source, file: Path, rows: Rows) -> list[bool]:
    """Ask the user's function `forget` about every row; this runs the user's file.

    Raises:
        UserError: it has no such function, or that fails, exits, or says neither True nor False.
    """
    namespace: dict[str, Any] = {"__name__": "request", "__file__": str(file)}
    doing = "it cannot be run"
    try:
        exec(compile(file.read_bytes(), str(file), "exec"), namespace)
        function = namespace.get("forget")
        if not callable(function):
            raise UserError(
                f"{file.name}: expected a function "
                "forget(id: str, label: int, class_name: str) -> bool."
            )
        answers = []
        for row in rows.tolist():
            id, label = source.ids[row], int(source.labels[row])
            doing = f"forget failed for {id!r}"
            answer = function(id, label, source.class_names[label])
            if not isinstance(answer, bool | np.bool_):
                line = getattr(getattr(function, "__code__", None), "co_firstlineno", 1)
                raise UserError(
                    f"request.file: {file.name}, line {line}: forget({id!r}, ...) must be True or "
                    f"False, got {answer!r}."
                )
            answers.append(bool(answer))
        return answers
    except BaseException as error:
        where = line_in(error, str(file))
        if isinstance(error, KeyboardInterrupt) or (isinstance(error, ValueError) and not where):
            raise
        what = traceback.format_exception_only(error)[-1].strip()  # whatever its own text does
        raise UserError(f"request.file: {file.name}{where}: {doing}: {what}.") from error


def option(section: Mapping[str, Any], where: str, name: str) -> Any:
    """Return the option of a config section; raises ValueError if it is not there."""
    if name not in section:
        raise UserError(f"{where}: expected {name!r}, got only {sorted(section)}.")
    return section[name]


def choice(section: Mapping[str, Any], where: str, name: str, choices: Sequence[str]) -> str:
    """Return the option, one of the choices; raises ValueError with the nearest if it is none."""
    value = option(section, where, name)
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{where}.{name}: expected one of {choices}, got {value!r}.{hint}")
    return value


def fraction_of(section: Mapping[str, Any], where: str) -> float:
    """Return the option "fraction"; raises ValueError unless it is between 0 and 1."""
    fraction = option(section, where, "fraction")
    if not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise UserError(f"{where}.fraction: expected 0 < fraction < 1, got {fraction!r}.")
    return float(fraction)
