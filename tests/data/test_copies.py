"""Copies against brute force over all pairs, and the cache against damage."""

import dataclasses
import functools
import io
import zipfile

import imagehash
import numpy as np
import pytest
from PIL import Image

from unlearn_jax.data import copies, sources


@functools.cache
def sample():
    """300 natural images, as a source and as an array."""
    source = sources.open_source(kind="tfds", name="cifar10_sample", image_size=32)
    images = source.fetch(np.arange(0, 3000, 10))
    return images, sources.from_arrays(images, np.zeros(300, int))


@functools.cache
def hashes():
    return copies.hash_source(sample()[1])


def source_of(images, **options):
    return sources.from_arrays(np.stack(images), np.zeros(len(images), int), **options)


def made(n, seed=0, copied=0.2):
    """Hashes near each other, some of equal pixels."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 2**63, (n, 2)).astype(np.uint64)
    pixels[:, 0] = 7  # both halves count
    near = np.tile(rng.integers(0, 2**63, (1, 4)).astype(np.uint64), (n, 1))
    for row, flips in enumerate(rng.integers(0, 80, n)):
        for bit in rng.choice(256, flips, replace=False).tolist():
            near[row, bit // 64] ^= np.uint64(1 << (bit % 64))
    for row in np.flatnonzero(rng.random(n) < copied).tolist():
        pixels[row], near[row] = pixels[row // 2], near[row // 2]
    return copies.Hashes(pixels, near)


def bits(words):
    return "".join(f"{int(word):064b}" for word in words)


def brute(hashes, of, among, distance):
    found = []
    for a in of:
        for b in among:
            apart = sum(x != y for x, y in zip(bits(hashes.near[a]), bits(hashes.near[b])))  # noqa: B905
            if apart <= distance and hashes.pixels[a].tolist() != hashes.pixels[b].tolist():
                found.append((apart, a, b))
    return [[a, b, apart] for apart, a, b in sorted(found)]


def jpeg(image, quality=75):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def resized(image, size=48):
    there = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(there.resize((32, 32), Image.Resampling.BICUBIC))


def brighter(image):
    return np.clip(image * 1.1, 0, 255).astype(np.uint8)


# Pixel-identical images.


def test_exact_copies_are_those_of_equal_bytes():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 2, (120, 1, 4, 3), np.uint8)[rng.integers(0, 60, 120)]
    hashed = copies.hash_source(source_of(images))
    of, among = rng.permutation(120)[:50], rng.permutation(120)[:90]
    places = {}
    for row in among.tolist():
        places.setdefault(images[row].tobytes(), []).append(row)
    expected = [[a, b] for a in of.tolist() for b in places.get(images[a].tobytes(), ()) if a != b]
    assert len(expected) > 20
    assert copies.exact(hashed, of, among).tolist() == sorted(expected)


def test_both_halves_of_the_hash_of_pixels_count():
    hashed = made(200)
    found = copies.exact(hashed, range(200), range(200)).tolist()
    keys = [tuple(row) for row in hashed.pixels.tolist()]
    assert found == [
        [a, b] for a in range(200) for b in range(200) if a != b and keys[a] == keys[b]
    ]
    assert 0 < len(found) < 2000


def test_one_pixel_or_another_shape_is_not_exact_but_near():
    image = sample()[0][0]
    changed = image.copy()
    changed[3, 5, 1] ^= 1
    hashed = copies.hash_source(source_of([image, changed, image]))
    assert copies.exact(hashed, [0, 1, 2], [0, 1, 2]).tolist() == [[0, 2], [2, 0]]
    assert copies.near(hashed, [1], [0, 1, 2])[:, :2].tolist() == [[1, 0], [1, 2]]
    flat = np.zeros((2, 8, 3), np.uint8)
    tall, wide = (copies.hash_image(flat.reshape(shape))[0] for shape in ((8, 2, 3), (2, 8, 3)))
    assert (tall != wide).any()


def test_the_hash_of_looks_is_that_of_the_library():
    for image in sample()[0][:20]:
        bits = copies.hash_image(image)[1].astype("<u8").tobytes().hex()
        assert bits == str(imagehash.phash(Image.fromarray(image), 16))


def test_images_of_one_colour_look_the_same():
    plain = [np.full((32, 32, 3), value, np.uint8) for value in (1, 128, 255)]
    found = copies.near(copies.hash_source(source_of(plain)), [0], range(3), 0)
    assert found.tolist() == [[0, 1, 0], [0, 2, 0]]


def test_memory_layout_does_not_matter():
    image = sample()[0][0]
    view = np.asfortranarray(image)
    for a, b in zip(copies.hash_image(image), copies.hash_image(view), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("search", [copies.exact, copies.near])
def test_no_rows_make_no_pairs_and_wrong_rows_are_refused(search):
    none = np.array([], np.int64)
    assert len(search(made(5), none, range(5))) == len(search(made(5), range(5), none)) == 0
    for rows in ([5], [-1]):
        with pytest.raises(IndexError, match=r"rows in 0\.\.4"):
            search(made(5), rows, [0])
        with pytest.raises(IndexError, match=r"rows in 0\.\.4"):
            search(made(5), [0], rows)


# Near-duplicates.


@pytest.mark.parametrize("block", [1, 97, 2**21])
def test_near_copies_are_those_of_all_pairs(monkeypatch, block):
    monkeypatch.setattr(copies, "_BLOCK", block)
    hashed = made(60)
    of, among = np.arange(50, 10, -1), np.random.default_rng(1).permutation(60)[:45]
    for distance in (0, 40, 68):
        found = copies.near(hashed, of, among, distance).tolist()
        assert found == brute(hashed, of.tolist(), among.tolist(), distance)
    assert len(found) > 200
    assert copies.near(hashed, of, among).tolist() == brute(
        hashed, of.tolist(), among.tolist(), copies.DISTANCE
    )


def test_all_bits_may_differ():
    pixels = np.arange(4, dtype=np.uint64).reshape(2, 2)
    words = np.array([[0] * 4, [2**64 - 1] * 4], np.uint64)
    hashed = copies.Hashes(pixels, words)
    assert copies.near(hashed, [0], [1], 255).tolist() == []
    assert copies.near(hashed, [0], [0, 1], 256).tolist() == [[0, 1, 256]]


@pytest.mark.parametrize("change", [jpeg, resized, brighter])
def test_changed_copies_are_found_and_others_are_not(change):
    images = sample()[0]
    chosen = range(0, 300, 10)
    both = source_of([*images, *(change(images[row]) for row in chosen)])
    hashed = copies.hash_source(both)
    found = copies.near(hashed, range(300, 330), range(300))
    own = {(300 + i, row) for i, row in enumerate(chosen)}
    assert {tuple(pair) for pair in found[:, :2].tolist()} == own
    assert found[:, 2].max() <= 40  # far below the threshold


def test_larger_images_are_compared_with_smaller_ones():
    image = sample()[0][7]
    larger = np.asarray(Image.fromarray(image).resize((80, 80), Image.Resampling.BICUBIC))
    small, large = copies.hash_image(image), copies.hash_image(larger)
    assert (small[0] != large[0]).any()
    assert np.bitwise_count(small[1] ^ large[1]).sum() <= 20


def test_unrelated_images_are_far():
    apart = np.bitwise_count(hashes().near[:, None] ^ hashes().near).sum(2, dtype=int)
    assert 120 < np.median(apart[np.triu_indices(300, 1)]) < 136


# Sources and the cache.


def test_images_are_hashed_as_stored_where_the_source_knows_them():
    images, source = sample()
    flipped = dataclasses.replace(source, original=lambda row: images[row, :, ::-1])
    fetched = dataclasses.replace(source, original=None)
    np.testing.assert_array_equal(copies.hash_source(fetched).pixels, hashes().pixels)
    for row in (0, 299):
        pixels, near = copies.hash_image(images[row, :, ::-1].copy())
        np.testing.assert_array_equal(copies.hash_source(flipped).pixels[row], pixels)
        np.testing.assert_array_equal(copies.hash_source(flipped).near[row], near)


def test_rows_keep_their_place_over_chunks(monkeypatch):
    monkeypatch.setattr(copies, "_CHUNK", 7)
    for a, b in zip(copies.hash_source(sample()[1]), hashes(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_cache_is_read_and_not_made_again(tmp_path, monkeypatch):
    cache = tmp_path / "a" / "hashes.npz"
    first = copies.hash_source(sample()[1], cache)
    assert [file.name for file in cache.parent.iterdir()] == ["hashes.npz"]
    count = []
    hash_image = copies.hash_image
    monkeypatch.setattr(copies, "hash_image", lambda image: count.append(1) or hash_image(image))
    again = copies.hash_source(sample()[1], cache)
    assert 0 < len(count) <= 16  # a look at a few
    for a, b, c in zip(first, again, copies.load(cache, sample()[1].ids), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_other_ids_other_order_and_other_versions_are_not_accepted(tmp_path, monkeypatch):
    cache = tmp_path / "hashes"
    ids = [f"train_{i}" for i in range(5)]
    copies.save(cache, ids, made(5))
    assert copies.load(cache, ids) is not None
    for other in (ids[:4], ids + ["x"], ids[::-1], ["train_9"] + ids[1:]):
        assert copies.load(cache, other) is None
    copies.save(cache, ["a:b", "c"], made(2))
    assert copies.load(cache, ["a", "b:c"]) is None
    copies.save(cache, ids, made(4))  # not of so many images
    assert copies.load(cache, ids) is None
    copies.save(cache, ids, made(5))
    monkeypatch.setattr(copies, "FORMAT", "unlearn_jax.copies.v2")
    assert copies.load(cache, ids) is None


def test_the_cache_of_other_images_with_the_same_ids_is_made_again(tmp_path):
    cache = tmp_path / "hashes"
    images, source = sample()
    copies.hash_source(source, cache)
    others = copies.hash_source(source_of(images[::-1]), cache)
    np.testing.assert_array_equal(others.pixels, hashes().pixels[::-1])
    np.testing.assert_array_equal(copies.load(cache, source.ids).pixels, others.pixels)


def cut(data):
    return data[: len(data) // 2]


def flip_in_the_middle(data):
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize(
    "damage", [cut, flip_in_the_middle, lambda data: b"", lambda data: b"\x80\x04N."]
)
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    cache = tmp_path / "hashes"
    ids = sample()[1].ids
    copies.hash_source(sample()[1], cache)
    cache.write_bytes(damage(cache.read_bytes()))
    assert copies.load(cache, ids) is None
    again = copies.hash_source(sample()[1], cache)
    np.testing.assert_array_equal(again.near, hashes().near)
    np.testing.assert_array_equal(copies.load(cache, ids).near, hashes().near)


def test_a_cache_without_an_array_is_none(tmp_path):
    cache = tmp_path / "hashes"
    copies.save(cache, ["a"], made(1))
    with zipfile.ZipFile(cache) as whole, zipfile.ZipFile(tmp_path / "part", "w") as part:
        for name in set(whole.namelist()) - {"near.npy"}:
            part.writestr(name, whole.read(name))
    assert copies.load(cache, ["a"]) is not None
    assert copies.load(tmp_path / "part", ["a"]) is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    found = copies.hash_source(sample()[1], tmp_path / "file" / "hashes")
    np.testing.assert_array_equal(found.near, hashes().near)
    good = tmp_path / "hashes"
    good.write_bytes(b"as before")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    copies.hash_source(sample()[1], good)
    assert good.read_bytes() == b"as before"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "hashes"]
    with pytest.raises(OSError, match="No space"):
        copies.save(good, ["a"], made(1))


# What is kept between runs.


@pytest.mark.long
def test_what_took_minutes_is_kept_and_read_again(tmp_path, monkeypatch):
    hashes = copies.hash_source(
        sources.open_source(kind="tfds", name="cifar10_sample", image_size=32)
    )
    of, among = np.arange(0, 2500, 10), np.arange(2500)
    expected = copies.near(hashes, of, among)
    assert len(expected) and copies.near_once(hashes, of, among, tmp_path).tolist() == (
        expected.tolist()
    )
    assert not list(tmp_path.iterdir())  # few pairs are compared again
    monkeypatch.setattr(copies, "_WORTH_KEEPING", 1)
    assert copies.near_once(hashes, of, among, tmp_path / "new").tolist() == expected.tolist()
    (kept,) = (tmp_path / "new").iterdir()
    monkeypatch.setattr(copies, "near", None)
    assert copies.near_once(hashes, of, among, tmp_path / "new").tolist() == expected.tolist()
    for other in ((hashes, of[1:], among), (hashes, of, among[1:]), (changed(hashes), of, among)):
        with pytest.raises(TypeError):  # it is not that of these rows and images
            copies.near_once(*other, tmp_path / "new")
    monkeypatch.undo()
    monkeypatch.setattr(copies, "_WORTH_KEEPING", 1)
    kept.write_bytes(kept.read_bytes()[:50])
    assert copies.near_once(hashes, of, among, tmp_path / "new").tolist() == expected.tolist()


def changed(hashes):
    pixels = hashes.pixels.copy()
    pixels[0] += np.uint64(1)
    return hashes._replace(pixels=pixels)
