import sys
import textwrap

import pytest

from configs import quickstart
from tests.helpers import binaries
from unlearn_jax.config import load


def test_a_name_a_path_and_a_module_are_the_same_config(monkeypatch):
    monkeypatch.chdir(binaries.ROOT)
    expected = quickstart.get_config()
    for text in ("quickstart", "configs/quickstart.py", "configs.quickstart"):
        assert load.load(text) == expected
    assert {"quickstart", "imagenet_mage"} <= {*load.names()} and "__init__" not in load.names()


def test_what_follows_the_colon_is_the_argument(monkeypatch):
    monkeypatch.chdir(binaries.ROOT)
    for text in ("quickstart_certified", "configs/quickstart_certified.py"):
        assert load.load(f"{text}:noisy").name == "quickstart_certified, noisy"
        assert load.load(text).name == "quickstart_certified, release"


def test_a_file_anywhere_can_import_the_files_beside_it(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "base.py").write_text(f"NAME = {folder!r}\n")
        text = """
            from ml_collections import ConfigDict
            from . import base
            def get_config(): return ConfigDict({"name": base.NAME})
        """
        (tmp_path / folder / "my.config.py").write_text(textwrap.dedent(text))
    for folder in ("one", "two"):
        assert load.load(str(tmp_path / folder / "my.config.py")).name == folder
    assert str(tmp_path / "one") not in sys.path


def test_a_file_is_read_anew(tmp_path):
    for name in ("before", "after"):
        text = f"def get_config(): return ConfigDict({{'name': {name!r}}})\n"
        (tmp_path / "c.py").write_text("from ml_collections import ConfigDict\n" + text)
        assert load.load(str(tmp_path / "c.py")).name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quikstart", r"one of \['cifar10_autoencoder', .*got 'quikstart'. Did you mean 'quicks"),
        ("configs/quickstart.py", "there is no configs/quickstart.py in .*--config=quickstart"),
        ("no.such", "no.such: ModuleNotFoundError"),
        ("imagenet_mage:rehersal", "imagenet_mage.py, line .*got 'rehersal'"),
        ("mine.py", "mine.py, line 2: ZeroDivisionError"),
    ],
)
def test_what_cannot_be_loaded_is_said_with_its_place(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def get_config():\n    return 1 / 0\n")
    with pytest.raises(ValueError, match=f"(?s)^--config: .*{message}"):
        load.load(text)
