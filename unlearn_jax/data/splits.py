"""Who is forgotten, kept, and never seen: the resolved, hashed sets of one request.

`resolve` turns a request into four sets of rows, proved disjoint where they must be, and a manifest
that says how they came about. The manifest is the file other stations and auditors read.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt64

from unlearn_jax import files
from unlearn_jax.data import holdout as unseen
from unlearn_jax.data import manifest as manifests
from unlearn_jax.data import photos
from unlearn_jax.data.copies import Hashes
from unlearn_jax.data.poison import PATTERN, choose, stated
from unlearn_jax.data.readers import Survey, some
from unlearn_jax.data.records import digest
from unlearn_jax.data.sampling import Rows, count
from unlearn_jax.data.select import copies_of, keep, of_requested_classes, select, still_there
from unlearn_jax.data.served import Entry, in_manifest, rows_of_all
from unlearn_jax.data.sources import Source
from unlearn_jax.registry import UserError

FORMAT, OLD_FORMAT = "unlearn_jax.split.v2", "unlearn_jax.split.v1"
SETS = ("train", "forget", "retain", "calibration", "audit")
_UNHASHED = ("hash", "near")  # near copies are a report: they change no set
_EMPTY = {  # why a retain set can be
    "complement": "everything is to be forgotten; narrow the request, or set retain.kind to "
    '"proxy" (other images in its place) or "none" (phases with retain_weight=0 only)',
    "subset": "raise retain.fraction",
    "classes": "none of retain.classes has a training image left",
    "other_classes": "there is no other class",
    "ids": "retain.file names none (in the released CSV, labels above 0)",
    "proxy": "there is no proxy dataset, or only of forgotten classes",
}


@dataclass(frozen=True)
class Split:
    """Sorted rows of a source, and where they come from.

    Attributes:
        train: what the original is trained on; the forget set is inside it.
        forget: what must be forgotten.
        retain: what the unlearning may use: in `remaining`, or proxy data from elsewhere.
        calibration: never trained on, of the forget set's classes; methods may look at it.
        audit: the same, disjoint from it, and for tests only.
        manifest: the record of it all, as JSON values; see `resolve`.
        said: what was understood of the request, line by line.
    """

    train: Rows
    forget: Rows
    retain: Rows
    calibration: Rows
    audit: Rows
    manifest: dict[str, Any]
    said: tuple[str, ...] = ()

    @property
    def remaining(self) -> Rows:
        """List the training rows that are not forgotten: what retraining from scratch uses."""
        return np.setdiff1d(self.train, self.forget)

    @property
    def poisoned(self) -> Rows:
        """List the rows of the forget set that carry a backdoor."""
        return np.array((self.manifest["poison"] or {}).get("rows", ()), np.int64)

    @property
    def asked(self) -> Rows:
        """List the rows of all images that must go, also of those that no model was trained on."""
        more = [self.manifest.get(key, ()) for key in ("withdrawn", "held_out")]
        return np.unique(np.concatenate([self.forget, *(np.array(rows, int) for rows in more)]))

    @property
    def served(self) -> list[Rows]:
        """List the rows of each request that was served before this one."""
        return [np.array(of["rows"], np.int64) for of in self.manifest.get("served", ())]


def resolve(
    source: Source,
    *,
    request: Mapping[str, Any],
    retain: Mapping[str, Any],
    holdout: Mapping[str, Any],
    seed: int,
    poison: Mapping[str, Any] | None = None,
    served: Sequence[Entry] = (),
    apart: Sequence[Entry] = (),
    hashes: Hashes | None = None,
    cache: Path | None = None,
) -> Split:
    """Return the split of a request; the same arguments give the same split.

    Args:
        source: must have the split "train"; proxy data, if any, in the split "proxy"
            (`joining.concat`).
        request: what must be forgotten, one of
            `{"kind": "classes", "classes": ("cat", 5)}`, names or numbers (`names.labels_of`);
            `{"kind": "random", "fraction": 0.1, "seed": 0}`, of the training rows, by class;
            `{"kind": "ids", "file": path, "column": ""}`, a list of ids or image paths
            (`names.find_images`);
            `{"kind": "predicate", "file": path}`, a Python file of the user's, which is run, and
            defines `forget(id: str, label: int, class_name: str) -> bool`.
            Of any kind, `"per_class": 120` takes at most so many of each class, at random by
            "seed" or, with `"pick": "first"`, the first ones in the order of the source.
            `"copies"`: what becomes of images with the very pixels of a forget image elsewhere,
            "refuse", "forget" (them, too) or "keep" (the default here);
            `"near_copies": path`, a list of near copies that are forgotten, too.
        retain: `{"kind": "complement"}`, all training rows not forgotten;
            `{"kind": "subset", "fraction": 0.1, "seed": 0}`, some of them, by class;
            `{"kind": "classes", "classes": ("dog",)}`, those of these classes;
            `{"kind": "other_classes", "classes": ("dog",)}`, those of all other classes, without
            any that has a forget row;
            `{"kind": "ids", "file": path}`, those listed, as in a request; of labels those above 0;
            `{"kind": "proxy"}`, the proxy rows, without those of forgotten classes if the request
            is for classes; `{"kind": "none"}`, no rows. "per_class" and "pick" as in a request.
        holdout: the pool of images that no model is trained on, see `holdout.draw`; it does not
            depend on the request. The two parts of the split are those of its rows that have the
            class distribution of the forget set, see `holdout.like`.
        seed: is recorded.
        poison: `{"fraction": 0.25, "seed": 0, "jitter": 0.75}`, the share of the forget set that
            carries a backdoor and how its looks differ (see `poison`); 0 or None: no row does.
        served: requests that the model has served before; their images are in no set.
        apart: requests that others have served on these data; their images may be forgotten, but
            are in no other set.
        hashes: of all rows, which show copies; None: nobody looks for copies.
        cache: folder that keeps what takes minutes to find.

    The manifest has format, dataset (name, splits, n, fingerprint: sha256 of ids and labels), proxy
    (the same of the proxy data, or null), request (with the sha256 of its file), retain, holdout,
    seed, poison (with its rows; null if there is none), withdrawn (rows outside train that
    must go, too: they are in no set), held_out (rows of a requested class in the holdout, where
    they stay for this request only), copies, near, served, apart, class_names, sets (rows), counts,
    class_counts, asked (a hash of what was asked for) and hash, the sha256 of the canonical JSON of
    all the rest but near; id_keys are 64 bits of each id (base64), by which a later request knows
    the images when others were added or removed. photos, if there
    is something to say, is how files were read, see `readers.Survey`. Keys of other kinds in the
    mappings are ignored.

    Raises:
        UserError: an unknown name or id, an empty or overlapping set, copies that are refused, no
            unseen images; the message says which, and what to do.
    """
    if "train" not in source.splits:
        raise UserError(f'{source.name}: expected a split "train", found {tuple(source.splits)}.')
    everything = np.array(source.splits["train"], np.int64)
    pixels = hashes and hashes.pixels
    past, others = (in_manifest(source, entries, pixels) for entries in (served, apart))
    gone, theirs = rows_of_all(past), rows_of_all(others)
    *pool, held = unseen.draw(source, holdout)
    pool = [part[~np.isin(part, np.union1d(gone, theirs))] for part in pool]
    train = np.setdiff1d(everything, np.concatenate([gone, *pool]))
    forget, asked, said = select(source, request, train)
    forget, withdrawn, said = still_there(forget, gone, pool, said)
    held_out = of_requested_classes(source, asked, np.intersect1d(everything, np.concatenate(pool)))
    if len(held_out):
        said.append(f"{len(held_out)} images of these classes were held out, never trained on")
    train = np.setdiff1d(train, np.setdiff1d(theirs, forget))
    proxies = np.array(source.splits.get("proxy", ()), np.int64)
    everywhere = np.setdiff1d(
        np.concatenate([train, *pool, proxies]), np.concatenate([gone, theirs, withdrawn])
    )
    copied, found, near = copies_of(
        source, hashes, request, np.union1d(forget, withdrawn), everywhere, cache
    )
    forget = np.union1d(forget, np.intersect1d(copied, train))
    withdrawn = np.union1d(withdrawn, np.setdiff1d(copied, train))
    pool = [part[~np.isin(part, withdrawn)] for part in pool]
    learned = np.union1d(np.setdiff1d(everything, np.concatenate(pool)), proxies)
    pool, said = unseen.without_pixels_of(learned, pool, hashes, said)
    said = [*photos.describe(source.survey, len(source)), *said]
    sets = {"train": train, "forget": forget}
    kept, retain = keep(
        source, np.setdiff1d(train, forget), forget, asked["kind"] == "classes", retain
    )
    sets["retain"] = np.setdiff1d(kept, np.concatenate([copied, gone, theirs]))
    if retain["kind"] != "none":
        _check_some(sets["retain"], "retain", _EMPTY[retain["kind"]])
    for name, part in zip(("calibration", "audit"), pool, strict=True):
        sets[name], held[f"{name}_short"] = unseen.like(part, source, forget)
    said += _check_audit(source, forget, sets["audit"], held)
    planted = None
    if poison and poison["fraction"]:
        planted = stated(poison)
        rows = choose(forget, poison["fraction"], poison["seed"])
        jitter = (
            f"; jitter {planted['jitter']:g}, seed {poison['seed']}" if "jitter" in planted else ""
        )
        planted |= {"rows": rows.tolist(), "pattern": PATTERN + jitter}
    _check_sets(sets, source.ids)
    facts = {
        "request": asked,
        "retain": retain,
        "holdout": held,
        "seed": seed,
        "poison": planted,
        "withdrawn": withdrawn.tolist(),
        "held_out": held_out.tolist(),
        "copies": found,
        **_photos(source.survey),
        "served": past,
        "apart": others,
    }
    wanted = [asked, retain, held["split"], seed, poison and stated(poison)]
    return Split(**sets, manifest=_manifest(source, sets, facts, wanted, near), said=tuple(said))


def _manifest(
    source: Source,
    sets: Mapping[str, Rows],
    facts: Mapping[str, Any],
    wanted: Sequence[Any],
    near: Sequence[Any],
) -> dict[str, Any]:
    """Make the manifest of a split, see `resolve`.

    `wanted` is what was asked for, before rows that earlier requests forgot were left out.
    """
    data, proxy = _dataset(source)
    manifest = {
        "format": FORMAT,
        "dataset": data,
        "proxy": proxy,
        **facts,
        "class_names": list(source.class_names),
        "id_keys": _encoded(unseen.id_keys(source.ids[: data["n"]])),
        "sets": {name: rows.tolist() for name, rows in sets.items()},
        "counts": {name: len(rows) for name, rows in sets.items()},
        "class_counts": {
            name: {source.class_names[c]: n for c, n in count(source.labels[rows]).items()}
            for name, rows in sets.items()
        },
        "asked": digest([data, *wanted]),
    }
    manifest = json.loads(json.dumps(manifest))  # plain JSON values: equal before and after a file
    return {**manifest, "hash": _hash(manifest), "near": near}


def _photos(survey: Survey) -> dict[str, Any]:
    """Describe how files were read, if that was anything but as they are."""
    if not any(survey):
        return {}
    return {"photos": {**survey._asdict(), "bad": sorted(survey.bad.items())}}


def _check_audit(source: Source, forget: Rows, audit: Rows, held: Mapping[str, Any]) -> list[str]:
    """Say which classes have few unseen images; raise UserError if no class has any."""
    if held["split"] == unseen.NO_HOLDOUT:
        return []
    if not len(audit):
        names = [source.class_names[c] for c in count(source.labels[forget])]
        raise UserError(
            f"holdout: no unseen image of the forgotten classes {some(names)}. Add some to the "
            'split that holdout.split names, or set holdout.split="none" and do without audits.'
        )
    return [
        f"class {name!r}: {of['unseen']} unseen images for the audits, {of['wanted']} would match "
        f"its {of['forget']} to be forgotten; less can be tested for it"
        for name, of in held["audit_short"].items()
    ]


def describe(split: Split) -> str:
    """Return the request in one sentence, for reports."""
    request, counts = split.manifest["request"], split.manifest["counts"]
    classes = request.get("classes", ())
    named = ", ".join(classes[:10]) + (f" and {len(classes) - 10} more" if classes[10:] else "")
    n = request.get("per_class")
    most = f"at most {n} images of each class of " if n else ""
    what = {
        "classes": lambda: (
            f"at most {n} images of each of {named}" if n else f"every image of {named}"
        ),
        "random": lambda: (
            f"{most}a random {100 * request['fraction']:.4g} % of each class "
            f"(seed {request['seed']})"
        ),
        "ids": lambda: f"{most}the ids listed in {request['file']}",
        "predicate": lambda: f"{most}what {request['file']} chooses",
    }[request["kind"]]()
    copied = split.manifest.get("copies") or {}
    also = copied.get("confirmed", 0) or (
        copied.get("policy") == "forget" and copied.get("exact", 0)
    )
    return (
        f"Forget {counts['forget']:,} of {counts['train']:,} training images of "
        f"{split.manifest['dataset']['name']}: {what}{', and their copies' if also else ''}."
    )


def describe_poison(split: Split) -> str:
    """Return the planted backdoor in one sentence, for reports."""
    return (
        f"{len(split.poisoned):,} of the {len(split.forget):,} images to be forgotten carry a "
        "backdoor, planted before training: a trigger in the visible part and a payload in the "
        "part to be generated."
    )


def save(split: Split, path: str | Path) -> None:
    """Write the manifest as JSON, whole or not at all, and beside it what could not be read."""
    if bad := (split.manifest.get("photos") or {}).get("bad"):
        Path(path).with_name(photos.QUARANTINE).write_bytes(photos.quarantine(bad))
    partial = Path(path).with_suffix(".partial")
    partial.write_text(json.dumps(split.manifest, indent=None, sort_keys=True) + "\n", "utf-8")
    partial.replace(path)


def load(path: str | Path, source: Source | None = None) -> Split:
    """Return the split of a manifest file, after checking its hash and its sets.

    Args:
        path: the file `save` wrote. One of the first version has one holdout set, which is then
            both `calibration` and `audit`, as it was used.
        source: if given, must be the dataset the split was made for.

    Raises:
        UserError: no manifest, a changed one, or one of another dataset.
    """
    what, fix = f"a split manifest ({FORMAT})", "Make it again from the config."
    manifest = files.read_json(Path(path), what, fix, {"format": str})
    found = manifest["format"]
    if found not in (FORMAT, OLD_FORMAT):
        raise UserError(f"{path}: expected format {FORMAT}, got {found!r}. Make the split again.")
    if manifest.get("hash") != _hash(manifest):
        raise UserError(
            f"{path}: the manifest was changed after it was written: its hash is "
            f"{manifest.get('hash')!r}, that of its content {_hash(manifest)!r}. Make the split "
            "again."
        )
    if wrong := manifests.problems(manifest, _keys_of(manifest)):
        raise UserError("\n  ".join([f"{path}: expected {what}. {fix}", *wrong[:10]]))
    if source is not None:
        dataset, (here, _) = manifest["dataset"], _dataset(source)
        if dataset["fingerprint"] != here["fingerprint"]:
            raise UserError(
                f"{path}: the split was made for {dataset['name']} with {dataset['n']} examples "
                f"(fingerprint {dataset['fingerprint'][:12]}), got {here['name']} with "
                f"{here['n']} ({here['fingerprint'][:12]}). Use that dataset, or make the split "
                "again."
            )
    split = of_manifest(manifest)
    if source is not None and manifest["format"] == FORMAT:
        _check_sets({name: getattr(split, name) for name in SETS}, source.ids)
    return split


def of_manifest(manifest: dict[str, Any], said: Sequence[str] = ()) -> Split:
    """Return the split that a manifest, already checked, describes."""
    sets = {k: np.array(manifest["sets"][key], np.int64) for k, key in _keys_of(manifest).items()}
    return Split(**sets, manifest=manifest, said=tuple(said))


def _keys_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the key that a manifest has each set under."""
    old = manifest["format"] == OLD_FORMAT
    return {name: "holdout" if old and name in SETS[3:] else name for name in SETS}


# Checks and hashes.


def _check_sets(sets: Mapping[str, Rows], ids: Sequence[str]) -> None:
    """Raise ValueError unless forget is in train and the others are disjoint, by row and id."""
    for name, rows in sets.items():
        if name in ("train", "forget"):
            _check_some(rows, name, "the split would be of no use")
        if not np.array_equal(rows, np.unique(rows)):
            raise UserError(f"split: the rows of {name} are not sorted and unique.")
        if rows.size and (rows[0] < 0 or rows[-1] >= len(ids)):
            raise UserError(f"split: {name} has rows outside the dataset of {len(ids)} examples.")
    if not np.isin(sets["forget"], sets["train"]).all():
        raise UserError("split: forget has rows that are not in train.")
    disjoint = [("forget", "retain"), ("calibration", "audit")]
    disjoint += [(a, b) for a in ("train", "forget", "retain") for b in ("calibration", "audit")]
    for a, b in disjoint:
        rows = np.intersect1d(sets[a], sets[b])
        names = {ids[row] for row in sets[a]} & {ids[row] for row in sets[b]}
        if rows.size or names:
            raise UserError(
                f"split: {a} and {b} overlap in {rows.size} rows and {len(names)} ids: "
                f"{some(sorted(names))}. Every example may be in one of them only."
            )


def _check_some(rows: Rows, name: str, fix: str) -> None:
    if not rows.size:
        raise UserError(f"split: the {name} set is empty: {fix}.")


def _dataset(source: Source) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Describe the data set as manifests do, with the proxy data in it, if there are any."""
    proxy = source.splits.get("proxy", range(len(source), len(source)))
    splits = {k: [rows.start, rows.stop] for k, rows in source.splits.items() if k != "proxy"}
    of = _facts(source, range(proxy.start))
    return {"name": source.name, "splits": splits, **of}, (
        {"name": source.proxy, **_facts(source, proxy)} if proxy else None
    )


def _facts(source: Source, rows: range) -> dict[str, Any]:
    ids, labels = (list(x[rows.start : rows.stop]) for x in (source.ids, source.labels.tolist()))
    content = json.dumps([ids, labels], separators=(",", ":"))
    return {"n": len(rows), "fingerprint": hashlib.sha256(content.encode()).hexdigest()}


def _encoded(keys: UInt64[np.ndarray, "_"]) -> str:
    return base64.b64encode(keys.astype("<u8").tobytes()).decode()


def _hash(manifest: Mapping[str, Any]) -> str:
    return digest({key: value for key, value in manifest.items() if key not in _UNHASHED})
