"""Completed images as files, in shards: what is finished is not done again."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int, PRNGKeyArray, UInt8
from PIL import Image

from unlearn_jax import data, distributed, sharding
from unlearn_jax.config import identity
from unlearn_jax.data import transforms
from unlearn_jax.files import read_json, write_json
from unlearn_jax.models import Batch, Params
from unlearn_jax.registry import UserError

RECORD = "shards.json"
FORMATS = {"png": ".png", "jpeg_bgr_compat": ".JPEG", "jpeg_75_compat": ".jpg"}
"""Formats of image files, and their endings. "png" is lossless. "jpeg_bgr_compat" is how Li et al.
wrote MAGE's images: cut to 8 bits instead of rounded, red and blue exchanged, JPEG of quality 95;
"jpeg_75_compat" Palette's: JPEG of quality 75."""
Generate = Callable[[Params, Batch, PRNGKeyArray], Array]


def complete(
    generate: Generate,
    params: Params,
    source: data.Source,
    rows: Int[np.ndarray, "n"],
    task: Mapping[str, Any],
    folder: Path,
    *,
    facts: Mapping[str, Any],
    seed: int,
    batch_size: int,
    shard_size: int,
    mesh: Mesh,
    format: str = "png",
    seen: Callable[[int], Any] = lambda rows: None,
) -> list[Path]:
    """Complete images into files; return the files in the order of the rows.

    A model's noise for an image depends on the seed and the image's row only, so the files do not
    depend on batches, on shards or on interruptions. A shard counts once all its files are there.
    Several processes share the model's work, the first one writes.

    Args:
      generate: compiled `model.generate`.
      params: of the model.
      source: the images.
      rows: which of them.
      task: see `transforms.make_mask`.
      folder: gets CLASS/NAME.png, and a record of the finished shards.
      facts: what the images depend on besides the arguments here: the model, its checksums.
      seed: of everything random.
      batch_size: over all devices.
      shard_size: images per shard, at least 1; an interruption loses one shard at most.
      mesh: where batches are put.
      format: of the files, see `FORMATS`.
      seen: told the number of rows that were completed or found.

    Raises:
      UserError: the folder holds images of something else; two images have one name.
      OSError: an image could not be written.
    """
    ids = [source.ids[row] for row in rows.tolist()]
    files = [folder / name for name in names(ids, FORMATS[format])]
    ids = hashlib.sha256("\n".join(ids).encode()).hexdigest()
    facts = {**facts, "task": dict(task), "seed": seed, "ids": ids, "format": format}
    facts |= {"shard_size": shard_size}
    done = distributed.agreed(_claim(folder, facts))
    key = jax.random.key(seed)
    for number, first in enumerate(range(0, len(rows), shard_size)):
        shard = slice(first, first + shard_size)
        if number in done:
            seen(len(rows[shard]))
            continue
        batches = data.make_eval(
            source, rows[shard], batch_size=batch_size, task=task, seed=seed, num_threads=1
        )
        place = first
        with ThreadPoolExecutor(2) as pool:
            writing = []
            for batch in batches:
                output = generate(params, sharding.split_batch(batch, mesh), key)
                images = distributed.fetch(output)[batch["valid"]]
                pairs = zip(files[place : place + len(images)], images, strict=True)
                if distributed.first():
                    writing += [pool.submit(_write, *pair, format) for pair in pairs]
                place += len(images)
                seen(len(images))
            for future in writing:
                future.result()
        done.append(number)
        if distributed.first():
            _save(folder, facts, done)
    distributed.agreed(len(done))  # that all files are there
    return files


def read(file: Path, format: str) -> UInt8[np.ndarray, "h w 3"]:
    """Read the image in a file that `complete` has written; its colours are in their places.

    Raises:
      UserError: it cannot be read.
    """
    try:
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise UserError(
            f"{file} cannot be read ({error}). Remove its folder to complete its images again."
        ) from error
    return pixels[..., ::-1] if format == "jpeg_bgr_compat" else pixels


def names(ids: Sequence[str], ending: str) -> list[str]:
    """Name a file, with that ending, after every example id, such as "val/n01443537/x.png".

    Raises:
      UserError: an id would lead out of the folder, or two lead to one file.
    """
    paths = [PurePosixPath(id.lstrip("/")) for id in ids]
    bad = [str(path) for path in paths if ".." in path.parts or not path.name]
    found = [str(path.with_suffix(ending)) for path in paths if path.name]
    bad += [name for name, count in Counter(found).items() if count > 1]
    if bad:
        raise UserError(f"Cannot name the completed images: {bad[:5]} are no file names of one "
                         "image each. Rename those images.")  # fmt: skip
    return found


def _write(file: Path, image: Float32[np.ndarray, "h w 3"], format: str) -> None:
    pixels, buffer = transforms.to_uint8(image), io.BytesIO()
    if format == "png":
        Image.fromarray(pixels).save(buffer, "png", compress_level=1)
    elif format == "jpeg_75_compat":
        Image.fromarray(pixels).save(buffer, "jpeg", quality=75)
    else:
        pixels = (255 * ((image + 1) / 2).clip(0, 1)).astype(np.uint8)[..., ::-1]
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "jpeg", quality=95)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(buffer.getvalue())


def _claim(folder: Path, facts: Mapping[str, Any]) -> list[int]:
    """Find the finished shards in this folder, and check that they are of the same facts."""
    path, facts = folder / RECORD, json.loads(json.dumps(facts))
    if not path.exists():
        return []
    try:
        record = read_json(path, "what is completed")
        before, done = record["facts"], [int(number) for number in record["done"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Remove {folder} to complete its images again."
        ) from error
    if changed := identity.changes(before, facts, "images"):
        listed = "\n".join(f"  {line}" for line in changed[:20])
        raise UserError(
            f"{folder} holds images completed otherwise:\n{listed}\nChoose another --workdir, or "
            "remove that folder."
        )
    return done


def _save(folder: Path, facts: Mapping[str, Any], done: Sequence[int]) -> None:
    write_json(folder / RECORD, {"facts": facts, "done": sorted(done)})
