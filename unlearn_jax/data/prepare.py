"""Prepare a dataset as it is distributed: every image checked, in shards that open at once.

    python -m unlearn_jax.prepare --layout=imagenet --source=DIR --out=DIR
    python -m unlearn_jax.prepare --layout=places365 --source=DIR --out=DIR --resize=256 \\
        --resize_how=squash_bilinear --encode=png

Every file is decoded fully. Those that are no images, or truncated, go to quarantine.csv and not
into the shards; the others are stored as they are, unless --resize is given. Interrupted, by
whatever, the same command goes on after the last whole shard, and ends with the same bytes. Given
again at the end it changes nothing; with --verify it reads every shard and compares its sha256.

Several processes, on machines that see the same folders, share the work: the same command on each,
with --num_processes=N --process_id=0 to N - 1. Each writes shards of its own and waits for nobody;
whichever finds all of them done writes the manifest. One that died is started again.

    python -m unlearn_jax.prepare --out=DIR --remove=LIST

takes the images that a list names out of prepared records for good, see `data.removal`. What was
forgotten of the source's images (its `forgotten.json`) stays forgotten of the records.
The format is described in `unlearn_jax.data.records`.
"""

import concurrent.futures
import fcntl
import io
import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image
from PIL.ExifTags import Base
from tqdm import tqdm

from unlearn_jax import cli
from unlearn_jax.data import copies, index, layouts, photos, preprocess, records, removal, served
from unlearn_jax.data.layouts import File
from unlearn_jax.data.readers import read_file
from unlearn_jax.files import file_digest, read_json
from unlearn_jax.registry import UserError

RESIZE_HOW = ("short_bicubic", "squash_bilinear", "squash_bicubic")
ENCODE = ("jpeg", "png")
_EXAMPLE = "--layout=imagenet --source=imagenet1k --out=data/imagenet"
_MAKES = ("layout", "source", "name", "val_labels", "classes", "list", "resize", "resize_how")
_MAKES += ("encode", "quality", "images_per_shard", "num_processes", "process_id")


@dataclass(frozen=True)
class Storing:
    """How images are stored: resized and encoded again, or as they are.

    Attributes:
        resize: pixels of the shorter side ("short_bicubic") or of both; 0: as they are.
        resize_how: "short_bicubic", "squash_bilinear" or "squash_bicubic".
        encode: "jpeg" or "png"; images that have the size already keep their bytes.
        quality: of JPEG, 95 to 100, without chroma subsampling.
    """

    resize: int = 0
    resize_how: str = "short_bicubic"
    encode: str = "png"
    quality: int = 95

    def __post_init__(self) -> None:
        if self.resize < 0 or self.resize_how not in RESIZE_HOW or self.encode not in ENCODE:
            raise UserError(
                f"--resize: expected pixels, --resize_how one of {RESIZE_HOW}, --encode one of "
                f"{ENCODE}, got {self.resize}, {self.resize_how!r}, {self.encode!r}."
            )
        if not 95 <= self.quality <= 100:
            raise UserError(f"--quality: expected 95..100, got {self.quality}.")


def run(
    layout: str,
    source: Path,
    out: Path,
    *,
    name: str = "",
    storing: Storing = Storing(),
    images_per_shard: int = 4096,
    workers: int = 0,
    process_id: int = 0,
    num_processes: int = 1,
    say: Callable[[str], Any] = lambda note: None,
    **which: Any,
) -> dict[str, Any] | None:
    """Return the manifest of the records in `out`, made now unless they are there already.

    None if shards are left, which other processes write.

    Args:
        layout: see `layouts.find`.
        source: the folder.
        out: a new folder, or one that an interrupted preparation of the same images left.
        name: of the dataset; the layout's, or that of the folder, if empty.
        storing: how images are stored.
        images_per_shard: files that a shard is made of.
        workers: threads, each busy with a shard of its own; 0: as many as there are cores.
        process_id: which of the processes that share the work.
        num_processes: how many these are.
        say: is given, before the work, what a user should see of how the source was understood.
        which: further arguments of `layouts.find`.

    Raises:
        UserError: the source or `out` is not what it must be.
        OSError: a file could not be read or written; nothing is lost, and the next call goes on.
    """
    if images_per_shard < 1 or workers < 0:
        raise UserError(
            f"expected --images_per_shard of at least 1 and --workers of at least 0, got "
            f"{images_per_shard} and {workers}."
        )
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id: expected 0..{num_processes - 1} of --num_processes={num_processes}, "
            f"got {process_id}."
        )
    found = layouts.find(layout, source, **which)
    for note in found.notes:
        say(note)
    shards = _plan(found, images_per_shard)
    plan = {
        "files": records.digest([_digest(files) for _, files in shards]),
        "images_per_shard": images_per_shard,
        **asdict(storing),
    }
    out.mkdir(parents=True, exist_ok=True)
    with records.lock(out, shared=num_processes > 1) as lock_alone:
        _claim(out, plan)
        if not (out / records.MANIFEST).exists():
            mine = shards[process_id::num_processes]
            _write_all(source, out, mine, storing, workers or os.cpu_count() or 1)
            if any(not _part(out, name) for name, _ in shards):
                return None
        lock_alone()
        if not (out / records.MANIFEST).exists():
            described = {
                "layout": layout,
                "stored": asdict(storing) if storing.resize else "original",
            }
            described |= {"lists": [Path(file).name for file in which.get("lists", ())]}
            _carry_forgotten(source, out)
            _finish(out, shards, found, name or _name(layout, source), described, plan)
        manifest = records.read_manifest(out)
        removal.sweep(out, manifest)
        return manifest


def _plan(found: layouts.Found, per_shard: int) -> list[tuple[str, Sequence[File]]]:
    """Plan the shards: the name and the files of each."""
    shards = []
    for split, files in found.splits.items():
        count = -(-len(files) // per_shard)
        for i in range(count):
            name = f"{split}-{i:05d}-of-{count:05d}.array_record"
            shards.append((name, files[i * per_shard : (i + 1) * per_shard]))
    if not shards:
        raise UserError("--source: expected images, found none.")
    return shards


def _digest(files: Sequence[File]) -> str:
    return records.digest([(file.id, file.path, file.label) for file in files])


def _claim(out: Path, plan: dict[str, Any]) -> None:
    """Write the plan, or refuse a folder that holds anything that does not belong to it."""
    if (out / records.MANIFEST).exists():
        if records.read_manifest(out)["plan"] != records.digest(plan):
            raise UserError(
                f"--out: {out} holds records of other files or options. Choose another folder."
            )
        return
    path = out / records.UNFINISHED / "plan.json"
    others = [child for child in out.iterdir() if child.name != records.UNFINISHED]
    if path.exists():
        before = read_json(path, "the plan of a preparation")
        changed = [
            f"{key}: {before.get(key)} -> {plan[key]}"
            for key in plan
            if before.get(key) != plan[key]
        ]
        if changed:
            raise UserError(
                f"--out: {out} holds an unfinished preparation of other files or options "
                f"({'; '.join(changed)}). Undo the change, or choose another folder."
            )
        return
    if others:
        raise UserError(f"--out: expected a new or empty folder, {out} holds other files.")
    path.parent.mkdir(exist_ok=True)
    records.write_text(path, json.dumps(plan, indent=1))


def _carry_forgotten(source: Path, out: Path) -> None:
    """Copy the record of forgotten images from the source to the records made of it."""
    entries = served.of_data(served.place(ConfigDict({"kind": "folder", "path": str(source)})))
    entries = [entry for entry in entries if not entry.get("elsewhere")]
    if entries:
        entries = [{**entry, "data": out.resolve().name} for entry in entries]
        served.write(out / served.FILE, {"format": served.FORMAT, "requests": entries})


def _write_all(
    source: Path,
    out: Path,
    shards: Sequence[tuple[str, Sequence[File]]],
    storing: Storing,
    workers: int,
) -> None:
    """Write the shards that are not finished yet."""
    total = sum(len(files) for _, files in shards)
    todo = [(name, files) for name, files in shards if not _part(out, name)]
    done = total - sum(len(files) for _, files in todo)
    stop, ticks = threading.Event(), threading.Lock()
    bar = tqdm(
        desc="preparing", total=total, initial=done, unit="image", dynamic_ncols=True, disable=None
    )

    def tick() -> None:
        if stop.is_set():
            raise InterruptedError("stopped")
        with ticks:
            bar.update()

    with bar, concurrent.futures.ThreadPoolExecutor(workers) as pool:
        futures = [
            pool.submit(_write_shard_alone, source, out, *shard, storing, tick) for shard in todo
        ]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException:  # and KeyboardInterrupt: the threads must not go on
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _write_shard_alone(source: Path, out: Path, name: str, *rest: Any) -> None:
    """Write the shard, unless another process writes it now or has written it."""
    with (out / records.UNFINISHED / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if not _part(out, name):
            _write_shard(source, out, name, *rest)


def _write_shard(
    source: Path,
    out: Path,
    name: str,
    files: Sequence[File],
    storing: Storing,
    tick: Callable[[], None],
) -> None:
    """Write one shard, then a file about it; with that file it counts as finished."""
    rows, hashes, bad = [], [], []
    partial = out / f"{name}.partial"
    try:
        writer = records.open_writer(partial)
        for file in files:
            tick()
            try:
                if "\n" in file.id:
                    raise UserError("expected a name without a line break. Rename it.")
                data = read_file(source / file.path, file.path)  # OSError is no fault of the image
                image = photos.decode(data, file.path)
            except UserError as error:
                bad.append((file.path, str(error).removeprefix(f"{file.path}: ")))
                continue
            data, image = _store(image, data, storing)
            writer.write(records.pack(file.id, data))
            rows.append((file.id, file.label, *image.size))
            hashes.append(np.concatenate(copies.hash_image(np.asarray(image))).tobytes().hex())
        writer.close()
    except RuntimeError as error:
        raise OSError(f"{partial} could not be written: {error}") from error
    part = {"shard": records.seal(partial, out / name, len(rows)), "rows": rows, "bad": bad}
    records.write_text(_part_path(out, name), json.dumps(part | {"hashes": hashes}))


def _store(image: Image.Image, data: bytes, storing: Storing) -> tuple[bytes, Image.Image]:
    """Return the bytes to store for an image file, and the image that they decode to."""
    side = storing.resize
    if not side:
        return data, image
    size = (side, side)
    if storing.resize_how == "short_bicubic":
        size = preprocess.cover(image.size, (side, side))
    if size == image.size:
        return data, image
    bilinear = storing.resize_how == "squash_bilinear"
    filter = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
    stored = io.BytesIO()
    options = {"quality": storing.quality, "subsampling": 0} if storing.encode == "jpeg" else {}
    turned = Image.Exif()  # how the camera was held, for data.exif
    if orientation := image.getexif().get(Base.Orientation):
        turned[Base.Orientation] = orientation
        options["exif"] = turned
    image.resize(size, filter).save(stored, storing.encode, **options)
    return stored.getvalue(), photos.decode(stored.getvalue(), "")


def _part_path(out: Path, name: str) -> Path:
    return out / records.UNFINISHED / f"{name}.json"


def _part(out: Path, name: str) -> dict[str, Any] | None:
    """Read what is recorded about a finished shard; None if it is not finished."""
    path = _part_path(out, name)
    if not path.exists():
        return None
    part = read_json(path, "a finished shard", schema={"shard": {"bytes": int}})
    shard = out / name
    finished = shard.exists() and shard.stat().st_size == part["shard"]["bytes"]
    return part if finished and "hashes" in part else None  # earlier versions did not hash


def _finish(
    out: Path,
    shards: Sequence[tuple[str, Sequence[File]]],
    found: layouts.Found,
    name: str,
    described: dict[str, Any],
    plan: dict[str, Any],
) -> None:
    """Write the index, the hashes, the quarantine list and, last, the manifest."""
    splits: dict[str, Any] = {split: {"count": 0, "shards": []} for split in found.splits}
    ids, numbers, hashes, bad = [], [], [], []
    for shard, _ in shards:
        part = _part(out, shard)
        split = splits[shard.rsplit("-", 3)[0]]
        split["shards"].append(part["shard"])
        split["count"] += part["shard"]["count"]
        ids += [row[0] for row in part["rows"]]
        numbers.append(np.array([row[1:] for row in part["rows"]], np.int32).reshape(-1, 3))
        hashes.append(np.frombuffer(bytes.fromhex("".join(part["hashes"])), np.uint64))
        bad += part["bad"]
    empty = [split for split, facts in splits.items() if not facts["count"]]
    if empty:
        raise UserError(f"{out}: no file of the splits {empty} is an image: {bad[0]}.")
    table = np.concatenate(numbers)
    index.write(out / records.INDEX, index.Index(ids, table[:, 0], table[:, 1:]))
    of_image = np.concatenate(hashes).reshape(-1, 6)  # 128 and 256 bits
    copies.save(out / copies.FILE, ids, copies.Hashes(of_image[:, :2], of_image[:, 2:]))
    records.write_text(out / photos.QUARANTINE, photos.quarantine(bad))
    manifest = {
        "format": records.FORMAT,
        "name": name,
        "source": described,
        "class_names": list(found.class_names),
        "splits": splits,
        "quarantined": len(bad),
        "index": file_digest(out / records.INDEX),
        "plan": records.digest(plan),
    }
    records.write_manifest(out, manifest)


def _name(layout: str, source: Path) -> str:
    return source.resolve().name if layout == "folder" else layout


def main(layout: str, source: str, out: str, remove: str) -> None:
    """Run the binary; raises ValueError and OSError as `run` and `removal.remove` do."""
    if not remove:
        manifest = _prepare(layout, source, out)
    elif others := [f"--{name}" for name in _MAKES if flags.FLAGS[name].present]:
        raise UserError(f"--remove: expected only --out=DIR beside it, got {others}.")
    else:
        manifest, count = removal.remove(Path(out), remove)
        done = f"{count:,} images were" if count else "Nothing left to do: its images are already"
        print(f"{remove}: {done} taken out of {out}. What is left:")
    if manifest is None:
        print("The shards of this process are written; others are at work on the rest.")
        return
    shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]
    counts = ", ".join(f"{s}: {facts['count']:,}" for s, facts in manifest["splits"].items())
    print(f"{counts} images of {len(manifest['class_names'])} classes, in {len(shards)} shards.")
    if manifest["quarantined"]:
        where = Path(out) / photos.QUARANTINE
        print(f"{manifest['quarantined']} files are no readable images and were left out: {where}")
    if flags.FLAGS.verify:
        records.check_shards(
            Path(out), tqdm(shards, "verifying", unit="shard", disable=None), contents=True
        )
        print("Every shard has the sha256 that it was written with.")
    fields = {"kind": "records", "path": out, "splits": tuple(manifest["splits"])}
    print(f"For a config:\n  config.data.update({fields})")


def _prepare(layout: str, source: str, out: str) -> dict[str, Any] | None:
    given = flags.FLAGS
    if not layout or not source:
        raise UserError(
            f"Expected --layout=… and --source=…, or --remove=…. For example:\n  {_EXAMPLE}"
        )
    storing = Storing(given.resize, given.resize_how, given.encode, given.quality)
    return run(
        layout,
        Path(source),
        Path(out),
        name=given.name,
        storing=storing,
        images_per_shard=given.images_per_shard,
        workers=given.workers,
        process_id=given.process_id,
        num_processes=given.num_processes,
        val_labels=given.val_labels,
        classes=given.classes,
        lists=tuple(given.list),
        say=lambda note: print(note, file=sys.stderr),
    )


if __name__ == "__main__":
    flags.DEFINE_enum("layout", "", ("", *layouts.LAYOUTS), "How the source is laid out.")
    flags.DEFINE_string("source", "", "The folder of the images.")
    flags.DEFINE_string("out", None, "The folder to make, or to go on with.")
    flags.DEFINE_string("name", "", "Of the dataset; by default the layout's or the folder's.")
    flags.DEFINE_string("val_labels", "", "Classes of validation images without class folders.")
    flags.DEFINE_string("classes", "", "A list of the classes to take.")
    flags.DEFINE_multi_string("list", [], "A list of the images to take; can be repeated.")
    flags.DEFINE_integer("resize", 0, "Pixels of the shorter side, or of both; 0: do not.")
    flags.DEFINE_enum("resize_how", RESIZE_HOW[0], RESIZE_HOW, "How, if --resize.")
    flags.DEFINE_enum("encode", "png", ENCODE, "Of what is resized.")
    flags.DEFINE_integer("quality", 95, "Of JPEG, 95 to 100.")
    flags.DEFINE_integer("images_per_shard", 4096, "Images of a shard.")
    flags.DEFINE_integer("workers", 0, "Threads; 0: as many as there are cores.")
    flags.DEFINE_integer("num_processes", 1, "Processes that share the work.", lower_bound=1)
    flags.DEFINE_integer("process_id", 0, "Which of them this is.", lower_bound=0)
    flags.DEFINE_bool("verify", False, "Compare every shard with its sha256.")
    flags.DEFINE_string("remove", "", "A list of images to take out of the records in --out.")
    cli.start(main, needs=("layout", "source", "out", "remove"), example=_EXAMPLE)
