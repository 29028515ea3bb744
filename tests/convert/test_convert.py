"""Published checkpoints in and out, of every family, where torch is not installed."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.helpers import binaries
from tests.helpers.checkpoints import SMALL, tensors
from unlearn_jax import checkpoint, convert
from unlearn_jax.convert import __main__ as binary
from unlearn_jax.convert import writing
from unlearn_jax.convert.reading import open_tensors

pytestmark = pytest.mark.long


def same(x):
    return x


def linear(x):  # [out in]
    return np.swapaxes(x, 0, 1)


def conv(x):  # [out in h w]
    return np.einsum("oihw->hwio", x)


# Of each family: tensors by their published names, where they are here, and what becomes of them.
PLACES = {
    "mae": [
        ("blocks.1.attn.qkv.weight", "encoder/blocks/block1/attn/qkv/kernel", linear),
        ("patch_embed.proj.weight", "encoder/patch_embed/kernel", conv),
        ("decoder_pos_embed", "decoder/pos_embed", same),
        ("decoder_blocks.0.norm2.bias", "decoder/blocks/block0/norm2/bias", same),
    ],
    "vqgan": [
        ("decoder.up.1.upsample.conv.weight", "decoder/up1_upsample/kernel", conv),
        ("encoder.down.1.block.0.norm1.weight", "encoder/down1_block0/norm1/scale", same),
        ("encoder.mid.block_2.conv1.weight", "encoder/mid_block2/conv1/kernel", conv),
        ("quantize.embedding.weight", "quantize/embedding", same),
    ],
    "mage": [
        ("vqgan.quantize.embedding.weight", "vqgan/quantize/embedding", same),
        ("token_emb.word_embeddings.weight", "encoder/token_emb/word_embeddings/embedding", same),
        ("mlm_layer.fc.weight", "decoder/mlm/fc/kernel", linear),
        ("mask_token", "unused/mask_token", same),
    ],
    "palette": [
        ("denoise_fn.middle_block.1.qkv.weight", "encoder/middle1/qkv/kernel",
         lambda x: x[..., 0].T),
        ("denoise_fn.output_blocks.1.1.in_layers.2.weight", "decoder/output1_up/conv1/kernel",
         conv),
        ("denoise_fn.cond_embed.2.weight", "encoder/cond_embed/dense2/kernel", linear),
        ("gammas", "schedule/gammas", same),
    ],
    "inception": [
        ("Mixed_6b.branch7x7_2.conv.weight", "Mixed_6b/branch7x7_2/conv/kernel", conv),
        ("Mixed_7c.branch_pool.bn.running_var", "Mixed_7c/branch_pool/bn/var", same),
        ("Conv2d_1a_3x3.bn.running_mean", "Conv2d_1a_3x3/bn/mean", same),
        ("fc.weight", "fc/kernel", linear),
    ],
    "resnet50": [
        ("layer2.0.downsample.0.weight", "layer2/block0/downsample/conv/kernel", conv),
        ("layer2.0.downsample.1.running_mean", "layer2/block0/downsample/bn/mean", same),
        ("layer4.2.bn3.weight", "layer4/block2/bn3/scale", same),
        ("fc.bias", "fc/bias", same),
    ],
    "clip": [
        ("visual.transformer.resblocks.1.attn.in_proj_weight", "block1/attn/qkv/kernel", linear),
        ("visual.transformer.resblocks.0.mlp.c_proj.weight", "block0/fc2/kernel", linear),
        ("visual.proj", "proj/kernel", same),
        ("visual.conv1.weight", "patch_embed/kernel", conv),
    ],
}  # fmt: skip


def write(path, state):
    save_file(state, path)
    return path


def import_(family, file, workdir):
    return binary.import_(family, file, workdir, SMALL[family][1])


def test_every_family_is_tested():
    assert set(SMALL) == set(PLACES) == set(convert.FAMILIES)


@pytest.mark.parametrize("family", SMALL)
def test_a_file_is_read_put_in_place_and_written_back_bit_for_bit(family, tmp_path):
    state, (model, _) = tensors(family), SMALL[family]
    file, back = write(tmp_path / "model.safetensors", state), tmp_path / "back.safetensors"
    manifest = import_(family, file, tmp_path / "model")
    assert manifest["parameters"] == sum(x.size for x in state.values() if x.dtype == np.float32)
    assert json.loads(json.dumps(manifest["model"])) == json.loads(
        json.dumps(dataclasses.asdict(model))
    )
    params = convert.to_params(convert.find(family), model, open_tensors(file))
    for name, path, change in PLACES[family]:
        leaf = params
        for part in path.split("/"):
            leaf = leaf[part]
        np.testing.assert_array_equal(leaf, change(state[name]), err_msg=name)
        assert manifest["mapping"][path]["tensor"] == name
    names = binary.export(family, tmp_path / "model", back)
    found = load_file(back)
    assert sorted(names) == sorted(found) == sorted(state)
    for name, array in state.items():
        assert found[name].shape == array.shape and found[name].dtype == array.dtype, name
        assert found[name].tobytes() == array.tobytes(), name


def test_the_converted_model_is_a_finished_run(tmp_path):
    import_("clip", write(tmp_path / "m.safetensors", tensors("clip")), tmp_path / "run")
    params, meta = checkpoint.load_params(tmp_path / "run", binary._like(SMALL["clip"][0]))
    kernel = tensors("clip")["visual.transformer.resblocks.1.attn.in_proj_weight"].T
    np.testing.assert_array_equal(params["block1"]["attn"]["qkv"]["kernel"], kernel)
    assert meta["done"] and meta["step"] == 0


@pytest.mark.parametrize("family", SMALL)
def test_a_tensor_that_is_missing_too_many_or_of_another_shape_is_refused(family, tmp_path):
    state = tensors(family)
    # None of them tells a size of the model.
    (reshaped, _, _), (missing, _, _) = {
        "clip": (PLACES["clip"][1], PLACES["clip"][0]),
        "inception": PLACES["inception"][:2],
        "mae": (PLACES["mae"][0], PLACES["mae"][3]),
        "mage": (PLACES["mage"][2], PLACES["mage"][3]),
        "palette": PLACES["palette"][:2],
        "resnet50": (PLACES["resnet50"][2], PLACES["resnet50"][1]),
        "vqgan": PLACES["vqgan"][:2],
    }[family]
    del state[missing]
    shape = list(state[reshaped].shape)
    state[reshaped] = state[reshaped][..., None]
    state["one.more"] = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError) as caught:
        import_(family, write(tmp_path / "model.safetensors", state), tmp_path / "model")
    assert "does not fit the model, 3 problem(s)" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 10
    assert "unused tensor one.more [2, 3]" in str(caught.value)
    assert f"missing tensor {missing} [" in str(caught.value)
    assert f"{reshaped}: expected {shape}, got {[*shape, 1]}" in str(caught.value)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "values,message",
    [
        (np.ones((1, 1, 16), np.int32), "mask_token: expected floating point, got int32"),
        (np.full((1, 1, 16), np.inf, np.float32), "has values that are NaN or infinite"),
        (np.ones((1, 1, 16), np.float64), "expected tensors of float32, float16, bfloat16"),
    ],
)
def test_values_that_are_no_weights_are_refused(values, message, tmp_path):
    state = tensors("mae") | {"mask_token": values}
    with pytest.raises(ValueError, match=message):
        import_("mae", write(tmp_path / "model.safetensors", state), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def by_hand(path, state, kinds):
    """A file as the format is described: a length, a header, the bytes of the tensors."""
    header, data = {}, b""
    for name, array in state.items():
        start, data = len(data), data + array.tobytes()
        header[name] = {"dtype": kinds[array.dtype.name], "shape": array.shape,
                        "data_offsets": [start, len(data)]}  # fmt: skip
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize("name,kind", [("bfloat16", "BF16"), ("float16", "F16")])
def test_half_precision_is_read_exactly(name, kind, tmp_path):
    half = {k: np.asarray(jnp.asarray(v, name)) for k, v in tensors("clip").items()}
    file = by_hand(tmp_path / "model.safetensors", half, {name: kind})
    found = open_tensors(file)
    assert set(found.dtypes.values()) == {name}
    params = convert.to_params(convert.find("clip"), SMALL["clip"][0], found)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    for key, array in convert.to_torch(convert.find("clip"), SMALL["clip"][0], params):
        np.testing.assert_array_equal(array, half[key].astype(np.float32), err_msg=key)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\xff" * 64, (2).to_bytes(8, "little") + b"{}"]
)
def test_damaged_and_empty_files_are_refused(content, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="not a readable safetensors file|holds no tensors"):
        open_tensors(tmp_path / "model.safetensors")


def test_a_file_cut_off_is_refused(tmp_path):
    whole = write(tmp_path / "model.safetensors", tensors("clip")).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="cut.safetensors is not a readable safetensors file"):
        open_tensors(tmp_path / "cut.safetensors")


def test_a_workdir_is_not_overwritten_and_a_conversion_not_repeated(tmp_path):
    state = tensors("clip")
    file, workdir = write(tmp_path / "m.safetensors", state), tmp_path / "run"
    first = import_("clip", file, workdir)
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    assert import_("clip", file, workdir) == json.loads(json.dumps(first))
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    other = write(tmp_path / "n.safetensors", {k: v + 1 for k, v in state.items()})
    with pytest.raises(ValueError, match="holds another model already"):
        import_("clip", other, workdir)
    (tmp_path / "back.safetensors").touch()
    with pytest.raises(ValueError, match="exists"):
        binary.export("clip", workdir, tmp_path / "back.safetensors")
    with pytest.raises(ValueError, match="holds a model of 'clip', got 'mage'"):
        binary.export("mage", workdir, tmp_path / "other.safetensors")


def test_pytorch_files_need_torch_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    (tmp_path / "model.pth").write_bytes(b"anything")
    with pytest.raises(ValueError, match=r"needs torch.*pip install 'unlearn_jax\[convert\]'"):
        open_tensors(tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"back.pth needs torch.*unlearn_jax\[convert\]"):
        writing.write(tmp_path / "back.pth", tensors("clip"), "")
    with pytest.raises(ValueError, match=r"expected a name ending in .pth, .pt, .ckpt or"):
        writing.write(tmp_path / "back.bin", tensors("clip"), "")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        writing.write(tmp_path / "back.safetensors", tensors("clip"), "")
    assert not list(tmp_path.iterdir())


def test_the_binary_says_what_is_wrong_in_one_line(tmp_path):
    flags = ("--family=mae", f"--out={tmp_path}/run", f"--checkpoint={tmp_path}/none.pth")
    _, err = binaries.run("unlearn_jax.convert", *flags, code=1)
    assert "error: --from: expected a file or a folder, found none at" in err
    assert "Traceback" not in err
