"""Whose tensors a file has: prefixes, several models, shards, refusals. No torch is needed."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.helpers import binaries
from tests.helpers.checkpoints import SMALL, tensors
from unlearn_jax import convert
from unlearn_jax.convert import agreement


def write(path, state):
    save_file(state, path)
    return path


def prefixed(prefix, state):
    return {prefix + name: array for name, array in state.items()}


def plain(family):
    """Its published names; what is not of the family is dropped anyway."""
    return {n: a for n, a in tensors(family).items() if not convert.find(family).drops(n)}


def zeros(*names):
    return {name: np.zeros((2, 2), np.float32) for name in names}


@pytest.mark.parametrize("family", ["mae", "palette", "vqgan"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.net.", "backbone._orig_mod."])
def test_a_prefix_of_all_names_is_taken_off_and_recorded(family, prefix, tmp_path):
    file = write(tmp_path / "m.safetensors", prefixed(prefix, plain(family)))
    found = convert.opened(family, file)
    assert found.shapes.keys() == plain(family).keys() and found.key == prefix.rstrip(".")
    for name in list(found.shapes)[:5]:
        np.testing.assert_array_equal(found.read(name), plain(family)[name])


def test_a_prefix_of_some_names_is_not_taken_off_in_silence(tmp_path):
    state = prefixed("model.", plain("mae")) | zeros("loss.weight")
    file = write(tmp_path / "m.safetensors", state)
    with pytest.raises(ValueError, match=r"1 others such as loss.weight.*--key=model\.") as error:
        convert.opened("mae", file)
    assert "\n" not in str(error.value)
    found = convert.opened("mae", file, key="model")
    assert found.shapes.keys() == plain("mae").keys()
    assert found.left_out == ("1 tensors that are not under model",)


@pytest.mark.parametrize("prefixes", [("model.", "ema."), ("", "ema."), ("net.", "model_ema.net.")])
def test_weights_and_their_average_are_listed_and_the_key_chooses(prefixes, tmp_path):
    state = {
        prefix + name: array + i
        for i, prefix in enumerate(prefixes)
        for name, array in plain("mae").items()
    }
    file = write(tmp_path / "m.safetensors", state)
    keys = [prefix.rstrip(".") or "." for prefix in prefixes]
    with pytest.raises(ValueError, match="more than one model: candidates are ") as caught:
        convert.opened("mae", file)
    assert all(f" {key}" in str(caught.value) for key in keys)
    for i, key in enumerate(keys):
        found = convert.opened("mae", file, key=key)
        assert found.shapes.keys() == plain("mae").keys() and found.left_out
        np.testing.assert_array_equal(found.read("cls_token"), plain("mae")["cls_token"] + i)
    with pytest.raises(ValueError, match="there is no mae under --key=teacher; candidates are "):
        convert.opened("mae", file, key="teacher")


def test_the_tokenizer_of_a_mage_is_chosen_by_its_key(tmp_path):
    file = write(tmp_path / "m.safetensors", tensors("mage"))
    found = convert.opened("vqgan", file, key="vqgan")
    shapes = convert.mapping(convert.find("vqgan"), SMALL["vqgan"][0]).values()
    assert found.shapes == dict(shapes)
    assert convert.recognised(file) == "mage"


def shards(folder, state, ending="safetensors"):
    parts = [dict(list(state.items())[i::3]) for i in range(3)]
    names = [f"model-{i + 1:05}-of-00003.{ending}" for i in range(3)]
    for name, part in zip(names, parts, strict=True):
        write(folder / name, part)
    where = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    index = folder / f"model.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index, where


def test_shards_are_read_by_their_index_or_their_folder(tmp_path):
    index, _ = shards(tmp_path, plain("mae"))
    for path in (index, tmp_path):
        found = convert.opened("mae", path)
        assert found.shapes.keys() == plain("mae").keys()
        for name, array in plain("mae").items():
            assert found.read(name).tobytes() == array.tobytes(), name


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda w: {**w, "cls_token": "../other.safetensors"}, "is no file beside it"),
        (lambda w: {**w, "cls_token": "gone.safetensors"}, "is no file beside it"),
        (lambda w: {**w, "more": w["cls_token"]}, "do not fit together: 'more' is in one"),
        (lambda w: {k: v for k, v in w.items() if k != "cls_token"}, "together: 'cls_token' is in"),
        (lambda w: [], "expected an index with a weight_map"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(change, message, tmp_path):
    index, where = shards(tmp_path, plain("mae"))
    save_file(zeros("x"), tmp_path.parent / "other.safetensors")
    index.write_text(json.dumps({"weight_map": change(where)}))
    with pytest.raises(ValueError, match=message):
        convert.opened("mae", index)


FOREIGN = {
    "diffusers' UNet2DModel": ("conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"),
    "diffusers' UNet2DConditionModel": (
        "conv_in.weight",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    ),
    "diffusers' AutoencoderKL": ("encoder.conv_in.weight", "encoder.down_blocks.0.resnets.0.x"),
    "diffusers' VQModel": ("encoder.down_blocks.0.resnets.0.x", "quantize.embedding.weight"),
    "VQGAN of taming-transformers": (
        "encoder.mid.attn_1.q.weight", "post_quant_conv.weight", "quantize.embedding.weight",
        "encoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight", "decoder.conv_out.weight",
    ),
    "a latent diffusion checkpoint (Stable Diffusion)": ("model.diffusion_model.out.0.weight",),
    "a classifier of timm": ("blocks.0.attn.qkv.weight", "head.weight", "cls_token"),
    "an encoder of transformers": ("embeddings.cls_token", "layernorm.weight"),
}  # fmt: skip


@pytest.mark.parametrize("family", ["mae", "vqgan", "palette"])
@pytest.mark.parametrize("what", FOREIGN)
def test_models_of_others_are_refused_by_name_in_few_lines(what, family, tmp_path):
    file = write(tmp_path / "m.safetensors", zeros(*FOREIGN[what], *(f"z.{i}" for i in range(99))))
    with pytest.raises(ValueError) as caught:
        convert.opened(family, file)
    said = str(caught.value)
    assert len(said.splitlines()) <= 10 and what in said and "not supported" in said
    assert sum(name in said for name in open_names(file)[:3]) == 3
    assert convert.find(family).needs[0] in said
    with pytest.raises(ValueError, match="not supported"):
        convert.recognised(file)


def open_names(file):
    return list(convert.open_tensors(file).shapes)


def test_a_file_of_another_family_is_told_which(tmp_path):
    for found in ("palette", "mage", "clip", "resnet50"):
        file = write(tmp_path / f"{found}.safetensors", tensors(found))
        assert convert.recognised(file) == found
        with pytest.raises(ValueError, match=f"names of the family {found}: --family={found}"):
            convert.opened("mae", file)


def test_a_hundred_problems_are_ten_lines(tmp_path):
    state = {n: a[..., None] if "norm" in n else a for n, a in plain("mae").items()}
    state |= zeros(*(f"more.{i}" for i in range(200)))
    model = SMALL["mae"][0]
    file = write(tmp_path / "m.safetensors", state)
    with pytest.raises(ValueError, match=r"2\d\d problem\(s\)") as caught:
        convert.to_params(convert.find("mae"), model, convert.opened("mae", file), file)
    assert len(str(caught.value).splitlines()) <= 10


def test_readme_has_the_table_of_the_list():
    table = convert.table()
    assert table in (binaries.ROOT / "README.md").read_text("utf-8")
    for family in convert.FAMILIES:
        assert f"| `{family}` |" in table
    for family, rules in convert.families().items():
        # A row that names a library is of a family whose outputs --verify compares with it.
        assert ("transformers" in rules.verified) == (family in agreement.REFERENCES)


def test_the_list_is_printed_without_anything_else():
    out, _ = binaries.run("unlearn_jax.convert", "--list")
    assert out.strip() == convert.table()
