import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import unlearn_jax
from tests.helpers import photos as made
from unlearn_jax import complete
from unlearn_jax.data import photos
from unlearn_jax.registry import UserError

SIZE = (48, 40)  # width, height: another size and shape than the model's 32 x 32


@pytest.fixture(scope="module")
def workdir(tiny_original):
    return tiny_original[0]


@pytest.fixture(scope="module")
def model(workdir):
    return complete.load_model(workdir)


def photo(seed=0, size=SIZE):
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


def hole(size=SIZE):
    mask = np.zeros(size[::-1], bool)
    mask[9:25, 12:31] = True
    return mask


@pytest.mark.long
def test_only_the_hole_changes_at_the_photos_own_size(model):
    image, mask = photo(), hole()
    made = model.complete(image, mask)
    assert made.shape == image.shape and made.dtype == np.uint8
    np.testing.assert_array_equal(made[~mask], image[~mask])
    assert np.mean(made[mask] != image[mask]) > 0.5


@pytest.mark.long
def test_what_is_hidden_does_not_show_in_the_result(model):
    image, mask = photo(), hole()
    other = np.where(mask[..., None], 255 - image, image)
    np.testing.assert_array_equal(model.complete(image, mask), model.complete(other, mask))
    visible = np.where(mask[..., None], image, 255 - image)
    assert (model.complete(visible, mask)[mask] != model.complete(image, mask)[mask]).any()


def test_at_the_models_size_the_pixels_are_the_models(model):
    image, mask = photo(size=(32, 32)), hole((32, 32))
    batch = {"image": image[None] / 127.5 - 1, "mask": mask[None, :, :, None]}
    batch = {name: jnp.asarray(values, jnp.float32) for name, values in batch.items()}
    output = np.asarray(model.model.generate(model.params, batch, jax.random.key(0)))[0]
    made = model.complete(image, mask)
    np.testing.assert_allclose(made[mask], (output[mask] + 1) * 127.5, atol=0.51)


def test_images_may_be_batches_or_of_pil_and_masks_numbers_or_pictures(model):
    images, mask = np.stack([photo(k) for k in range(3)]), hole()
    made = model.complete(images, mask)
    for each, image in zip(made, images, strict=True):
        np.testing.assert_array_equal(each, model.complete(image, mask))
    picture = model.complete(Image.fromarray(images[0]), Image.fromarray(mask))
    assert isinstance(picture, Image.Image) and picture.size == SIZE
    for same in (mask * np.uint8(255), mask.astype(np.uint8), mask[..., None], np.stack([mask])):
        np.testing.assert_array_equal(model.complete(images[:1], same)[0], np.asarray(picture))


def test_without_a_mask_the_hole_is_that_of_the_task(model):
    image = photo(size=(64, 64))
    made = model.complete(image)
    changed = np.argwhere((made != image).any(-1))
    assert (changed.min(0) >= 16).all() and (changed.max(0) < 48).all()
    assert len(changed) > 900
    np.testing.assert_array_equal(model.holes((1, 64, 64))[0].sum(), 32 * 32)


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (photo() / 255, hole(), "uint8 .* got float64"),
        (photo()[..., :1], hole(), r"\[h w 3\]"),
        (photo(), hole((40, 48)), r"expected a mask \[40, 48\] .* got \[48, 40\]"),
        (photo(), hole() & False, "expected a hole"),
    ],
)
def test_what_cannot_be_completed_is_said_in_a_sentence(model, image, mask, message):
    with pytest.raises(ValueError, match=message):
        model.complete(image, mask)


def test_a_folder_without_a_model_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"--model: .* has no config.json"):
        complete.load_model(tmp_path)


def save(pixels, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_the_command_writes_an_image_per_model_and_a_sheet(workdir, tmp_path):
    for k, name in enumerate(("a", "sub/b")):
        save(photo(k), tmp_path / f"photos/{name}.png")
        save(hole() * np.uint8(255), tmp_path / f"masks/{name}.png")
    both = complete.named([str(workdir), f"again={workdir}"])
    complete.run(both, tmp_path / "photos", tmp_path / "masks", tmp_path / "out")
    for k, name in enumerate(("a", "sub/b")):
        made = [np.asarray(Image.open(tmp_path / f"out/{of}/{name}.png")) for of in both]
        expected = complete.load_model(workdir).complete(photo(k), hole(), k)
        for each in made:
            np.testing.assert_array_equal(each, expected)
    sheet = np.asarray(Image.open(tmp_path / "out/sheet.png"))
    cell, line = complete.THUMBNAIL + 8, 20
    assert sheet.shape == (line + 2 * (cell + line), 4 * cell, 3)
    for x in range(4):  # input, truth and both models in every row
        for y in (line + 40, 2 * line + cell + 40):
            assert sheet[y : y + 60, x * cell + 20 : x * cell + 120].std() > 5


def test_what_is_wrong_with_the_folders_is_said_before_anything_is_written(workdir, tmp_path):
    with pytest.raises(ValueError, match="different names"):
        complete.named([str(workdir), str(workdir)])
    one = {"original": workdir}
    with pytest.raises(ValueError, match="--images: expected a folder"):
        complete.run(one, tmp_path, None, tmp_path / "out")
    save(photo(), tmp_path / "photos/a.png")
    with pytest.raises(ValueError, match="--masks: .* a.png has none"):
        complete.run(one, tmp_path / "photos", tmp_path, tmp_path / "out")
    save(photo()[:20, :, 0], tmp_path / "masks/a.png")
    with pytest.raises(ValueError, match=r"48 x 40 pixels, got 48 x 20"):
        complete.run(one, tmp_path / "photos", tmp_path / "masks", tmp_path / "out")
    save(photo()[..., 0] * 0, tmp_path / "masks/a.png")
    with pytest.raises(ValueError, match=r"a.png is black"):
        complete.run(one, tmp_path / "photos", tmp_path / "masks", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_photos_are_completed_in_their_own_size_and_bad_ones_are_listed(workdir, tmp_path):
    album = tmp_path / "photos"
    made.make(album, 12)
    bad = complete.run({"original": workdir}, album, None, tmp_path / "out")
    assert {Path(name).name for name in bad} == {"broken.jpg", "=1+1 bad.png", "empty.png"}
    assert (tmp_path / "out/quarantine.csv").read_bytes().count(b"\n") == 4
    for name in ("zoo/IMG_0000", "zoo/IMG_0004", "holiday/IMG_0005", "zoo/edited/one"):
        (file,) = album.glob(f"{name}.*")
        seen = photos.decode(file.read_bytes(), name, exif=True)
        done = Image.open(tmp_path / f"out/original/{name}.png")
        assert done.size == seen.size and done.getpixel((0, 0)) == seen.getpixel((0, 0))
    assert (os.fsencode(tmp_path / "out/original/holiday") + b"/caf\xe9 \xff.png") in (
        os.fsencode(f) for f in (tmp_path / "out/original/holiday").iterdir()
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", '{"config": {"task": null}}'),
        ("config.json", '{"config": {"task": {"name": "inpaint"}, "model": {"name": ["mae"]}}}'),
        ("config.json", "[" * 100_000),
        ("conversion.json", '{"family": "mae"}'),
        ("conversion.json", '{"family": "mae", "model": {"image_size": "x"}}'),
        ("conversion.json", '{"family": "os:system", "model": {}}'),
        ("conversion.json", "{"),
    ],
)
def test_a_workdir_that_describes_no_model_is_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{tmp_path / name}: "):
        unlearn_jax.load_model(tmp_path)
