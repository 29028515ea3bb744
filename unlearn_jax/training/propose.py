"""Propose a config for a folder of photos: look at them, time a step here, write a file to edit.

    unlearn-jax init photos --minutes=20

The file starts from `configs/photos.py`, sets what depends on the photos and on this machine, and
says why, line by line.
"""

import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from unlearn_jax import cli, models
from unlearn_jax.config.load import load_config
from unlearn_jax.data import photos, readers
from unlearn_jax.registry import UserError

SIZES = 32, 64, 128  # pixels of a side
EPOCHS, LEAST_STEPS, MOST_STEPS = 20, 600, 20_000
REPAIR = 0.2  # steps of unlearning / of training, as in configs/photos.py
FEW = 40  # photos, below which no audit can say anything


class Proposal(NamedTuple):
    """What a config for a folder of photos says, and why.

    Attributes:
      splits: training split, and the one that is never trained on, if the folder has it.
      photos: that can be read, of the training split.
      unread: files that cannot.
      classes: folders.
      side: median of the shorter sides, pixels.
      image_size: pixels.
      steps: of training.
      rate: images/s of a training step here.
      minutes: of training, all models of a request.
    """

    splits: tuple[str, ...]
    photos: int
    unread: int
    classes: tuple[str, ...]
    side: int
    image_size: int
    steps: int
    rate: float
    minutes: float


def propose(folder: Path, minutes: float) -> Proposal:
    """Look at every photo of a folder and time a training step.

    Args:
      folder: photos, or a folder for each class, or those below train/ and test/ (or val/).
      minutes: that training all models of a request may take; fewer steps are proposed if they
        must be, but not fewer than LEAST_STEPS.

    Raises:
      UserError: no such folder, or fewer than FEW photos in it.
    """
    found = readers.folder_splits(folder)
    splits = tuple(name for name in ("train", "test", "val", "validation") if name in found)[:2]
    if "train" not in splits:
        raise UserError(f"{folder}: expected a split train/, got {sorted(found)}. Rename one.")
    listing = photos.survey(readers.list_folder(folder, splits), folder, exif=True)
    rows = np.asarray(listing.splits["train"])
    if len(rows) < FEW:
        raise UserError(
            f"{folder}: expected at least {FEW} photos, got {len(rows)}. Add photos: of fewer, no "
            "audit can say what was forgotten."
        )
    side = int(np.median(listing.sizes[rows].min(axis=1)))
    size = max([s for s in SIZES[:2] if s <= side], default=SIZES[0])
    config = load_config("photos", {"data.image_size": size})
    trained = len(rows) * (1 if len(splits) == 2 else 1 - config.holdout.fraction)
    rate = images_per_second(config)
    runs = 2 + config.audit.shadows + REPAIR  # original, retrained, shadows, unlearned
    wanted = max(LEAST_STEPS, round(EPOCHS * trained / config.batch_size))
    affordable = int(60 * minutes * rate / (runs * config.batch_size))
    steps = min(wanted, max(affordable, LEAST_STEPS), MOST_STEPS)
    took = runs * steps * config.batch_size / rate / 60
    unread, names = len(listing.survey.bad), tuple(listing.class_names)
    return Proposal(splits, len(rows), unread, names, side, size, steps, rate, took)


def images_per_second(config: ConfigDict, seconds: float = 2.0) -> float:
    """Time gradients of the training loss of a config's model on one device, compilation apart."""
    model, size = models.of(config), config.data.image_size
    shape = config.batch_size, size, size
    batch = {"image": jnp.zeros((*shape, 3)), "mask": jnp.ones((*shape, 1))}
    key = jax.random.key(0)
    params = jax.jit(model.init)(key)
    step = jax.jit(jax.grad(lambda params: model.loss(params, batch, key).mean()))
    jax.block_until_ready(step(params))
    start, done = time.monotonic(), 0
    while time.monotonic() < start + seconds:
        jax.block_until_ready(step(params))
        done += 1
    return done * config.batch_size / (time.monotonic() - start)


def text(folder: Path, of: Proposal) -> str:
    """Return the config file, with a comment on every value."""
    folders = ", ".join(map(ascii, of.classes[:4])) + (" …" if len(of.classes) > 4 else "")
    unread = f"; {of.unread} more cannot be read and are left out" if of.unread else ""
    repair, example = round(REPAIR * of.steps), (*of.classes, "")[0] + "/IMG_0007.jpg"
    batches = load_config("photos").batch_size
    holdout = "" if len(of.splits) == 1 else f"\n    config.holdout.split = {of.splits[1]!r}"
    values = f"""\
    config.name = {folder.resolve().name!a}
    # {of.photos:,} photos in {len(of.classes)} folders ({folders}){unread}.
    config.data.path = {str(folder.resolve())!a}
    config.data.splits = {of.splits!r}{holdout}
    # Pixels of a side; the photos' shorter sides have a median of {of.side}. Twice as many show
    # more, and take four times as long.
    config.data.image_size = {of.image_size}
    # One path on each line, such as {example!a}.
    config.request.file = "forget.txt"
    # Steps of {batches} photos. At {of.rate:,.0f} photos/s, as on this machine, that is
    # {of.minutes:.0f} min for all models of a request. With more steps a model
    # completes better, and remembers more.
    config.phases.pretrain.steps = {of.steps}
    config.phases.repair.steps = {repair}  # of unlearning"""
    return f'''"""Forget photos of a folder. `unlearn-jax init` wrote this, to be edited."""

from unlearn_jax import load_config


def get_config():
    config = load_config("photos")  # the values that are not here
{values}
    return config
'''


def main(folder: str) -> None:
    """Run the command."""
    if not folder:
        raise UserError(
            "init: expected a folder of photos. For example:\n  unlearn-jax init photos"
        )
    of = Path(folder)
    out = Path(flags.FLAGS.out or f"forget_{of.resolve().name}.py")
    if out.exists():
        raise UserError(f"--out: {out} is there already, and may be edited. Give another --out.")
    minutes = flags.FLAGS.minutes
    found = propose(of, minutes)
    out.write_text(text(of, found), encoding="utf-8")
    more = f" --minutes={minutes:g} would be too few." if found.minutes > minutes else ""
    print(
        f"{out}: {found.photos:,} photos at {found.image_size} x {found.image_size}, about "
        f"{found.minutes:.0f} min of training.{more}",
        "Write the photos to forget into forget.txt, one path on each line. Look, then start:",
        f"  unlearn-jax request --config={out} --out=runs/request",
        f"  unlearn-jax pipeline --config={out} --workdir=runs/{out.stem}",
        sep="\n",
    )


if __name__ == "__main__":
    if sys.argv[1:2] and not sys.argv[1].startswith("-"):
        sys.argv[1] = f"--photos={sys.argv[1]}"
    flags.DEFINE_string("photos", "", "Folder of photos.")
    flags.DEFINE_string("out", "", "File to write; forget_NAME.py of a folder NAME if not given.")
    flags.DEFINE_float("minutes", 20.0, "That training all models of a request may take.")
    cli.start(main, needs=("photos",), example="photos")
