"""Published checkpoints in and out: nothing executed, nothing lost, nothing left over."""

import argparse
import json
import os
import pickle
import subprocess
import sys
from functools import cache

import jax
import numpy as np
import pytest

from unlearn_jax import checkpoint, convert, models
from unlearn_jax.convert import __main__ as binary
from unlearn_jax.convert.reading import open_tensors
from unlearn_jax.evaluate.towers.clip_tower import Clip
from unlearn_jax.evaluate.towers.inception import Inception
from unlearn_jax.evaluate.towers.resnet50 import ResNet50

pytestmark = pytest.mark.long
torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file

TOKENIZER = {"ch": 32, "ch_mult": (1, 2), "res_blocks": 1, "z_dim": 32, "codebook": 48}
VIT = {"dim": 32, "depth": 2, "heads": 2, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
# A small model of each family, and what cannot be told from the shapes of its tensors.
SMALL = {
    "mae": (models.MAE(image_size=16, patch=4, **VIT), {"heads": 2, "decoder_heads": 2}),
    "vqgan": (models.VQGAN(image_size=16, **TOKENIZER), {"image_size": 16}),
    "mage": (
        models.MAGE(image_size=16, tokenizer=TOKENIZER, **VIT),
        {"heads": 2, "decoder_heads": 2},
    ),
    "palette": (
        models.Palette(image_size=16, inner=32, mults=(1, 2), res_blocks=1, timesteps=20),
        {"image_size": 16},
    ),
    "inception": (Inception(width=2, classes=8), {"variant": "fid"}),
    "resnet50": (ResNet50(width=4, classes=5, image_size=64), {"image_size": 64}),
    "clip": (
        Clip(image_size=28, width=32, layers=2, heads=2, mlp_width=64, embed_dim=8),
        {"heads": 2},
    ),
}


@cache
def state_dict(family):
    """Random tensors under the published names, and the buffers that published files have."""
    rules, model = convert.find(family), SMALL[family][0]
    generator = torch.Generator().manual_seed(0)
    shapes = dict(convert.mapping(rules, model).values())
    state = {k: torch.randn(s, generator=generator) for k, s in shapes.items()}
    state |= {name: torch.from_numpy(a.copy()) for name, a in rules.buffers(model).items()}
    return state


def write(path, family, state=None, **more):
    """The state dict as the family's published files hold it."""
    state = state_dict(family) if state is None else state
    wrapper = convert.find(family).wrapper
    torch.save({wrapper: state, **more} if wrapper else state, path)
    return path


def import_mae(file, folder):
    return binary.import_("mae", file, folder / "run", SMALL["mae"][1])


@pytest.mark.parametrize(
    "family,ending", [*((family, ".pth") for family in SMALL), ("mae", ".safetensors")]
)
def test_there_and_back_is_the_same_file_bit_for_bit(family, ending, tmp_path):
    file, back = tmp_path / f"model{ending}", tmp_path / f"back{ending}"
    if ending == ".pth":
        write(file, family)
    else:
        save_file(state_dict(family), file)
    model, fields = SMALL[family]
    manifest = binary.import_(family, file, tmp_path / "model", fields)
    assert manifest["parameters"] == sum(
        v.numel() for v in state_dict(family).values() if v.is_floating_point()
    )
    stored = json.loads(json.dumps(manifest["model"]))
    assert stored == json.loads(json.dumps(binary.dataclasses.asdict(model)))
    names = binary.export(family, tmp_path / "model", back)
    assert sorted(names) == sorted(state_dict(family))
    found = open_tensors(back)
    assert dict(found.shapes) == {k: tuple(v.shape) for k, v in state_dict(family).items()}
    for name, tensor in state_dict(family).items():
        assert found.dtypes[name] == str(tensor.dtype).removeprefix("torch.")
        assert found.read(name).tobytes() == tensor.numpy().tobytes(), name
    if ending == ".pth":  # where the published file has it
        wrapper = convert.find(family).wrapper
        whole = torch.load(back, weights_only=True)
        assert sorted(whole[wrapper] if wrapper else whole) == sorted(names)


def test_the_converted_model_is_a_finished_run(tmp_path):
    import_mae(write(tmp_path / "m.pth", "mae"), tmp_path)
    like = binary._like(SMALL["mae"][0])
    params, meta = checkpoint.load_params(tmp_path / "run", like)
    kernel = state_dict("mae")["blocks.1.attn.qkv.weight"].numpy().T
    np.testing.assert_array_equal(
        params["encoder"]["blocks"]["block1"]["attn"]["qkv"]["kernel"], kernel
    )
    assert meta["done"] and meta["step"] == 0


class Evil:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_malicious_pickle_is_refused_and_nothing_runs(tmp_path):
    marker = tmp_path / "ran"
    evil = Evil(f"touch {marker}")
    torch.save({"model": {**state_dict("mae"), "extra": evil}}, tmp_path / "new.pth")
    torch.save({"model": evil}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(evil, protocol=2))
    for name in ("new.pth", "old.pth", "bare.pth"):
        with pytest.raises(ValueError, match="is refused: it is not a plain state dict"):
            binary.import_("mae", tmp_path / name, tmp_path / "run", {})
        assert not marker.exists()
        assert not (tmp_path / "run").exists()
    pickle.loads((tmp_path / "bare.pth").read_bytes())  # it would have run
    assert marker.exists()


def test_the_arguments_beside_published_weights_are_allowed(tmp_path):
    args = argparse.Namespace(lr=1e-3, betas=(0.9, 0.95), output_dir="out")
    file = write(tmp_path / "m.pth", "mae", args=args, epoch=5, optimizer={"state": {}})
    found = open_tensors(file)
    assert sorted(found.shapes) == sorted(state_dict("mae"))


@pytest.mark.parametrize(
    "content,message",
    [
        ({"epoch": 1, "iter": 2}, "expected tensors at the top"),
        ([1, 2], "expected a dict of tensors, got list"),
        ({"model": {}}, "holds no tensors"),
        ({"a": torch.ones(2), "b": 1.5}, "expected tensors only, got 'b' of float"),
        ({"a": torch.ones(2, dtype=torch.float64)}, "a: float64"),
        ({"a": torch.ones(1).expand(10**9)}, "claims tensors of 4000000000 bytes"),
        ({"a": torch.ones(2), "module.a": torch.ones(2)}, "both with and without"),
        ({"a": torch.ones(3).to_sparse()}, "expected tensors only, got 'a'"),
    ],
)
def test_files_that_are_no_state_dict_are_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=message):
        open_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00", b"\xff" * 64])
def test_damaged_files_are_refused(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="damaged|not a readable|refused"):
        open_tensors(tmp_path / name)


def test_every_misfit_is_listed_at_once(tmp_path):
    state = dict(state_dict("mae"))
    del state["norm.bias"], state["blocks.0.mlp.fc1.weight"]
    state |= {"extra.weight": torch.ones(3), "decoder_norm.weight": torch.ones(17)}
    state["mask_token"] = torch.ones(1, 1, 16, dtype=torch.int32)
    with pytest.raises(ValueError) as caught:
        binary.import_(
            "mae", write(tmp_path / "m.pth", "mae", state), tmp_path / "run", SMALL["mae"][1]
        )
    for line in (
        "5 problem(s)",
        "unused tensor extra.weight [3]",
        "missing tensor norm.bias [32], for the leaf encoder/norm/bias",
        "missing tensor blocks.0.mlp.fc1.weight [128, 32]",
        "decoder_norm.weight: expected [16], got [17]",
        "mask_token: expected floating point, got int32",
    ):
        assert line in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    state = dict(state_dict("mae"))
    state["norm.bias"] = torch.full((32,), torch.nan)
    with pytest.raises(ValueError, match=r"norm.bias \[32\] has values that are NaN"):
        binary.import_(
            "mae", write(tmp_path / "m.pth", "mae", state), tmp_path / "run", SMALL["mae"][1]
        )


def test_prefixes_teachers_and_half_precision(tmp_path):
    model, fields = SMALL["palette"]
    half = {name: tensor.to(torch.bfloat16) for name, tensor in state_dict("palette").items()}
    state = {f"module.{name}": tensor for name, tensor in half.items()}
    teacher = [f"module.teacher_{name}" for name in half if name.startswith("denoise_fn.")]
    state |= {name: torch.zeros(1) for name in teacher}
    file = write(tmp_path / "16_Network.pth", "palette", state)
    manifest = binary.import_("palette", file, tmp_path / "run", fields)
    assert len(manifest["dropped"]) == len(teacher) > 100
    params, _ = checkpoint.load_params(tmp_path / "run", binary._like(model))
    back = dict(convert.to_torch(convert.find("palette"), model, params))
    for name, tensor in half.items():  # exactly: a bfloat16 is a float32
        np.testing.assert_array_equal(back[name], tensor.float().numpy())


def test_a_workdir_is_not_overwritten_and_a_conversion_not_repeated(tmp_path):
    file = write(tmp_path / "m.pth", "mae")
    first = binary.import_("mae", file, tmp_path / "run", SMALL["mae"][1])
    assert binary.import_("mae", file, tmp_path / "run", SMALL["mae"][1]) == json.loads(
        json.dumps(first)
    )
    other = write(tmp_path / "n.pth", "mae", {k: v + 1 for k, v in state_dict("mae").items()})
    with pytest.raises(ValueError, match="holds another model already"):
        import_mae(other, tmp_path)
    (tmp_path / "back.pth").touch()
    with pytest.raises(ValueError, match="exists"):
        binary.export("mae", tmp_path / "run", tmp_path / "back.pth")
    with pytest.raises(ValueError, match="holds a model of 'mae', got 'mage'"):
        binary.export("mage", tmp_path / "run", tmp_path / "other.pth")


@pytest.mark.parametrize("family", ["mae", "clip", "resnet50"])
def test_verify_agrees_with_transformers_and_notices_a_wrong_layout(family, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    torch.set_num_threads(1)
    model, fields = SMALL[family]
    state = {k: v.abs() + 0.5 if "var" in k else v * 0.1 for k, v in state_dict(family).items()}
    file = write(tmp_path / "m.pth", family, state)
    binary.import_(family, file, tmp_path / "run", fields)
    report = binary.compare(family, file, tmp_path / "run")
    assert report["different"] == [] and report["outputs"]
    assert max(report["outputs"].values()) < 1e-4
    like = binary._like(model)
    params, _ = checkpoint.load_params(tmp_path / "run", like)
    transposed = jax.tree.map(
        lambda x: x.T if x.ndim == 2 and x.shape[0] == x.shape[1] else x, params
    )
    if family != "resnet50":  # which has no square matrix
        monkeypatch.setattr(checkpoint, "load_params", lambda *_: (transposed, {}))
        report = binary.compare(family, file, tmp_path / "run")
        assert report["different"] and max(report["outputs"].values()) > 1e-2


_MEASURE = """
import resource, sys
from unlearn_jax import convert
from unlearn_jax.convert import __main__ as binary
from pathlib import Path
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
import torch, jax
jax.numpy.ones(3).block_until_ready()
before = peak()
binary.import_("mae", Path(sys.argv[1]), Path(sys.argv[2]), {})
print(peak() - before)
"""


def test_memory_stays_below_two_and_a_half_files(tmp_path):
    model = models.MAE(dim=768, depth=4, decoder_depth=1)
    shapes = dict(convert.mapping(convert.find("mae"), model).values())
    torch.save({"model": {k: torch.randn(s) for k, s in shapes.items()}}, tmp_path / "m.pth")
    size = (tmp_path / "m.pth").stat().st_size
    command = [sys.executable, "-c", _MEASURE, tmp_path / "m.pth", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert size > 1.3e8
    assert int(done.stdout.split()[-1]) < 2.5 * size


def test_the_binary_says_what_is_wrong_in_one_line(tmp_path):
    command = [sys.executable, "-m", "unlearn_jax.convert", "--family=mae", f"--out={tmp_path}/run"]
    done = subprocess.run(
        [*command, f"--checkpoint={tmp_path}/none.pth"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert "error: --checkpoint: expected a file, found none at" in done.stderr
    assert "Traceback" not in done.stderr
