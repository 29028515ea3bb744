"""A folder of photos as people have them: any size, mode, format and name, and what is none."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

ODD = b"caf\xe9 \xff.jpg"  # no UTF-8
BAD = ("broken.jpg", "Thumbs.db", "=1+1 bad.png", "notes.txt", "empty.png")


def make(folder: Path, n: int, seed: int = 0) -> int:
    """Write n photos into two classes of a new folder, and what is none; return how many there are.

    All is a function of the seed. The first class gets `BAD` and one more photo, named `ODD`.
    """
    rng = np.random.default_rng(seed)
    for name in ("holiday", "zoo"):
        (folder / name).mkdir(parents=True)
    for i in range(n):
        _save(folder / ("holiday" if i % 2 else "zoo") / f"IMG_{i:04}", photo(rng), i)
    Image.fromarray(photo(rng)).save(os.fsencode(folder / "holiday") + b"/" + ODD, "jpeg")
    Image.fromarray(photo(rng)).save(folder / "holiday" / "broken.jpg", quality=95)
    whole = (folder / "holiday" / "broken.jpg").read_bytes()
    (folder / "holiday" / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "holiday" / "empty.png").write_bytes(b"")
    for name in ("Thumbs.db", "=1+1 bad.png", "notes.txt"):
        (folder / "holiday" / name).write_bytes(b"\xd0\xcf\x11\xe0 no image")
    (folder / "zoo" / "edited").mkdir()  # a folder in a class is part of it
    Image.fromarray(photo(rng)).save(folder / "zoo" / "edited" / "one.png")
    return n + 2


def photo(rng: np.random.Generator) -> np.ndarray:
    """Draw a smooth picture, 40 to 90 pixels high and wide, that JPEG hardly changes."""
    small = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8))
    size = [int(side) for side in rng.integers(40, 90, 2)]
    return np.asarray(small.resize(size, Image.Resampling.BICUBIC))


def _save(path: Path, pixels: np.ndarray, i: int) -> None:
    image = Image.fromarray(pixels)
    if i % 12 == 0:  # lying on its side, as a phone stores it
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(path.with_suffix(".jpg"), quality=95, exif=exif)
    elif i % 12 == 1:
        image.convert("L").save(path.with_suffix(".PNG"))
    elif i % 12 == 2:
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(
            path.with_suffix(".tiff")
        )
    elif i % 12 == 3:
        image.convert("CMYK").save(path.with_suffix(".jpeg"), quality=95)
    elif i % 12 == 4:
        image.quantize(64).save(path.with_suffix(".gif"))
    elif i % 12 == 5:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.save(path.with_suffix(".png"))
    else:
        suffix = (".jpg", ".webp", ".bmp", ".tif", ".ppm", ".avif")[i % 12 - 6]
        image.save(path.with_suffix(suffix))
