"""A PyTorch file into a model of one's own: a table of names that is checked from both sides."""

import importlib
import json
import re

import jax
import numpy as np
import pytest

import unlearn_jax as uj
from examples.own_model import UNet
from unlearn_jax.convert import own

safetensors = pytest.importorskip("safetensors.numpy")

CONV = (2, 3, 1, 0)
RULES = {
    r"enc\.(\d)\.weight": (r"encoder/Conv_\1/kernel", CONV),
    r"enc\.(\d)\.bias": r"encoder/Conv_\1/bias",
    r"dec\.(\d)\.weight": (r"decoder/ConvTranspose_\1/kernel", CONV),
    r"dec\.(\d)\.bias": r"decoder/ConvTranspose_\1/bias",
    "steps": None,
}
MODEL = UNet(width=2)


def tensors():
    """What PyTorch would have saved of `MODEL`, made of its own parameters."""
    params = jax.jit(MODEL.init)(jax.random.key(0))
    found = {"steps": np.zeros((), np.int64)}
    for part, name in (("encoder", "enc"), ("decoder", "dec")):
        for layer, leaves in params[part].items():
            at = f"{name}.{layer[-1]}"
            found[f"{at}.weight"] = np.ascontiguousarray(
                np.transpose(leaves["kernel"], (3, 2, 0, 1))
            )
            found[f"{at}.bias"] = np.asarray(leaves["bias"]) + np.float32(0.5)
    return params, found


def imported(folder, found, rules=RULES):
    safetensors.save_file(found, folder / "net.safetensors")
    return uj.import_torch(MODEL, folder / "net.safetensors", rules, folder / "original",
                           served="none")  # fmt: skip


def test_every_number_is_where_the_table_says(tmp_path):
    params, found = tensors()
    manifest = imported(tmp_path, found)
    model = uj.load_model(tmp_path / "original")
    assert model.model == MODEL and model.image_size is None
    for part in ("encoder", "decoder"):
        for layer, leaves in params[part].items():
            here = model.params[part][layer]
            np.testing.assert_array_equal(here["kernel"], leaves["kernel"])
            np.testing.assert_array_equal(here["bias"], leaves["bias"] + np.float32(0.5))
    assert manifest == json.loads((tmp_path / "original/conversion.json").read_text())
    assert manifest["dropped"] == ["steps"] and manifest["family"] == "examples.own_model:UNet"
    with pytest.raises(ValueError, match="holds a model already"):
        imported(tmp_path, found)


@pytest.mark.parametrize(
    "change,said",
    [
        (lambda f, r: f.pop("enc.1.bias"), r"encoder/Conv_1/bias: no tensor fills .*, \[4\]"),
        (lambda f, r: f.update(extra=np.ones((2, 3), "f4")), r"extra \[2, 3\]: no rule names it"),
        (lambda f, r: r.update({r"enc\..*": None}), r"enc.0.weight .*: 2 rules name it, 'enc"),
        (lambda f, r: (f.update(more=f["enc.0.bias"].copy()), r.update(more="encoder/Conv_0/bias")),
         "more: another tensor fills encoder/Conv_0/bias, too"),
        (lambda f, r: (f.update(more=np.ones(2, "f4")), r.update(more="encoder/Conv_9/bias")),
         "more: the model has no parameter encoder/Conv_9/bias"),
        (lambda f, r: r.update({r"enc\.(\d)\.weight": r"encoder/Conv_\1/kernel"}),
         r"enc.0.weight: encoder/Conv_0/kernel is \[3, 3, 4, 2\], the tensor transposed \[2, 4"),
        (lambda f, r: r.update({r"enc\.(\d)\.bias": (r"encoder/Conv_\1/bias", CONV)}),
         r"enc.0.bias: \[2\] cannot be transposed by \(2, 3, 1, 0\)"),
        (lambda f, r: f.update({"enc.0.bias": np.array([1, np.nan], "f4")}), "0.bias: has values"),
        (lambda f, r: f.update({"enc.0.bias": np.ones(2, "i4")}), "floating point, got int"),
        (lambda f, r: r.update({"enc(": None}), "The table of names: .*unterminated"),
        (lambda f, r: r.update({r"enc\.\d\.bias": r.pop(r"enc\.(\d)\.bias")}), "invalid group"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_listed_and_nothing_is_written(tmp_path, change, said):
    _, found = tensors()
    rules = dict(RULES)
    change(found, rules)
    with pytest.raises(uj.UserError, match=said):
        imported(tmp_path, found, rules)
    assert not (tmp_path / "original").exists()


def test_all_problems_come_at_once():
    source = own.Tensors({"a": (2,), "b": (3,)}, {"a": "float32", "b": "float32"}, {}.__getitem__)
    with pytest.raises(uj.UserError, match="2 problem") as found:
        own.matched({}, source)
    assert re.findall(r"\n  (\w)", str(found.value)) == ["a", "b"]


@pytest.mark.long
def test_the_example_agrees_with_pytorch_and_forgets(tmp_path):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    from tests.whole.test_examples import SMALL

    small = {k: v for k, v in SMALL.items() if k != "model"}
    example = importlib.import_module("examples.own_torch")
    assert example.main(tmp_path, small) < 1e-5
    assert (tmp_path / "forget.png").exists()
    assert uj.load_model(tmp_path / "unlearned").model == example.Twin(image_size=32)
