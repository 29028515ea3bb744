"""The Python API: what is public, and what it costs to import."""

import doctest
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import unlearn_jax as uj
from tests.helpers.toy import Toy
from unlearn_jax import registry


def test_every_public_name_is_there_and_documented():
    for name in uj.__all__:
        assert name in dir(uj)
        found = getattr(uj, name)
        assert isinstance(found, str) or (found.__doc__ or "").strip(), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        uj.nothing  # noqa: B018


def test_importing_it_brings_no_jax_and_takes_no_time():
    code = "import sys, time; t = time.perf_counter(); import unlearn_jax\n"
    code += "print('jax' in sys.modules, time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    brought, seconds = done.stdout.split()
    assert brought == "False" and float(seconds) < 0.3


def test_docstrings_say_what_is_so():
    from unlearn_jax import request
    from unlearn_jax.config import load
    from unlearn_jax.report import pictures

    found = [doctest.testmod(module) for module in (load, pictures, request, registry)]
    assert not sum(result.failed for result in found)
    assert sum(result.attempted for result in found) >= 8


def test_configs_with_changes():
    changes = {"request.kind": "classes", "request.classes": "cat", "model.name": Toy}
    config = uj.load_config("quickstart", changes)
    assert config.request.classes == ("cat",)
    assert config.model.name == "tests.helpers.toy:Toy"
    for changes, message in (
        ({"request.knid": "ids"}, "request.knid: unknown 'knid', .*did you mean 'kind'"),
        ({"nothing.here": 1}, "nothing.here"),
        ({"model.name": lambda: None}, "top level of a module"),
    ):
        with pytest.raises(uj.UserError, match=message):
            uj.load_config("quickstart", changes)
    with pytest.raises(uj.UserError, match="did you mean|Did you mean"):
        uj.load_config("quickstrat")


def test_a_request_says_what_it_is_and_gives_images():
    request = uj.Request(uj.load_config("quickstart", {"request.kind": "classes",
                                                       "request.classes": "cat"}))  # fmt: skip
    assert str(request) == (
        "Forget 250 of 2,500 training images of cifar10_sample/1.0.0: every image of cat."
    )
    batch = request.batch("forget", n=5)
    assert batch["image"].shape == (5, 32, 32, 3) and batch["valid"].all()
    again = request.batch("forget", n=5)
    np.testing.assert_array_equal(batch["image"], again["image"])
    assert set(batch["index"].tolist()) <= set(request.split.forget.tolist())
    assert isinstance(uj.show(batch, batch["image"]), Image.Image)
    with pytest.raises(uj.UserError, match="did you mean 'holdout'"):
        request.batch("holdouts")


def test_map_gives_every_row_once_and_in_order():
    request = uj.Request(uj.load_config("quickstart"), model=Toy())
    rows = request.split.forget[:77][::-1].copy()  # less than a batch, and not sorted

    def own(batch):
        return {"index": batch["index"], "mean": batch["image"].mean((1, 2, 3))}

    found = request.map(own, rows)
    np.testing.assert_array_equal(found["index"], rows)
    images = request.source.fetch(rows).astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(found["mean"], images.mean((1, 2, 3)), atol=1e-5)


def test_own_things_are_found_by_name():
    assert registry.find({}, "tests.helpers.toy:Toy", "model") is Toy
    assert registry.name_of(Toy) == "tests.helpers.toy:Toy"
    with pytest.raises(uj.UserError, match="unknown 'abd', expected one of .*did you mean 'abc'"):
        registry.find({"abc": 1}, "abd", "thing")
    with pytest.raises(uj.UserError, match="cannot import the model 'tests.helpers.toy:Tyo'"):
        registry.find({}, "tests.helpers.toy:Tyo", "model")


HOSTILE = "import pathlib\npathlib.Path('{}').touch()\nclass Bad: pass\n"


@pytest.mark.parametrize("name", ["hostile:Bad", "subprocess:Popen", "os:system"])
def test_what_a_workdir_names_is_neither_imported_nor_called(name, tmp_path, monkeypatch):
    """A workdir may be somebody else's, and its config.json says what they like."""
    touched = tmp_path / "touched"
    (tmp_path / "hostile.py").write_text(HOSTILE.format(touched))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "hostile", raising=False)
    model = {"name": name, "args": ["touch", str(touched)], "command": f"touch {touched}"}
    config = {"model": model, "data": {"image_size": 32}, "task": {"name": "inpaint"}}
    (tmp_path / "config.json").write_text(json.dumps({"config": config}))
    with pytest.raises(uj.UserError, match=r"no record may import|expected a class that derives"):
        uj.load_model(tmp_path)
    assert not touched.exists() and "hostile" not in sys.modules
    if name == "hostile:Bad":  # a config of one's own may
        with pytest.raises(uj.UserError, match="derives from unlearn_jax.Model"):
            uj.Request(uj.load_config("quickstart", {"model": {"name": name}}))
        assert touched.exists()


@pytest.mark.parametrize("text", ["{}", "[]", '{"config": {"model": 1}}', "\0", '{"config": {'])
def test_a_workdir_that_is_none_is_one_line(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(uj.UserError, match=r"config.json: expected what train writes"):
        uj.load_model(tmp_path)
