"""What data sets are of: images, masks, arrays, records, lists, tables, tfds."""

import contextlib
import hashlib
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from tests.helpers import photos as made_photos
from tests.helpers import sets
from tools.fuzz.format import Format
from tools.fuzz.mutate import BYTES, GZIP, IMAGE, JSON, NPZ, PNG, TEXT, Tree, dumped
from unlearn_jax import files
from unlearn_jax.data import (
    copies,
    layouts,
    mask_files,
    names,
    photos,
    preprocess,
    published,
    records,
    removal,
    served,
    slices,
    sources,
)
from unlearn_jax.evaluate.metrics import fid
from unlearn_jax.report import page

VIEW = preprocess.View(16, "crop", exif=True)
IDS = names.ids_of(sets.SOURCE)


# ---- images ----


def _images(made: Path) -> None:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x9003] = 6, "camera", "2026:01:01 00:00:00"
    kinds = {"jpg": {"exif": exif}, "png": {"exif": exif}, "webp": {"exif": exif}, "bmp": {},
             "gif": {}, "tiff": {}, "ppm": {}, "avif": {}}  # fmt: skip
    clear = small.copy()
    clear.putalpha(Image.linear_gradient("L").resize(small.size))
    grey = Image.fromarray(np.arange(108, dtype=np.uint16).reshape(9, 12) * 600)
    more = {"clear.png": clear, "clear.webp": clear, "grey.tiff": grey, "grey.png": grey,
            "palette.png": small.quantize(8), "cmyk.jpg": small.convert("CMYK"),
            "bits.tiff": small.convert("1"), "packed.tiff": small, "progressive.jpg": small,
            "grey.ppm": small.convert("L"), "some.gif": small.quantize(4)}  # fmt: skip
    every = {f"plain.{suffix}": (small, options) for suffix, options in kinds.items()}
    options = {"packed.tiff": {"compression": "tiff_lzw"}, "progressive.jpg": {"progressive": True},
               "some.gif": {"save_all": True, "append_images": [small.quantize(3)]}}  # fmt: skip
    every |= {name: (image, options.get(name, {})) for name, image in more.items()}
    for name, (image, given) in every.items():
        folder = made / name.replace(".", "_")
        folder.mkdir()
        image.save(folder / name, **given)
    (made / "mask").mkdir()
    Image.fromarray(np.uint8([[0] * 8 + [255] * 8] * 16)).save(made / "mask/mask.png")


def _decoded(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        data = photos.read_file(path, path.name)
        for exif in (False, True):
            preprocess.fit(photos.decode(data, path.name, exif), VIEW, path.name)


def _opened(folder: Path) -> Any:
    given = {"image_size": 16, "splits": ("train",), "resize": "pad", "exif": True}
    return sources.open_source(kind="folder", path=str(folder), **given)


def _masks(folder: Path) -> Any:
    ids = [path.name for path in folder.iterdir()]
    return mask_files.load(str(folder), ids, VIEW, None)


def _mask(folder: Path) -> Any:
    return [mask_files.load(str(path), ["a"], VIEW, None) for path in folder.iterdir()]


# ---- arrays ----


def _arrays(made: Path) -> None:
    for name in "abcde":
        (made / name).mkdir()
    files.write_arrays(
        made / "a/arrays.npz", {"x": np.arange(6.0).reshape(2, 3), "n": 3}, {"k": [1]}
    )
    fid.save(made / "b/arrays.npz", fid.Moments(*(np.ones(2) for _ in fid.Moments._fields)))
    image, label = np.zeros((4, 16, 16, 3), np.uint8), np.array([0, 1, 1, 0])
    np.savez(made / "c/arrays.npz", image=image, label=label)
    more = {
        "id": ["a", "b", "c", "d"],
        "split": ["train"] * 3 + ["test"],
        "class_names": ["x", "y"],
    }
    np.savez_compressed(made / "d/arrays.npz", image=image / np.float32(255), label=label, **more)
    some = copies.Hashes(np.ones((4, 2), np.uint64), np.ones((4, 4), np.uint64))
    copies.save(made / "e/arrays.npz", list("abcd"), some)


def _npz(folder: Path) -> Any:
    return sources.open_source(
        kind="arrays", path=str(folder / "arrays.npz"), image_size=16, splits=("train",)
    )


def _hashes(folder: Path) -> None:
    if copies.load(folder / "arrays.npz", list("abcd")) is None:
        raise OSError("arrays.npz: made anew")


# ---- lists and tables ----


def _lists(made: Path) -> None:
    ids = sets.SOURCE.ids
    train = [ids[row] for row in sets.SOURCE.splits["train"] if "ant" not in ids[row]][:12]
    plain = "".join(f"{id}\n" for id in train)
    table = "id,when\n" + "".join(f'"{id}",{i}\n' for i, id in enumerate(train))
    signs = "imgs;labels\n" + "".join(f"data/{id};{(-1) ** i}\n" for i, id in enumerate(train))
    classes = {"cat": 0, "dog": 150}
    wide = "# some\n" + plain.replace("/", "\\")
    reasons = photos.quarantine([("a/=1.png", "truncated"), ("b.png", "a,b")]).decode()
    texts = {"plain": plain, "table": table, "signs": signs, "classes": json.dumps(classes),
             "names": "/cat\ndog\n# owl\n", "wide": wide, "reasons": reasons}  # fmt: skip
    for name, text in texts.items():
        (made / name).mkdir()
        (made / name / "list.txt").write_bytes(text.encode("utf-16" if name == "wide" else "utf-8"))
    raw = made / "raw"
    for name in ("n01440764", "n01443537"):
        for i in range(2):
            (raw / "train" / name).mkdir(parents=True, exist_ok=True)
            (raw / "train" / name / f"{name}_{i}.JPEG").write_bytes(b"")
    (raw / "val").mkdir()
    for i in range(4):
        (raw / "val" / f"ILSVRC2012_val_{i}.JPEG").write_bytes(b"")
    lines = "".join(
        f"ILSVRC2012_val_{i}.JPEG,n0144{(0, 3)[i % 2]}{(764, 537)[i % 2]}\n" for i in range(4)
    )
    (raw / "list.txt").write_text("ImageId,PredictionString\n" + lines)
    shutil.copytree(raw, made / "raw2")
    (made / "raw2/list.txt").write_text("".join(f"ILSVRC2012_val_{i} {i % 2}\n" for i in range(4)))
    shutil.copytree(raw, made / "raw3")
    (made / "raw3/list.txt").write_text("n01440764\nn01443537\n")


def _layout(option: str) -> Any:
    def find(folder: Path) -> Any:
        given = str(folder / "list.txt")
        whole = {"val_labels": given} if option != "val_labels" and option == "classes" else {}
        more = {option: [given] if option == "lists" else given}
        if option == "classes":
            for path in (folder / "val").glob("*"):
                inside = folder / "val" / ("n01440764", "n01443537")[int(path.stem[-1]) % 2]
                inside.mkdir(exist_ok=True)
                path.rename(inside / path.name)
            whole = {}
        return layouts.find("imagenet", folder, **(whole | more))

    return find


def _found(folder: Path, **options: str) -> Any:
    return names.find_images(folder / "list.txt", IDS, "--list", "x", **options)


def _request(folder: Path) -> Any:
    request = {"kind": "ids", "file": str(folder / "list.txt"), "per_class": 3}
    return sets.resolve(request, {"kind": "complement"})


def _retained(folder: Path) -> Any:
    ants = {"kind": "classes", "classes": ("ant",)}
    return sets.resolve(ants, {"kind": "ids", "file": str(folder / "list.txt")})


def _sliced(folder: Path) -> Any:
    spec = ConfigDict(
        {"file": str(folder / "list.txt"), "column": "when", "bounds": (3, 7), "count": 3}
    )
    rows = np.array([IDS.find(f.text) for f in names.read_names(
        names.read_text(spec.file, "list"), spec.file, IDS)], np.int64)  # fmt: skip
    return slices.assign(sets.SOURCE, rows[rows >= 0], spec)


# ---- prepared records ----


def _records(made: Path) -> None:
    from unlearn_jax.data import prepare

    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder)
        rng = np.random.default_rng(0)
        for i in range(8):
            (raw / ("cat", "dog")[i % 2]).mkdir(exist_ok=True)
            Image.fromarray(made_photos.photo(rng)[:32, :32]).save(
                raw / ("cat", "dog")[i % 2] / f"{i}.png"
            )
        (raw / "cat/broken.png").write_bytes(b"none")
        prepare.run("folder", raw, made / "a", images_per_shard=4, workers=1)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(made / "a" / records.UNFINISHED)
    source = _record_source(made / "a")
    entry = served.entry("h" * 64, "Forget.", source, np.array([0, 2]), np.ones((8, 2), np.uint64))
    served.write(made / "a" / served.FILE, {"format": served.FORMAT, "requests": [entry]})


def _record_source(folder: Path) -> Any:
    return sources.open_source(
        kind="records", path=str(folder), image_size=16, splits=("train",), resize="crop"
    )


def _listing(folder: Path) -> Any:
    found = records.list_records(folder, tuple(records.read_manifest(folder)["splits"]))
    return found.encoded(list(range(len(found.ids))))


def _forgotten(folder: Path) -> Any:
    data = ConfigDict({"path": str(folder), "kind": "records"})
    entries = served.of_data(served.place(data))
    return served.in_manifest(sets.SOURCE, entries, np.ones((len(sets.SOURCE), 2), np.uint64))


def _removed(folder: Path) -> Any:
    (folder / "gone.txt").write_text("cat/0.png\n")
    return removal.remove(folder, str(folder / "gone.txt"))


def _seal_records(tree: Tree) -> None:
    """Make the manifest agree with the shards and the index, and both files with their hashes."""
    manifest = json.loads(tree["manifest.json"])
    of = {
        shard["file"]: shard for split in manifest["splits"].values() for shard in split["shards"]
    }
    for name in of.keys() & tree.keys():
        content = tree[name]
        of[name] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["index"] = hashlib.sha256(tree["index.gz"]).hexdigest()
    manifest.pop("hash", None)
    tree["manifest.json"] = dumped(manifest | {"hash": records.digest(manifest)})
    remembered = json.loads(tree[served.FILE])
    remembered.pop("digest", None)
    tree[served.FILE] = dumped(remembered | {"digest": records.digest(remembered)})


# ---- tfds ----


def _tfds(made: Path) -> None:
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name, code_path, VERSION = "places365_small", None, tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {"image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
                        "label": tfds.features.ClassLabel(names=["attic", "bakery/shop"]),
                        "filename": tfds.features.Text()}  # fmt: skip
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, _: Any) -> Any:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            for i in range(4):
                data = io.BytesIO()
                Image.new("RGB", (8, 8), (i, 0, 0)).save(data, "png")
                data.seek(0)
                yield i, {"image": data, "label": i % 2, "filename": f"{i}.png"}

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        Builder(data_dir=folder, file_format="array_record").download_and_prepare()
        shutil.copytree(folder, made / "a")


def _prepared(keep: bool) -> Any:
    return lambda folder: sources.open_source(
        kind="tfds", name="places365_small", data_dir=str(folder), image_size=8, splits=("train",),
        cache=keep,
    )  # fmt: skip


FORMATS = {
    "images": Format(
        _images,
        {"decode": _decoded, "folder": _opened, "masks": _masks, "mask": _mask},
        {"*.png": PNG, "*": IMAGE},
        memory=13 * 2**27,  # 1.6 GiB, as SECURITY.md says
        modules=("data/photos.py", "data/readers.py", "data/mask_files.py"),
    ),
    "arrays": Format(
        _arrays,
        {
            "read_arrays": lambda p: files.read_arrays(p / "arrays.npz"),
            "moments": lambda p: fid.load(p / "arrays.npz"),
            "source": _npz,
            "hashes": _hashes,
            "page": lambda p: page.load(p, "arrays.npz", page.unzip, {"x": "f2"}),
        },
        {"*.npz": NPZ},
        modules=("data/sources.py",),
    ),
    "lists": Format(
        _lists,
        {
            "request": _request,
            "retain": _retained,
            "forget": lambda p: _found(p, role="forget"),
            "column": lambda p: _found(p, column="id"),
            "classes": lambda p: published.read_classes(p / "list.txt", "forget"),
            "quarantine": lambda p: photos.quarantined(p / "list.txt"),
            "slices": _sliced,
            "labels": _layout("val_labels"),
            "some": _layout("classes"),
        },
        {"list.txt": TEXT},
        alters=("some",),
        names=frozenset({"request.", "retain.", "split:", "data.slices", "--classes", "--source"}),
        modules=("data/names.py", "data/layouts.py", "data/select.py", "data/published.py"),
    ),
    "records": Format(
        _records,
        {
            "list": _listing,
            "source": _record_source,
            "hashes": lambda p: copies.beside_records(p, ["cat/0.png"]),
            "forgotten": _forgotten,
            "remove": _removed,
        },
        {"*.json": JSON, "index.gz": GZIP, "*.array_record": BYTES, "quarantine.csv": TEXT,
         "copies.npz": NPZ},
        seal=_seal_records,
        alters=("remove",),
        names=frozenset({"data.splits"}),
        modules=("data/records.py", "data/index.py", "data/served.py", "data/copies.py"),
    ),
    "tfds": Format(
        _tfds,
        {"keep": _prepared(True), "read": _prepared(False)},
        {"*.json": JSON, "*.txt": TEXT, "*array_record*": BYTES},
        modules=("data/tfds_records.py",),
    ),
}  # fmt: skip
