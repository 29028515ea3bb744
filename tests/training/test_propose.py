"""A config for a folder of photos: what it says is what is there, and it can be run."""

import numpy as np
import pytest
from PIL import Image

from tests.helpers import photos as made
from unlearn_jax.config.load import load
from unlearn_jax.config.validation import validate
from unlearn_jax.registry import UserError
from unlearn_jax.request import Request
from unlearn_jax.training import propose


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """60 photos in a folder whose name would end a docstring, if it were in one."""
    folder = tmp_path_factory.mktemp("album") / 'a"""\nraise SystemExit'
    return folder, made.make(folder, 58)


def at(rate):
    return lambda config: rate


def test_the_file_is_a_config_that_resolves_to_the_photos_that_are_there(
    album, tmp_path, monkeypatch
):
    folder, n = album
    monkeypatch.setattr(propose, "images_per_second", at(1000.0))
    found = propose.propose(folder, 20.0)
    (tmp_path / "mine.py").write_text(propose.text(folder, found))
    config = load(str(tmp_path / "mine.py"))
    (tmp_path / "forget.txt").write_text("zoo/IMG_0000.jpg\nzoo/IMG_0006.jpg\n")
    config.request.file = str(tmp_path / "forget.txt")
    validate(config)
    request = Request(config, tmp_path / "run")
    assert found.photos == n == len(request.source)
    assert len(request.split.forget) == 2 and found.unread == len(made.BAD)
    assert config.phases.pretrain.steps == found.steps and config.phases.repair.steps > 0


@pytest.mark.parametrize(
    ("rate", "minutes", "steps"), [(1e6, 20.0, 600), (1.0, 0.01, 600)], ids=["fast", "slow"]
)
def test_few_photos_get_the_least_steps_and_the_minutes_are_those_of_all_models(
    album, monkeypatch, rate, minutes, steps
):
    monkeypatch.setattr(propose, "images_per_second", at(rate))
    found = propose.propose(album[0], minutes)
    assert found.steps == steps
    models = 2.2 + load("photos").audit.shadows
    assert found.minutes == pytest.approx(models * steps * 32 / rate / 60)


def test_many_photos_get_as_many_steps_as_the_minutes_allow(tmp_path, monkeypatch):
    image = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    for split, n in (("train", 4000), ("test", 50)):
        (tmp_path / "p" / split / "a").mkdir(parents=True)
        for k in range(n):
            image.save(tmp_path / "p" / split / "a" / f"{k}.bmp")
    monkeypatch.setattr(propose, "images_per_second", at(1e6))
    found = propose.propose(tmp_path / "p", 20.0)
    assert found.splits == ("train", "test") and found.photos == 4000
    assert (found.side, found.image_size, found.steps) == (20, 32, 2500)  # 20 x 4000 / 32
    monkeypatch.setattr(propose, "images_per_second", at(500.0))
    slower = propose.propose(tmp_path / "p", 6.0)
    assert 600 < slower.steps < 2500 and slower.minutes == pytest.approx(6, rel=0.01)


def test_fewer_photos_than_an_audit_needs_are_refused(tmp_path):
    made.make(tmp_path / "p", 20)
    with pytest.raises(UserError, match="at least 40 photos, got 22"):
        propose.propose(tmp_path / "p", 20.0)


def test_the_rate_is_of_this_machine():
    config = load("photos")
    config.data.image_size, config.model.channels, config.batch_size = 32, (4,), 4
    assert propose.images_per_second(config, seconds=0.01) > 0
