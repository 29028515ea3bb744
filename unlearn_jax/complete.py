"""Complete images of yours: each model fills the same holes, side by side.

    unlearn-jax complete --model=runs/cats/original --model=runs/cats/unlearned \\
        --images=photos --masks=holes --out=runs/completed

A model is the workdir of `train` or `convert`; with --model=NAME=DIR it gets a name of your own. A
mask has its image's name and size; white is generated; --masks=FILE is one for all images. Without
--masks the hole is that of the first model's task. Writes OUT/MODEL/IMAGE.png in the photo's own
size, in which only the hole has changed, and OUT/sheet.png: input, truth, and what each model makes
of it. Photos are turned as the camera says. What cannot be read is listed in OUT/quarantine.csv.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jaxtyping import Bool, Float32, Shaped, UInt8
from PIL import Image, ImageDraw, ImageOps
from tqdm import tqdm

from unlearn_jax import checkpoint, cli, convert, files, models, registry, sharding
from unlearn_jax.data import mask_files, photos, transforms
from unlearn_jax.data.readers import IMAGE_SUFFIXES, is_image, read_file
from unlearn_jax.data.sizes import Size, settled, sides
from unlearn_jax.registry import UserError

SHEET_ROWS, THUMBNAIL = 50, 160  # images at most, pixels of the longer side


class Completer:
    """A trained model that completes images of any size.

    Attributes:
      model: the architecture.
      params: its parameters.
      image_size: pixels that it works with, one number or (height, width); None: any.
      task: whose hole is generated where no mask is given; None: a mask must be given.
      workdir: where it was loaded from.
    """

    workdir: Path | None = None

    def __init__(
        self,
        model: models.Model,
        params: models.Params,
        image_size: Size | None,
        task: Mapping[str, Any] | None,
    ):
        """Keep what is given; nothing is compiled before the first image."""
        self.model, self.params, self.image_size, self.task = model, params, image_size, task
        self._generate = jax.jit(model.generate)

    def complete(self, image: Any, mask: Any = None, seed: int = 0) -> Any:
        """Return the image with its hole generated, and every other pixel as it was.

        The image is squeezed to the size that the model works with, and what was generated is
        stretched back. The same seed gives two models the same random numbers.

        Args:
          image: uint8 [h w 3] or [b h w 3], or a PIL image, which is then what is returned.
          mask: [h w] or [b h w], or a PIL image: True, or white, is to be generated. None: the hole
            of the task that the model was trained for.
          seed: of what the model draws, and of random holes.

        Raises:
          UserError: the image or the mask is not like that.
        """
        if isinstance(image, Image.Image):
            return Image.fromarray(self.complete(np.asarray(image.convert("RGB")), mask, seed))
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim not in (3, 4) or image.shape[-1] != 3:
            raise UserError(
                "complete: expected a PIL image or uint8 [h w 3] or [b h w 3], got "
                f"{image.dtype} {list(image.shape)}. Colours of 0 to 255 in the last axis."
            )
        batch = image if image.ndim == 4 else image[None]
        holes = self.holes(batch.shape[:3], seed) if mask is None else _as_holes(mask, batch.shape)
        size = self.image_size or batch.shape[1:3]
        small = [_squeeze(*pair, size) for pair in zip(batch, holes, strict=True)]
        n = len(batch)
        inputs = {
            "image": transforms.to_float(np.stack([pixels for pixels, _ in small])),
            "mask": np.stack([hole for _, hole in small]).astype(np.float32)[..., None],
            "label": np.zeros(n, np.int32),
            "index": np.arange(n, dtype=np.int32),
            "is_forget": np.zeros(n, bool),
            "valid": np.ones(n, bool),
        }
        output = self._generate(self.params, inputs, jax.random.key(seed))
        made = transforms.to_uint8(np.asarray(output, np.float32))
        pasted = batch.copy()
        for out, pixels, hole in zip(pasted, made, holes, strict=True):
            out[hole] = _stretch(pixels, hole.shape)[hole]
        return pasted if image.ndim == 4 else pasted[0]

    def __call__(self, batch: Mapping[str, Any], seed: int = 0) -> UInt8[np.ndarray, "b h w 3"]:
        """Complete a batch of `Request.batch`; the visible part is the model's, not pasted."""
        inputs = {name: batch[name] for name in ("image", "mask", "label", "index")}
        n = len(batch["image"])
        inputs |= {"is_forget": np.zeros(n, bool), "valid": np.ones(n, bool)}
        output = self._generate(self.params, inputs, jax.random.key(seed))
        return transforms.to_uint8(np.asarray(output, np.float32))

    def holes(self, shape: Sequence[int], seed: int = 0) -> Bool[np.ndarray, "b h w"]:
        """Return the holes of the model's task in images [b h w].

        Raises:
          UserError: the model does not say what its task is.
        """
        if self.task is None:
            raise UserError(
                "complete: a converted model, or one trained with masks from files, does not say "
                "which part it completes: expected masks, got none. Give a mask for every image "
                "(--masks=DIR), or one for all (--masks=FILE)."
            )
        keys = np.stack([np.full(shape[0], seed), np.arange(shape[0])], axis=1).astype(np.uint64)
        holes = transforms.make_mask(self.task, self.image_size, keys)[..., 0] > 0.5
        size = (shape[2], shape[1])
        return np.stack([np.asarray(Image.fromarray(hole).resize(size)) for hole in holes])


def load_model(workdir: Path | str) -> Completer:
    """Load a model from the workdir of `train` or `convert`; it needs no config.

    Of a model of your own, import its module first: a workdir may be somebody else's, so nothing
    that it names is imported.

    Raises:
      UserError: there is no model, it has not finished, or it is damaged.
    """
    model, size, task = _described(Path(workdir))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])  # whatever the number of images
    like = sharding.abstract(shapes, sharding.params_sharding(shapes, mesh))
    found = Completer(model, checkpoint.load_params(workdir, like)[0], size, task)
    found.workdir = Path(workdir)
    return found


@registry.of_record()
def _described(workdir: Path) -> tuple[models.Model, Size | None, Mapping[str, Any] | None]:
    """Return the architecture, the size of images and the task that a workdir tells about."""
    if (path := workdir / "config.json").exists():
        with files.of_others(path, "what train writes", "It is damaged, or of another program."):
            config = files.read_json(path, "what train writes")["config"]
            task = config["task"] if config["task"]["name"] != "masks" else None
            return models.of(config), settled(config["data"]["image_size"]), task
    if (workdir / convert.MANIFEST).exists():
        model = convert.described(workdir)
        return model, getattr(model, "image_size", None), None
    raise UserError(
        f"--model: expected the workdir of train or convert, {workdir} has no config.json. A "
        f"request has several, such as {workdir / 'unlearned'}."
    )


def _as_holes(mask: Any, shape: Sequence[int]) -> Bool[np.ndarray, "b h w"]:
    """Return masks as booleans [b h w], one for each image of this shape."""
    if isinstance(mask, Image.Image):
        mask = mask.convert("L")
    mask = np.asarray(mask)
    if mask.ndim > 2 and mask.shape[-1] == 1:
        mask = mask[..., 0]
    if mask.shape not in (tuple(shape[1:3]), tuple(shape[:3])):
        raise UserError(
            f"complete: expected a mask {list(shape[1:3])} or {list(shape[:3])}, as its image, got "
            f"{list(mask.shape)}. One number for each pixel: 0 stays, the largest is generated."
        )
    if mask.dtype != bool:
        mask = mask > (127 if mask.max() > 1 else 0)  # 0 and 255, or 0 and 1
    holes = np.broadcast_to(mask, shape[:3])
    if not holes.any((1, 2)).all():
        raise UserError(
            "complete: expected a hole in every image, got a mask without one. Make white what is "
            "to be generated."
        )
    return holes


def _squeeze(
    image: UInt8[np.ndarray, "h w 3"], hole: Bool[np.ndarray, "h w"], size: Size
) -> tuple[UInt8[np.ndarray, "h2 w2 3"], Bool[np.ndarray, "h2 w2"]]:
    """Return image and hole at the model's size; nothing of the hole is left in what is visible."""
    if hole.shape == sides(size):
        return image, hole
    small = _resize(hole.astype(np.float32), size, Image.Resampling.BOX) > 0
    # A mean of visible pixels only: plain resizing would mix what is hidden into its edge.
    seen = (~hole).astype(np.float32)
    weight = _resize(seen, size, Image.Resampling.BILINEAR)
    channels = [_resize(seen * image[..., c], size, Image.Resampling.BILINEAR) for c in range(3)]
    pixels = np.stack(channels, axis=-1) / np.maximum(weight, 1e-6)[..., None]
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), small


def _resize(
    values: Float32[np.ndarray, "h w"], size: Size, how: Image.Resampling
) -> Float32[np.ndarray, "h2 w2"]:
    return np.asarray(Image.fromarray(values).resize(sides(size)[::-1], how))


def _stretch(
    pixels: UInt8[np.ndarray, "h2 w2 3"], shape: Sequence[int]
) -> UInt8[np.ndarray, "h w 3"]:
    height, width = shape
    if pixels.shape[:2] == (height, width):
        return pixels
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


class Photo(NamedTuple):
    """An image of the user's: its name, its pixels, and its hole, if there is a mask."""

    name: str
    pixels: UInt8[np.ndarray, "h w 3"]
    mask: Shaped[np.ndarray, "h w"] | None


def run(
    workdirs: Mapping[str, Path], images: Path, masks: Path | None, out: Path, seed: int = 0
) -> dict[str, str]:
    """Complete all images of a folder with all models; return why others could not be read.

    Args:
      workdirs: of the models, by the name of what each writes.
      images: folder of photos, sub-folders included.
      masks: folder of masks with the same names, or one; None: the hole of the first model's task.
      out: gets NAME/IMAGE.png and sheet.png.
      seed: see `Completer.complete`.

    Raises:
      UserError: no images, none that can be read, no mask for one, or no model.
    """
    files = _files(images, "--images")
    holes = {file: _mask_of(file, images, masks) if masks else None for file in files}
    rows: dict[str, list[np.ndarray]] = {}
    bad: dict[str, str] = {}
    first = None
    total = len(files) * len(workdirs)
    with tqdm(total=total, unit="img", dynamic_ncols=True, disable=None) as bar:
        for name, workdir in workdirs.items():
            bar.set_description(name)
            loaded = load_model(workdir)
            first = first or loaded
            for number, photo in enumerate(_photos(holes, images, bad)):
                shape = (1, *photo.pixels.shape[:2])
                hole = photo.mask if masks else first.holes(shape, seed + number)[0]
                made = loaded.complete(photo.pixels, hole, seed + number)
                path = out / name / f"{photo.name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(made).save(path)
                if number < SHEET_ROWS:
                    grey = np.where(_as_holes(hole, (*shape, 3))[0][..., None], 128, photo.pixels)
                    row = rows.setdefault(photo.name, [grey.astype(np.uint8), photo.pixels])
                    row.append(made)
                bar.update()
    if not rows:
        raise UserError(f"--images: none of {len(files)} can be read: {bad}.")
    if bad:
        (out / photos.QUARANTINE).write_bytes(photos.quarantine(bad.items()))
    _sheet(["input", "truth", *workdirs], rows).save(out / "sheet.png")
    return bad


def _files(folder: Path, flag: str) -> list[Path]:
    files = [path for path in sorted(folder.rglob("*")) if is_image(path.name)]
    if not files:
        raise UserError(f"{flag}: expected a folder of {', '.join(IMAGE_SUFFIXES)}, found none in "
                         f"{folder}.")  # fmt: skip
    return files


def _mask_of(file: Path, images: Path, masks: Path) -> Path:
    name = file.relative_to(images)
    found = masks if masks.is_file() else mask_files.find(masks, name.as_posix())
    if not found:
        wanted = masks / name.with_suffix(".png")
        raise UserError(f"--masks: expected a mask for every image, {name} has none. Add {wanted}.")
    return found


def _photos(
    holes: Mapping[Path, Path | None], images: Path, bad: dict[str, str]
) -> Iterator[Photo]:
    """Yield the photos that can be read; `bad` gets the reasons of the others."""
    for file, of in holes.items():
        name = file.relative_to(images)
        try:
            pixels = np.asarray(_read(file))
        except UserError as error:
            bad[str(name)] = str(error).removeprefix(f"{file}: ")
            continue
        mask = np.asarray(_read(of).convert("L")) if of else None
        if of and mask.shape != pixels.shape[:2]:
            sizes = [f"{a.shape[1]} x {a.shape[0]}" for a in (pixels, mask)]
            raise UserError(f"--masks: expected {of} as large as its image, {sizes[0]} pixels, "
                             f"got {sizes[1]}. Draw it again at that size.")  # fmt: skip
        if of and not mask.any():
            raise UserError(f"--masks: expected a hole, {of} is black. Make white what is to be "
                             "generated.")  # fmt: skip
        yield Photo(name.with_suffix("").as_posix(), pixels, mask)


def _read(file: Path) -> Image.Image:
    """Return an image as its owner sees it: turned as the camera says."""
    return photos.decode(read_file(file, str(file)), str(file), exif=True)


def _sheet(columns: Sequence[str], rows: Mapping[str, Sequence[np.ndarray]]) -> Image.Image:
    """Return a picture of all rows below the names of the columns."""
    cell, line = THUMBNAIL + 8, 20
    sheet = Image.new("RGB", (cell * len(columns), line + (cell + line) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for x, title in enumerate(columns):
        draw.text((x * cell + 4, 4), title, "black")
    for y, (name, pictures) in enumerate(rows.items()):
        top = line + y * (cell + line)
        shown = name.encode("utf-8", "backslashreplace").decode()
        draw.text((4, top + cell), shown, "black")
        for x, pixels in enumerate(pictures):
            picture = ImageOps.contain(Image.fromarray(pixels), (THUMBNAIL, THUMBNAIL))
            sheet.paste(picture, (x * cell + 4, top + 4))
    return sheet


def named(texts: Sequence[str]) -> dict[str, Path]:
    """Return the workdirs of --model=DIR and --model=NAME=DIR by name.

    Raises:
      UserError: two have the same name.
    """
    pairs = [text.rpartition("=")[::2] for text in texts]
    pairs = [(name or Path(folder).absolute().name, Path(folder)) for name, folder in pairs]
    names = [name for name, _ in pairs]
    if len({*names}) < len(names):
        raise UserError(
            f"--model: expected models of different names, got {names}. Name them: "
            f"--model=NAME={pairs[-1][1]}."
        )
    return dict(pairs)


def main(model: list[str], images: str, out: str) -> None:
    """Run the command."""
    masks = flags.FLAGS.masks
    masks = Path(masks) if masks else None
    bad = run(named(model), Path(images), masks, Path(out), flags.FLAGS.seed)
    if bad:
        print(f"{len(bad)} files cannot be read: {Path(out) / photos.QUARANTINE}.")
    print(f"Completed images: {out}. Side by side: {Path(out) / 'sheet.png'}.")


if __name__ == "__main__":
    flags.DEFINE_multi_string("model", None, "Workdir of a model, or NAME=DIR; can be repeated.")
    flags.DEFINE_string("images", None, "Folder of the images.")
    flags.DEFINE_string("masks", "", "Masks of the same names, or one for all; white is generated.")
    flags.DEFINE_string("out", None, "Folder of the completed images.")
    flags.DEFINE_integer("seed", 0, "Of what models draw, and of random holes.")
    cli.start(
        main,
        needs=("model", "images", "out"),
        example="--model=runs/quickstart/original --model=runs/quickstart/unlearned "
        "--images=photos --out=runs/completed",
    )
