"""Forget some of your own photos. Here they are made; put yours into FOLDER/photos.

python examples/own_photos.py [FOLDER]
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import unlearn_jax as uj


def make_photos(folder: Path) -> None:
    """Write 120 photos of two classes: coloured discs and stripes."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    for name in ("discs", "stripes"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(60):
            disc = (x - rng.integers(8, 24)) ** 2 + (y - rng.integers(8, 24)) ** 2 < 64
            shape = disc if name == "discs" else (x + rng.integers(8)) % 8 < 4
            colours = rng.integers(0, 256, (2, 3))
            pixels = np.where(shape[..., None], *colours).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{k:03}.png")


def main(folder: Path, changes: dict | None = None) -> None:
    """Train on the photos, forget three of them by name, complete one with both models."""
    photos = folder / "photos"
    if not photos.exists():
        make_photos(photos)
    (folder / "forget.txt").write_text("discs/000.png\ndiscs/001.png\nstripes/000.png\n")
    own = {"data.path": str(photos), "request.file": str(folder / "forget.txt")}
    request = uj.Request(uj.load_config("photos", own | (changes or {})))
    print(request)
    original = request.train("original", folder / "original")
    unlearned = request.train("unlearned", folder / "unlearned", start=original)
    photo = Image.open(photos / "discs" / "000.png")
    for name, model in (("original", original), ("unlearned", unlearned)):
        model.complete(photo, seed=0).save(folder / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_photos"))
