"""Checkpoints as PyTorch files: nothing executed, nothing lost, nothing left over."""

import argparse
import os
import pathlib
import pickle
import subprocess
import sys
import time
import zipfile
from functools import cache

import jax
import numpy as np
import pytest

from tests.helpers.checkpoints import SMALL, tensors
from unlearn_jax import checkpoint, convert, models
from unlearn_jax.convert import __main__ as binary
from unlearn_jax.convert import pickled, settings, writing
from unlearn_jax.convert.reading import open_tensors

pytestmark = pytest.mark.long
torch = pytest.importorskip("torch")


@cache
def state_dict(family):
    return {name: torch.from_numpy(array) for name, array in tensors(family).items()}


def write(path, family, state=None, **more):
    """The state dict as the family's published files hold it."""
    state = state_dict(family) if state is None else state
    wrapper = convert.find(family).wrapper
    torch.save({wrapper: state, **more} if wrapper else state, path)
    return path


@pytest.mark.parametrize("family", SMALL)
def test_a_file_of_pytorch_is_read_and_written_bit_for_bit(family, tmp_path):
    found = open_tensors(write(tmp_path / "model.pth", family))
    state = {name: found.read(name) for name in found.shapes}
    assert state.keys() == state_dict(family).keys()
    for name, tensor in state_dict(family).items():
        assert found.shapes[name] == tensor.shape, name
        assert found.dtypes[name] == str(tensor.dtype).removeprefix("torch.")
        assert state[name].tobytes() == tensor.numpy().tobytes(), name
    wrapper = convert.find(family).wrapper
    writing.write(tmp_path / "back.pth", state, wrapper)
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    back = back[wrapper] if wrapper else back  # where the published file has it
    assert back.keys() == state.keys()
    assert all(back[name].equal(tensor) for name, tensor in state_dict(family).items())


def test_there_and_back_of_a_conversion(tmp_path):
    file, back = write(tmp_path / "model.pth", "mae"), tmp_path / "back.pth"
    binary.import_("mae", file, tmp_path / "model", SMALL["mae"][1])
    binary.export("mae", tmp_path / "model", back)
    found = torch.load(back, weights_only=True)["model"]
    assert found.keys() == state_dict("mae").keys()
    assert all(found[name].equal(tensor) for name, tensor in state_dict("mae").items())


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
        ({"epoch": 1, "iter": 2}, "expected tensors at the top or in a dict, found the keys"),
        ([1, 2], "expected a dict of tensors, got list"),
        ({"model": {}}, "holds no tensors"),
        ({"a": torch.ones(2, dtype=torch.float64)}, "a: float64"),
        ({"a": torch.ones(1).expand(10**9)}, "claims tensors of 4000000000 bytes"),
        ({"a": torch.ones(3).to_sparse()}, "'a' is a sparse tensor"),
    ],
)
def test_files_that_are_no_state_dict_are_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=message):
        open_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00", b"\xff" * 64])
def test_damaged_files_are_refused(content, tmp_path):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match="damaged|refused"):
        open_tensors(tmp_path / "x.pth")


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
    assert report["unverified"] == list(convert.find(family).unsaid)  # only we say so here
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
fields = {"heads": 12, "decoder_heads": 16, "epsilon": 1e-6, "norm_pix_loss": False}
binary.import_("mae", Path(sys.argv[1]), Path(sys.argv[2]), fields)
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


def test_what_lies_beside_the_weights_does_not_refuse_them(tmp_path):
    more = {
        "best": np.float64(0.5), "step": np.int64(3), "losses": np.arange(3.0), "epoch": 7,
        "where": tmp_path, "args": argparse.Namespace(output_dir=tmp_path, norm_pix_loss=True),
        "callbacks": {"Checkpoint": {"best": torch.tensor(0.1), "path": "x"}}, "optimizer": {},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
    }  # fmt: skip
    file = write(tmp_path / "m.pth", "mae", **more)
    found = convert.opened("mae", file)
    assert found.shapes.keys() == state_dict("mae").keys() and found.key == "model"
    assert set(found.left_out) == more.keys()
    assert settings.said("mae", found, file) == {"args in the file": {"norm_pix_loss": True}}
    plain = {**state_dict("mae"), "epoch": 3, "where": tmp_path}
    torch.save(plain, tmp_path / "flat.pth")
    found = convert.opened("mae", tmp_path / "flat.pth")
    assert found.left_out == ("epoch", "where")


def test_an_inert_object_is_nothing_but_inert(tmp_path, monkeypatch):
    """Neither numpy nor pathlib is called for what a file says of them."""
    path = type("P", (), {"__reduce__": lambda self: (pathlib.PosixPath, ("/etc/passwd",))})()
    torch.save({"model": state_dict("mae"), "where": path}, tmp_path / "m.pth")
    monkeypatch.setattr(pathlib.PosixPath, "__new__", lambda *_: pytest.fail("a path was made"))
    with torch.serialization.safe_globals(list(pickled._ALLOWED)):
        loaded = torch.load(str(tmp_path / "m.pth"), weights_only=True)
    assert type(loaded["where"]) is pickled._Inert and not vars(loaded["where"])


@pytest.mark.parametrize(
    "content",
    [
        {"model": 0, "ema": 1},
        {"state_dict": {"model.": 0, "ema_model.": 1}},
        {"model": 0, "model_ema": {"module": 1}},
        {"epoch": 3, "trainer": {"net": 0, "ema": 1}},
    ],
)
def test_an_average_beside_the_weights_is_listed_and_chosen(content, tmp_path):
    def filled(content):
        if isinstance(content, int) and content < 2:
            return {name: tensor + content for name, tensor in state_dict("mae").items()}
        if not isinstance(content, dict):
            return content
        found = {}
        for name, value in content.items():
            inner = filled(value)
            flat = name.endswith(".")
            found |= {name + k: v for k, v in inner.items()} if flat else {name: inner}
        return found

    torch.save(filled(content), tmp_path / "m.pth")
    with pytest.raises(ValueError, match=r"ema.*--key=") as caught:
        convert.opened("mae", tmp_path / "m.pth")
    assert "\n" not in str(caught.value)
    keys = {"state_dict": ("model", "ema_model"), "trainer": ("trainer.net", "trainer.ema")}
    keys = next((keys[k] for k in content if k in keys), ("model", [*content][-1]))
    for i, key in enumerate(keys):
        found = convert.opened("mae", tmp_path / "m.pth", key=key)
        assert found.read("cls_token")[0, 0, 0] == state_dict("mae")["cls_token"][0, 0, 0] + i
        assert found.left_out


def test_an_average_alone_is_taken_and_said(tmp_path):
    torch.save({"ema": state_dict("mae"), "step": 3}, tmp_path / "m.pth")
    found = convert.opened("mae", tmp_path / "m.pth")
    assert found.key == "ema" and found.shapes.keys() == state_dict("mae").keys()


def test_flipped_bytes_are_noticed_before_anything_is_read(tmp_path):
    whole = write(tmp_path / "whole.pth", "mae").read_bytes()
    convert.opened("mae", tmp_path / "whole.pth")
    rng = np.random.default_rng(0)
    inside = whole.index(state_dict("mae")["blocks.0.mlp.fc1.weight"].numpy().tobytes())
    for _ in range(10):
        bad = bytearray(whole)
        for at in rng.integers(inside, inside + 4000, 3):
            bad[at] ^= 1 << rng.integers(8)
        (tmp_path / "bad.pth").write_bytes(bad)
        with pytest.raises(ValueError, match=r"the checksum \(CRC-32\) of .* is wrong"):
            open_tensors(tmp_path / "bad.pth")


def test_a_packed_zip_is_refused(tmp_path):
    write(tmp_path / "m.pth", "mae")
    with zipfile.ZipFile(tmp_path / "m.pth") as old:
        with zipfile.ZipFile(tmp_path / "n.pth", "w", zipfile.ZIP_DEFLATED) as new:
            for info in old.infolist():
                new.writestr(info.filename, old.read(info))
    with pytest.raises(ValueError, match="n.pth is damaged"):
        open_tensors(tmp_path / "n.pth")


def test_an_export_is_verified_and_damage_to_it_found(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    file = write(tmp_path / "m.pth", "mae")
    binary.import_("mae", file, tmp_path / "run", SMALL["mae"][1])
    binary.export("mae", tmp_path / "run", tmp_path / "back.pth")
    binary._verify("mae", tmp_path / "back.pth", tmp_path / "run", "")
    assert "50 tensors are bit for bit those of the file." in capsys.readouterr().out
    state = state_dict("mae") | {"cls_token": state_dict("mae")["cls_token"] + 1}
    with pytest.raises(ValueError, match=r"1 tensors differ: \['cls_token'\]"):
        binary._verify("mae", write(tmp_path / "n.pth", "mae", state), tmp_path / "run", "")


def test_a_class_of_a_long_name_is_refused_before_torch_searches_its_message(tmp_path):
    """Its regular expression does not end within 10 s for a name of 70,000 letters."""
    pickled_ = b"\x80\x02c" + b"torch._utils" * 9000 + b"\nx\n."
    (tmp_path / "old.pth").write_bytes(pickled_)
    with zipfile.ZipFile(tmp_path / "new.pth", "w") as archive:
        archive.writestr("x/data.pkl", pickled_)
        archive.writestr("x/version", "3\n")
    start = time.monotonic()
    for name in ("old.pth", "new.pth"):
        with pytest.raises(ValueError, match="is refused: it asks for a class of more than 255"):
            open_tensors(tmp_path / name)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("member", "content"),
    [("byteorder", b"littl"), ("data.pkl", b"\x80\x02X\x01\0\0\0\xff.")],
)
def test_whatever_torch_raises_is_damage(tmp_path, member, content):
    torch.save({"a": torch.zeros(3)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole:
        members = {info.filename: whole.read(info) for info in whole.infolist()}
    with zipfile.ZipFile(tmp_path / "m.pth", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, content if name.endswith(member) else data)
    with pytest.raises(ValueError, match=r"m\.pth is damaged or no PyTorch checkpoint: \w+: "):
        open_tensors(tmp_path / "m.pth")


def test_an_archive_of_several_disks_is_damage(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "m.pth")
    content = bytearray((tmp_path / "m.pth").read_bytes())
    at = content.rindex(b"PK\x06\x07")  # the locator of its 64-bit directory
    content[at + 16 : at + 20] = (9).to_bytes(4, "little")
    (tmp_path / "m.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"m\.pth is damaged: BadZipFile: zipfiles that span"):
        open_tensors(tmp_path / "m.pth")
