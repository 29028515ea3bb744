"""The record of a request: receipt.json, receipt.txt, and what must be deleted. No JAX.

**Guarantee**: receipt.txt has the sha256 of receipt.json, and that has those of all other files.
Not covered: who can write them all can make others that fit together. The signed page tells.
"""

import datetime
import os
import re
import stat
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearn_jax import files
from unlearn_jax.registry import UserError

FILE, TEXT, PAGE, RELEASED = "receipt.json", "receipt.txt", "report.html", "unlearned"
FORMAT = "unlearn_jax.receipt.v1"
MAX_BYTES = 2**26  # of receipt.json: half a million files

# What must go: a regex on paths in the workdir, and why. NEWEST is the released checkpoint.
MUST_GO = (
    ("original", "the model before: it was trained on the images"),
    (r"retrained|shadow\d+|models", "a model to compare with, not the released one"),
    ("unlearned/checkpoints/NEWEST/opt", "state of the optimizer: sums of gradients of images"),
    ("unlearned/checkpoints/(?!NEWEST/)[^/]+", "an older checkpoint: it had forgotten less"),
    (r"unlearned/damaged|unlearned/noise\.key", "what is left of interrupted runs"),
    (r"[^/]+/tensorboard|grids\.npz|request\.html", "pictures of the images"),
    (r"protocol/(?:images|grids\.npz|report\.html)", "pictures of the images"),
    ("compiled|measured", "caches of a comparison"),
)
PICTURES = {"path": PAGE, "why": "shows the images; --purge writes it again without", "bytes": None}
PICTURES |= {"yours": False}

_ASKED = {"text": str, "kind": str, "sha256": str | None, "n": int, "names": list | None}
_PARENTS = {"path": str, "claim": str, "requests": [{"text": str, "date": str, "n": int}]}
_MODEL = {"step": int, "sha256": str}
_SCHEMA = dict.fromkeys(("case", "due", "created"), str) | {"conclusions": list, "asked": _ASKED}
_SCHEMA |= {
    "parents": _PARENTS,
    "models": {"original": _MODEL, RELEASED: _MODEL},
    "sets": {"*": str},
    "versions": {"*": str},
}
_SCHEMA |= {"files": {"*": {"bytes": int, "sha256": str}}}
_SCHEMA |= {"delete": [{"path": str, "why": str, "yours": bool, "bytes": int | None}]}


def walk(root: Path) -> tuple[dict[str, int], list[str]]:
    """Return ({path: bytes} of the regular files in a folder, paths of links and other things).

    Nothing is followed or opened. The receipt itself and leases are left out.
    """

    def fail(error: OSError) -> None:
        raise error  # a folder that cannot be read is not an empty one

    found, odd = {}, []
    for folder, folders, names in os.walk(root, onerror=fail):
        theirs = [name for name in sorted(folders + names) if not name.startswith("lease.json")]
        for path in (Path(folder, name) for name in theirs):
            inside, of = path.relative_to(root).as_posix(), path.lstat()
            if stat.S_ISREG(of.st_mode):
                found[inside] = of.st_size
            elif not stat.S_ISDIR(of.st_mode):
                odd.append(inside)
    return {name: size for name, size in found.items() if name not in (FILE, TEXT)}, odd


def digests(root: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return {path: {"bytes", "sha256"}} of regular files in a folder."""
    of = {name: root / name for name in sorted(names)}
    return {
        name: {"bytes": path.stat().st_size, "sha256": files.file_digest(path)}
        for name, path in of.items()
    }


def to_delete(names: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return what of a workdir must go, given its {path: bytes}: {path, why, yours, bytes} each."""
    steps = [re.match(r"unlearned/checkpoints/(\d+)/", name) for name in names]
    newest = max((step[1] for step in steps if step), key=int, default="none")
    rules = [(re.compile(f"(?:{rule})(?=/|\\Z)".replace("NEWEST", newest)), why)
             for rule, why in MUST_GO]  # fmt: skip
    found: dict[str, dict[str, Any]] = {}
    for name, size in names.items():
        for rule, why in rules:
            if hit := rule.match(name):
                entry = {"path": hit[0], "why": why, "yours": False, "bytes": 0}
                found.setdefault(hit[0], entry)["bytes"] += size
                break
    return [found[path] for path in sorted(found)]


def under(name: str, entries: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether a path in the workdir is one of these entries, or inside one."""
    own = (of["path"] for of in entries if not of["yours"])
    return any(name == path or name.startswith(f"{path}/") for path in own)


def now() -> str:
    """Return the time, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def check_open(workdir: Path) -> None:
    """Raise UserError if a request was purged, and so cannot go on."""
    if (workdir / FILE).exists() and (purged := read(workdir)["purged"]):
        raise UserError(
            f"{workdir}: expected a request that can go on; it was purged at {purged['time']}. Its "
            "receipt and its page stay as they are. Choose another --workdir."
        )


def seal(workdir: Path, values: Mapping[str, Any]) -> None:
    """Write receipt.json and receipt.txt."""
    files.write_sealed(workdir / FILE, values, FORMAT)
    files.write_text(workdir / TEXT, text(values))


def read(workdir: Path) -> dict[str, Any]:
    """Return the receipt of a workdir, which may be somebody else's.

    Raises:
      UserError: none, an altered one, or no regular file of at most 64 MiB.
    """
    path = workdir / FILE
    if not os.path.lexists(path):
        raise UserError(
            f"{path}: expected the receipt of a request, there is none. Write it with: unlearn-jax "
            f"receipt --workdir={workdir}"
        )
    if not stat.S_ISREG(path.lstat().st_mode) or path.lstat().st_size > MAX_BYTES:
        raise UserError(f"{path}: expected a regular file of at most 64 MiB.")
    values = files.read_sealed(path, FORMAT, "a receipt")
    done = {"time": str, "files": int, "bytes": int} if values.get("purged") else type(None)
    if wrong := files.problems(values, _SCHEMA | {"purged": done}):
        raise UserError("\n  ".join([f"{path} is no receipt:", *wrong[:10]]))
    return values


def rows(receipt: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return a receipt in words, for paper and the page: names with lines."""
    asked, models, parents = (receipt[key] for key in ("asked", "models", "parents"))
    past = [f"{x['date']}: {x['text']} ({x['n']} images)" for x in parents["requests"]]
    past = past or [f"nothing, says {parents['claim'] or 'the model'}"]
    delete = {
        yours: [
            f"{x['path']}: {x['why']}"
            + ("" if x["bytes"] is None else f" ({x['bytes'] / 1e6:,.1f} MB)")
            for x in receipt["delete"]
            if x["yours"] is yours
        ]
        for yours in (False, True)
    }
    return [
        ("case", [receipt["case"] or "not given"]),
        ("due", [receipt["due"] or "not given"]),
        ("written", [receipt["created"]]),
        ("asked", [asked["text"]]),
        ("list", [f"sha256 {asked['sha256']}" if asked["sha256"] else f"none: {asked['kind']}"]),
        ("images", [f"{asked['n']:,}"]),
        ("model before", [parents["path"], f"parameters sha256 {models['original']['sha256']}"]),
        ("forgotten before", past),
        ("model after", [RELEASED, f"parameters sha256 {models[RELEASED]['sha256']}"]),
        ("sets", [f"{name} {of}" for name, of in sorted(receipt["sets"].items())]),
        ("versions", [f"{name} {of}" for name, of in sorted(receipt["versions"].items())]),
        ("concluded", [str(line) for line in receipt["conclusions"]]),
        ("must be deleted", delete[False] or ["nothing"]),
        ("yours to delete", delete[True] or ["nothing"]),
        ("names", [str(name) for name in asked["names"] or ("left out",)]),
    ]


def text(receipt: Mapping[str, Any]) -> str:
    """Return a receipt as a page to print and sign."""
    lines, done = ["RECEIPT OF AN UNLEARNING REQUEST", ""], receipt["purged"]
    for name, values in rows(receipt):
        wrapped = [part for x in values for part in textwrap.wrap(x, 82, subsequent_indent="  ")]
        lines += [f"{'' if i else name:18}{part}" for i, part in enumerate(wrapped)]
    gone = done and f"at {done['time']}: {done['files']:,} files, {done['bytes'] / 1e6:,.1f} MB"
    lines += [f"{'deleted':18}{gone or 'not yet'}", ""]
    lines += [f"{FILE}: sha256 {files.digest({**receipt, 'format': FORMAT})}", "", ""]
    lines += ["Name ______________________________    Date ____________________"]
    return "".join("".join(c if c.isprintable() else "?" for c in line) + "\n" for line in lines)
