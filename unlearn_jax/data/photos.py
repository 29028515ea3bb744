"""Image files of anybody's, opened safely: regular files, known formats, bounded sizes.

What cannot be read has one reason, a `UserError` that begins with the image's id. `survey` finds
all of these before a run begins, so that none ends it later.
"""

import contextlib
import csv
import errno
import io
import json
import math
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from unlearn_jax import files
from unlearn_jax.data.readers import Listing, Survey, read_file, split_ranges
from unlearn_jax.registry import UserError, brief

try:  # iPhones' format, of which Pillow alone reads nothing
    import pillow_heif

    pillow_heif.register_heif_opener()
except ImportError:
    pillow_heif = None

# Others, such as EPS, would start programs; of a GIF the first frame is taken.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
FORMATS += ("HEIF",) if pillow_heif else ()
MAX_PIXELS = 178_956_970  # where Pillow itself ends
MAX_RATIO = 200  # of the sides; the shorter one may have to become data.image_size
BACKGROUND = "white"  # of what is transparent
QUARANTINE = "quarantine.csv"
LAYERS = 3  # of an image that is composed, at once in memory, so that it may have fewer pixels
_LARGE, _alone, _together = 2**25, threading.Lock(), contextlib.nullcontext()  # pixels; one at once
_MORE = f"expected at most {MAX_PIXELS / 1e6:.0f} megapixels, got more"
_GREY = np.rint(np.arange(2**16, dtype=np.float32) / 257).astype(np.uint8)
_HEIC = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
COMPOSED = "composed"  # key of an image's `info`: it had something transparent


def decode(data: bytes, id: str, exif: bool = False) -> Image.Image:
    """Decode an image file to RGB, 8 bits per channel; 16-bit greys become the nearest of 256.

    Palettes, CMYK and grey become RGB as PIL converts them. What is transparent is composed on
    white, and `info[COMPOSED]` of the image says so.

    Args:
        data: the file.
        id: of the image, for messages.
        exif: turn it as the camera says.

    Raises:
        UserError: no image of FORMATS, a truncated or too large one, or one without a known range
            of values (PIL's modes I and F); the message starts with the id.
    """
    with _reading(id, data):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    _check_header(image, wide, id)
    with _reading(id, data), _alone if math.prod(image.size) > _LARGE else _together:
        image.load()
        if exif:
            with contextlib.suppress(Exception):  # EXIF that cannot be read says nothing
                image = ImageOps.exif_transpose(image)
        if wide:  # PIL would saturate, not rescale
            return Image.fromarray(_GREY[np.asarray(image)]).convert("RGB")
        if image.has_transparency_data:
            return _composed(image)
        return image if image.mode == "RGB" else image.convert("RGB")


def _check_header(image: Image.Image, wide: bool, id: str) -> None:
    """Check what is known of an image before it is decoded; raise UserError if it is unsuitable."""
    (width, height), most = image.size, MAX_PIXELS
    if image.has_transparency_data:
        most //= LAYERS
    if width * height > most:
        kind = " with transparency" * (most < MAX_PIXELS)
        raise UserError(
            f"{id}: expected at most {most / 1e6:.0f} megapixels{kind}, got more: {width} x "
            f"{height}. Make it smaller."
        )
    if max(image.size) > MAX_RATIO * min(image.size):
        raise UserError(
            f"{id}: expected sides that differ {MAX_RATIO} times at most, got {width} x {height} "
            "pixels. Cut it."
        )
    if image.mode in ("I", "F") and not wide:
        raise UserError(f"{id}: expected 8 or 16 bits per channel, got mode {image.mode!r}.")


def _composed(image: Image.Image) -> Image.Image:
    """Return an image on a background, in RGB."""
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema()[0] == 255:
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, BACKGROUND)
    ground.alpha_composite(image)
    composed = ground.convert("RGB")
    composed.info |= {**image.info, COMPOSED: True}
    return composed


@contextlib.contextmanager
def _reading(id: str, data: bytes) -> Iterator[None]:
    """Turn whatever PIL raises about a bad file into a UserError that is the same every time."""
    try:
        yield
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{id}: {_MORE}. Make it smaller.") from error
    except UnidentifiedImageError as error:  # its own message has an address in it
        apple = data[4:8] == b"ftyp" and data[8:12] in _HEIC
        why = "HEIC needs: pip install pillow-heif" if apple else "of no known format"
        raise UserError(f"{id}: cannot be read as an image ({why}).") from error
    except Exception as error:  # plugins raise what they like
        raise UserError(f"{id}: cannot be read as an image ({brief(error)}).") from error


def survey(listing: Listing, folder: str | Path, exif: bool) -> Listing:
    """Return a listing of a folder without the files that cannot be read, and with sizes.

    Every file is decoded once. What was found is kept in the user's cache, for files of the same
    size and time of change.

    Raises:
        UserError: no file of a split can be read, or a disk fails.
    """
    folder = Path(folder)
    known = files.digest(
        [str(folder.resolve()), listing.ids, [_stamp(folder / id) for id in listing.ids]]
        + [FORMATS, PIL.__version__, exif]
    )
    path = files.cache_folder() / f"photos-{known[:32]}.json"
    try:
        found = json.loads(path.read_text("utf-8"))
        bad, composed, sizes = found["bad"], found["composed"], found["sizes"]
    except (OSError, ValueError, KeyError, TypeError):  # none, or damaged
        found = _look(listing, folder, exif)
        bad, composed, sizes = found["bad"], found["composed"], found["sizes"]
        with contextlib.suppress(OSError), files.whole(path, f".{os.getpid()}") as partial:
            partial.write_text(json.dumps(found))
    keep = [row for row, id in enumerate(listing.ids) if id not in bad]
    counts = {s: sum(row in rows for row in keep) for s, rows in listing.splits.items()}
    empty = [split for split, count in counts.items() if not count]
    if empty:
        shown = "".join(f"\n  {id}: {reason}" for id, reason in list(bad.items())[:10])
        raise UserError(
            f"{folder}: no file of split {empty[0]!r} can be read as an image:{shown}\n"
            f"Formats that are read: {', '.join(FORMATS)}."
        )
    return replace(
        listing,
        ids=[listing.ids[row] for row in keep],
        labels=listing.labels[keep],
        splits=split_ranges(list(counts), list(counts.values())),
        encoded=lambda rows: listing.encoded([keep[row] for row in rows]),
        sizes=np.array([sizes[row] for row in keep], np.int32),
        survey=Survey(bad, composed, exif),
    )


def _look(listing: Listing, folder: Path, exif: bool) -> dict[str, Any]:
    """Decode every file; return reasons of bad ones, how many were composed, and all sizes."""

    def attempt(row: int) -> tuple[str, bool, tuple[int, int]]:
        id = listing.ids[row]
        try:
            image = decode(read_file(folder / id, id), id, exif)
        except UserError as error:
            return str(error).removeprefix(f"{id}: "), False, (0, 0)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ELOOP):
                raise UserError(
                    f"{folder / id}: cannot be read ({error.strerror}). Is its disk there?"
                ) from error
            return f"cannot be read ({error.strerror}).", False, (0, 0)
        return "", COMPOSED in image.info, image.size

    name, n = f"checking {listing.name}", len(listing.ids)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(attempt, range(n))
        found = list(tqdm(results, name, n, delay=2, unit="image", disable=None))
    reasons, composed, sizes = zip(*found, strict=True)
    bad = {id: reason for id, reason in zip(listing.ids, reasons, strict=True) if reason}
    return {"bad": bad, "composed": sum(composed), "sizes": sizes}


def _stamp(path: Path) -> list[int]:
    """Return numbers that change with the content of a file, and with who may read it."""
    with contextlib.suppress(OSError):  # a link to nothing
        found = path.stat()
        return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]
    return []


def describe(survey: Survey, n: int) -> list[str]:
    """Say in lines what was left out, or changed, of n images and the files that are none."""
    lines = []
    if survey.bad:
        first = [f"{id!a} {reason}" for id, reason in list(survey.bad.items())[:3]]
        more = f" … and {len(survey.bad) - 3} more" if len(survey.bad) > 3 else ""
        lines.append(
            f"{len(survey.bad)} of {n + len(survey.bad)} files cannot be read and are left out "
            f"({QUARANTINE}); save as PNG what should be in: {' '.join(first)}{more}"
        )
    if survey.composed:
        lines.append(f"{survey.composed} images have transparency: they are seen on {BACKGROUND}")
    return lines


def quarantine(bad: Iterable[Sequence[str]]) -> bytes:
    """Return a table of paths and reasons as CSV: names have the bytes that files have.

    A cell that a spreadsheet would compute begins with an apostrophe.
    """
    text = io.StringIO()
    rows = [[f"'{cell}" if cell[:1] in _FORMULA else cell for cell in row] for row in bad]
    csv.writer(text, lineterminator="\n").writerows([("path", "reason"), *rows])
    return text.getvalue().encode("utf-8", "surrogateescape")


def quarantined(path: Path) -> dict[str, str]:
    """Return the reasons of a table by path; {} if there is no such file."""
    if not path.is_file():
        return {}

    def plain(cell: str) -> str:
        return cell[1:] if cell[:1] == "'" and cell[1:2] in _FORMULA else cell

    try:
        with files.regular(path).open(
            encoding="utf-8", errors="surrogateescape", newline=""
        ) as file:
            rows = csv.reader(file)
            next(rows, None)
            return {plain(row[0]): plain(row[1]) for row in rows if len(row) == 2}
    except csv.Error as error:
        raise UserError(f"{path}: expected a table of paths and reasons; {error}.") from error
