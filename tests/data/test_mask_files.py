"""Masks from files: one for all or one for each image, in batches, and every way to be wrong."""

import numpy as np
import pytest
from PIL import Image

from unlearn_jax import data
from unlearn_jax.config import identity
from unlearn_jax.data import mask_files, transforms
from unlearn_jax.data.preprocess import View
from unlearn_jax.request import load as load_request

SIZE = (16, 24)


def draw(path, hole, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(hole, np.uint8) * 255).save(path, **options)
    return hole


def boxes(n, shape=SIZE):
    """Masks with a box of another place and size each."""
    found = np.zeros((n, *shape), bool)
    for k, hole in enumerate(found):
        hole[k % 5 : k % 5 + 4, k : k + 3 + k % 4] = True
    return found


@pytest.fixture
def folder(tmp_path):
    """Twelve photos 24 wide and 16 high in one class, and a mask for each."""
    rng, holes = np.random.default_rng(0), boxes(12)
    for k in range(12):
        (tmp_path / "photos/cat").mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (*SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/cat/{k:02}.{'bmp' if k % 2 else 'png'}")
        draw(tmp_path / f"masks/cat/{k:02}.png", holes[k])
    return tmp_path, holes


def config(root, task):
    from tests.helpers import tiny

    found = tiny.get_config()
    found.data.update({"kind": "folder", "name": "", "path": str(root / "photos"),
                       "splits": ("train",), "image_size": SIZE})  # fmt: skip
    found.holdout = {"split": "", "fraction": 0.3}
    found.request.fraction = 0.3
    found.task.update(task)
    return found


def test_every_image_has_its_own_mask_in_training_and_evaluation(folder):
    root, holes = folder
    cfg = config(root, {"name": "masks", "path": str(root / "masks")})
    source, _ = load_request(cfg)
    task = cfg.task.to_dict()
    train = data.make_train(source, retain_rows=np.arange(8), forget_rows=np.arange(8, 12),
                            batch_size=4, forget_fraction=0.5, task=task, seed=0, first_step=0,
                            num_steps=3)  # fmt: skip
    evaluated = data.make_eval(source, np.arange(12), batch_size=5, task=task, seed=0)
    seen = 0
    for batch in (*train, *evaluated):
        valid = batch["valid"]
        np.testing.assert_array_equal(batch["mask"][valid, ..., 0], holes[batch["index"][valid]])
        assert batch["mask"].dtype == np.float32 and set(np.unique(batch["mask"])) == {0, 1}
        seen += valid.sum()
    assert seen == 3 * 4 + 12


def test_one_mask_for_all_and_another_task_in_training(folder):
    root, _ = folder
    hole = draw(root / "one.png", boxes(3)[2])
    cfg = config(root, {"name": "masks", "path": str(root / "one.png"), "train": "random_mask",
                        "patch": 8})  # fmt: skip
    source, _ = load_request(cfg)
    batch = next(iter(data.make_eval(source, np.arange(4), batch_size=4, task=cfg.task.to_dict(),
                                     seed=0)))  # fmt: skip
    assert (batch["mask"][..., 0] == hole).all()
    same = transforms.make_mask(cfg.task.to_dict(), SIZE, np.zeros((2, 2), np.uint64))
    assert (same[..., 0] == hole).all() and same.shape == (2, *SIZE, 1)


def test_a_run_depends_on_masks_not_on_where_they_are(folder):
    root, holes = folder
    cfg = config(root, {"name": "masks", "path": str(root / "masks")})
    before = data.facts(load_request(cfg)[0]), identity.relevant(cfg)
    (root / "masks").rename(root / "moved")
    cfg.task.path = str(root / "moved")
    assert (data.facts(load_request(cfg)[0]), identity.relevant(cfg)) == before
    draw(root / "moved/cat/03.png", holes[4])
    assert data.facts(load_request(cfg)[0]) != before[0]


def test_a_mask_as_large_as_its_photo_is_cut_with_it(tmp_path):
    """The photo 48 x 16 is cropped to its middle third, the mask with it."""
    hole = np.zeros((16, 48), bool)
    hole[4:10, 14:30] = True
    draw(tmp_path / "masks/a.png", hole)
    photo = np.zeros((16, 48, 3), np.uint8)
    view = View(16, "crop")
    found = mask_files.load(str(tmp_path / "masks"), ["a.jpg"], view, lambda row: photo)
    np.testing.assert_array_equal(found(np.array([0]))[0, ..., 0], hole[:, 16:32])
    small = mask_files.load(str(tmp_path / "masks"), ["a.jpg"], View(8, "crop"), lambda _: photo)
    hidden = small(np.array([0]))[0, ..., 0]
    parts = hole[:, 16:32].reshape(8, 2, 8, 2).any((1, 3))  # whatever has a hidden part
    np.testing.assert_array_equal(hidden, parts)


GREY = np.linspace(0, 255, SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint8)


@pytest.mark.parametrize(
    "change,said",
    [
        (lambda at: at.unlink(), r"a mask for every image in .*1 of 12 have none: 'cat/05.bmp'"),
        (lambda at: Image.fromarray(GREY).save(at), r"05.png: expected .* black and white only"),
        (lambda at: draw(at, np.ones(SIZE)), "05.png: .* got only white"),
        (lambda at: draw(at, np.zeros(SIZE)), "05.png: .* got only black"),
        (lambda at: draw(at, boxes(6, (20, 24))[5]), r"got 20 x 24 .* Draw it again"),
        (lambda at: at.write_bytes(b"no image"), "05.png: cannot be read as an image"),
    ],
)
def test_masks_are_checked_before_anything_is_trained(folder, change, said):
    root, _ = folder
    change(root / "masks/cat/05.png")
    with pytest.raises(ValueError, match=said) as found:
        load_request(config(root, {"name": "masks", "path": str(root / "masks")}))
    assert "\n" not in str(found.value)


def test_what_masks_of_files_do_not_go_with(folder):
    root, _ = folder
    cfg = config(root, {"name": "masks", "path": str(root / "nothing.png")})
    with pytest.raises(ValueError, match="there is no .*nothing.png"):
        load_request(cfg)
    cfg.task.path = str(root / "masks")
    with pytest.raises(ValueError, match="is a folder, with masks for certain images"):
        transforms.make_mask(cfg.task.to_dict(), SIZE, np.zeros((1, 2), np.uint64))
    cfg.poison.fraction = 0.5
    with pytest.raises(ValueError, match="hides other pixels of every image"):
        load_request(cfg)
    cfg.poison.fraction = 0.0
    cfg.data.augment.name, cfg.data.cache = "random_resized_crop", False
    with pytest.raises(ValueError, match="which masks for each image do not fit"):
        load_request(cfg)
    with pytest.raises(ValueError, match="expected task.path"):
        transforms.check_task({"name": "masks", "path": ""}, SIZE)
