"""Views pixel by pixel against PIL used by hand, crops against torchvision's algorithm."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from unlearn_jax import data
from unlearn_jax.data import joining, photos, preprocess, sources
from unlearn_jax.data.preprocess import Crops, View

TASK = {"name": "inpaint", "hole": 0.5}
SIZES = [(40, 24), (24, 40), (24, 24), (25, 33), (16, 16), (12, 17), (500, 17)]


def smooth(width, height, seed=0):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, format="png", **options):
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


# The evaluation view.


@pytest.mark.parametrize("size", SIZES)
def test_crop_is_resize_and_center_crop(size):
    image = smooth(*size)
    width, height = size
    # torchvision: Resize(16) keeps the shorter side and truncates the longer, CenterCrop(16) rounds
    # half to even, as Python does.
    if width <= height:
        whole = (16, int(16 * height / width))
    else:
        whole = (int(16 * width / height), 16)
    resized = image if whole == size else image.resize(whole, Image.Resampling.BICUBIC)
    left, top = round((whole[0] - 16) / 2.0), round((whole[1] - 16) / 2.0)
    expected = np.asarray(resized)[top : top + 16, left : left + 16]
    found = preprocess.fit(image, View(16, "crop"), "x")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("how", "filter"),
    [
        ("squash_bilinear", Image.Resampling.BILINEAR),
        ("squash_bicubic", Image.Resampling.BICUBIC),
    ],
)
def test_squash_ignores_proportions(how, filter):
    for size in SIZES:
        image = smooth(*size)
        expected = np.asarray(image.resize((16, 16), filter))
        np.testing.assert_array_equal(preprocess.fit(image, View(16, how), "x"), expected)


def test_resampling_is_antialiased():
    # A one-pixel checkerboard, four times smaller: its mean, where interpolating four pixels
    # without antialiasing would leave black and white.
    board = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    for how in preprocess.RESIZE[1:]:
        assert np.ptp(preprocess.fit(board, View(16, how), "x")[2:-2, 2:-2]) < 20


def test_none_wants_the_exact_size():
    image = smooth(16, 16)
    np.testing.assert_array_equal(preprocess.fit(image, View(16), "x"), np.asarray(image))
    with pytest.raises(ValueError, match=r"a/b.png: expected 16 x 16 .* got 17 x 16. Set data.res"):
        preprocess.fit(smooth(17, 16), View(16), "a/b.png")


def test_decoding_is_exact_and_never_a_draft():
    big = encoded(smooth(320, 256), "jpeg", quality=90)
    image = Image.open(io.BytesIO(big))
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
    found = preprocess.fit(photos.decode(big, "x"), View(16, "squash_bicubic"), "x")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "bad", [b"", b"no image", encoded(smooth(30, 30))[:-40], encoded(smooth(64, 64), "jpeg")[:700]]
)
def test_bad_files_are_named_with_the_same_words_every_time(bad):
    messages = set()
    for _ in range(3):
        with pytest.raises(ValueError, match="a/b.png: cannot be read as an image") as error:
            photos.decode(bad, "a/b.png")
        messages.add(str(error.value))
    assert len(messages) == 1 and "0x" not in messages.pop()


# Random views.


def reference_view(image, size, box, flip):
    left, top, width, height = box
    pixels = np.asarray(image)[top : top + height, left : left + width]
    resized = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(resized)[:, ::-1] if flip else np.asarray(resized)


def test_views_are_crop_then_resize_then_flip():
    image, crops = smooth(50, 37), Crops()
    flips = []
    for position in range(40):
        key = np.array([5, position], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        box = preprocess.crop_box(50, 37, crops, rng)
        flips.append(bool(rng.random() < 0.5))
        expected = reference_view(image, 16, box, flips[-1])
        np.testing.assert_array_equal(
            preprocess.random_view(image, View(16, crops=crops), key), expected
        )
        plain = preprocess.random_view(image, View(16, crops=Crops(flip=False)), key)
        np.testing.assert_array_equal(plain, reference_view(image, 16, box, False))
    assert 8 <= sum(flips) <= 32


def torchvision_box(width, height, scale, ratio, rng):
    """RandomResizedCrop.get_params, written from its description, with another generator."""
    for _ in range(10):
        target = height * width * rng.uniform(scale[0], scale[1])
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            return left, top, w, h
    if width / height < min(ratio):
        w, h = width, round(width / min(ratio))
    elif width / height > max(ratio):
        w, h = round(height * max(ratio)), height
    else:
        w, h = width, height
    return (width - w) // 2, (height - h) // 2, w, h


@pytest.mark.parametrize("size", [(100, 75), (75, 100), (64, 64), (300, 50)])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.2, 0.5)])
def test_crops_are_distributed_as_torchvisions(size, scale):
    from scipy import stats

    n, crops = 3000, Crops(scale=scale)
    rng = np.random.default_rng(1)
    ours = np.array([preprocess.crop_box(*size, crops, rng) for _ in range(n)])
    other = np.random.default_rng(2)
    theirs = np.array([torchvision_box(*size, scale, crops.ratio, other) for _ in range(n)])
    for found, expected in zip(ours.T, theirs.T, strict=True):  # left, top, width, height
        assert stats.ks_2samp(found, expected, method="asymp").pvalue > 1e-4
    area, ratio = ours[:, 2] * ours[:, 3], ours[:, 2] / ours[:, 3]
    share = area / (size[0] * size[1])
    if size == (64, 64) and scale == (0.2, 0.5):  # everything fits: the moments are known
        assert abs(share.mean() - 0.35) < 5 * 0.3 / math.sqrt(12 * n)
        assert abs(np.log(ratio).mean()) < 5 * 0.2 / math.sqrt(n)
    assert (ours[:, :2] >= 0).all() and (ours[:, 0] + ours[:, 2] <= size[0]).all()
    assert (ours[:, 1] + ours[:, 3] <= size[1]).all()


@pytest.mark.parametrize(("size", "box"), [((300, 6), (146, 0, 8, 6)), ((6, 300), (0, 146, 6, 8))])
def test_what_never_fits_is_the_middle(size, box):
    rng = np.random.default_rng(0)
    assert preprocess.crop_box(*size, Crops(scale=(0.9, 1.0)), rng) == box


# In sources and batches.


def folder(tmp_path, n=6, size=None):
    for i in range(n):
        file = tmp_path / "train" / f"class{i % 2}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        smooth(*(size or SIZES[i % 4]), seed=i).save(file)
    return {"kind": "folder", "path": str(tmp_path), "image_size": 16, "splits": ("train",)}


def train(source, **changes):
    options = {
        "retain_rows": np.array([0, 1, 2, 3]), "forget_rows": np.array([4, 5]), "batch_size": 8,
        "forget_fraction": 0.25, "task": TASK, "seed": 3, "first_step": 0, "num_steps": 6,
        "num_threads": 2,
    }  # fmt: skip
    return list(data.make_train(source, **{**options, **changes}))


def test_cached_and_uncached_evaluation_views_agree(tmp_path):
    where = folder(tmp_path)
    for how in preprocess.RESIZE[1:]:
        lazy = sources.open_source(**where, resize=how, cache=False)
        cached = sources.open_source(**where, resize=how, cache=True)
        rows = np.arange(6)
        np.testing.assert_array_equal(lazy.fetch(rows), cached.fetch(rows))
        image = Image.open(tmp_path / lazy.ids[1])
        expected = preprocess.fit(image, View(16, how), "x")
        np.testing.assert_array_equal(lazy.fetch(rows)[1], expected)
    for cache in (True, False):
        with pytest.raises(ValueError, match="expected 16 x 16 pixels"):
            sources.open_source(**where, cache=cache)


def test_training_views_follow_seed_stream_and_position_only(tmp_path):
    source = sources.open_source(**folder(tmp_path), resize="crop", cache=False, crops=Crops())
    whole = train(source)
    for threads in (0, 5):
        for batch, other in zip(whole, train(source, num_threads=threads), strict=True):
            np.testing.assert_array_equal(batch["image"], other["image"])
    for batch, other in zip(whole[4:], train(source, first_step=4, num_steps=2), strict=True):
        np.testing.assert_array_equal(batch["image"], other["image"])
    halves = np.array_split(np.arange(len(whole[0]["index"])), 2)
    parts = [train(source, places=places) for places in halves]
    for step, batch in enumerate(whole):
        joined = np.concatenate([part[step]["image"] for part in parts])
        np.testing.assert_array_equal(joined, batch["image"])
    # Another seed, stream or epoch shows another part of the same row.
    assert not np.array_equal(whole[0]["image"], train(source, seed=4)[0]["image"])
    images = {i: [] for i in range(6)}
    for batch in whole:
        for row, image in zip(batch["index"].tolist(), batch["image"], strict=True):
            images[row].append(image.tobytes())
    assert all(len(set(views)) == len(views) > 4 for views in images.values())
    one = {"retain_rows": np.array([0]), "forget_rows": np.array([0]), "forget_fraction": 0.5}
    both = train(source, **one)[0]
    assert not np.array_equal(both["image"][:4], both["image"][4:])


def test_views_are_those_of_the_original_image(tmp_path):
    source = sources.open_source(**folder(tmp_path), resize="crop", cache=False, crops=Crops())
    batch = train(source, forget_rows=None, retain_rows=np.array([1]), num_steps=1)[0]
    image = Image.open(tmp_path / source.ids[1])
    for position, found in enumerate(batch["image"]):
        key = np.array([data._key(3, data._RETAIN, data._VIEW, 0), position], np.uint64)
        expected = preprocess.random_view(image, View(16, crops=Crops()), key)
        np.testing.assert_allclose(found, expected / 127.5 - 1, atol=1e-6)


def test_evaluation_never_has_random_views(tmp_path):
    where = folder(tmp_path)
    augmented = sources.open_source(**where, resize="crop", cache=False, crops=Crops())
    plain = sources.open_source(**where, resize="crop", cache=False)
    for source in (augmented, joining.subset(augmented, 6, 0)):
        options = {"rows": np.arange(6), "batch_size": 4, "task": TASK, "seed": 0}
        for batch, other in zip(
            data.make_eval(source, **options), data.make_eval(plain, **options), strict=True
        ):
            np.testing.assert_array_equal(batch["image"], other["image"])


def test_images_in_memory_have_views_too(tmp_path):
    where = folder(tmp_path, size=(16, 16))
    sources_ = [
        sources.open_source(**where, cache=cache, crops=Crops(flip=False))
        for cache in (True, False)
    ]
    pixels = sources_[0].fetch(np.arange(6))
    np.savez(tmp_path / "set.npz", image=pixels, label=np.zeros(6, int))
    sources_.append(
        sources.open_source(
            kind="arrays", path=str(tmp_path / "set.npz"), image_size=16, splits=("train",),
            crops=Crops(flip=False),
        )
    )  # fmt: skip
    first = train(sources_[0])
    assert not np.array_equal(first[0]["image"][0], first[1]["image"][0])
    for source in sources_[1:]:
        for batch, other in zip(first, train(source), strict=True):
            np.testing.assert_array_equal(batch["image"], other["image"])
    np.testing.assert_array_equal(sources_[2].fetch(np.arange(6)), pixels)  # unchanged


def test_proxy_and_poison_keep_views(tmp_path):
    from unlearn_jax.data import poison

    where = folder(tmp_path / "a")
    a = sources.open_source(**where, resize="crop", cache=False, crops=Crops())
    b = sources.open_source(
        **folder(tmp_path / "b", n=3), resize="crop", cache=False, crops=Crops()
    )
    both = joining.concat(a, b)
    keys = np.array([[1, i] for i in range(4)], np.uint64)
    found = both.fetch(np.array([7, 0, 6, 1]), keys)
    np.testing.assert_array_equal(found[[1, 3]], a.fetch(np.array([0, 1]), keys[[1, 3]]))
    np.testing.assert_array_equal(found[[0, 2]], b.fetch(np.array([1, 0]), keys[[0, 2]]))
    assert both.augmented
    backdoor = poison.design(TASK, 16)
    planted = poison.plant(both, np.array([0]), backdoor)
    expected = found.copy()
    expected[1] = backdoor.plant(found[1:2])[0]
    np.testing.assert_array_equal(planted.fetch(np.array([7, 0, 6, 1]), keys), expected)
    assert planted.augmented


def test_what_random_views_do_not_go_with(tmp_path):
    where = folder(tmp_path)
    with pytest.raises(ValueError, match=r"but data.cache=True keeps .*'crop' makes"):
        sources.open_source(**where, resize="crop", cache=True, crops=Crops())
    source = sources.open_source(**where, resize="crop", cache=False, crops=Crops())
    with pytest.raises(ValueError, match="opened without random views"):
        plain = sources.open_source(**where, resize="crop", cache=False)
        plain.fetch(np.arange(1), np.zeros((1, 2), np.uint64))
    columns = {"view_output": np.zeros((6, 16, 16, 3), np.float32)}
    with pytest.raises(ValueError, match="Set objective_kw.direction=0"):
        train(source, columns=columns)
    assert train(source, columns={"goal": np.zeros(6, np.float32)})[0]["goal"].shape == (8,)
