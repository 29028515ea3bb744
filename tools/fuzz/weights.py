"""Checkpoints of others: safetensors, files of PyTorch, and the configs beside them."""

import argparse
import json
import pathlib
import struct
from pathlib import Path
from typing import Any

import numpy as np

from tools.fuzz.format import Format
from tools.fuzz.mutate import JSON, ZIP_TOKENS, Codec, dumped, zip_of, zipped
from unlearn_jax.convert import reading, settings
from unlearn_jax.convert.reading import open_tensors

STATE = {"encoder.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
         "encoder.bias": np.ones(3, np.float16), "steps": np.int64([3]),
         "empty": np.zeros((0, 2), np.float32)}  # fmt: skip
CONFIG = {"model_type": "vit_mae", "hidden_size": 32, "num_attention_heads": 2, "image_size": 16,
          "num_hidden_layers": 1, "decoder_num_attention_heads": 2, "layer_norm_eps": 1e-12,
          "norm_pix_loss": True, "patch_size": 4}  # fmt: skip
UNET = {"image_size": 16, "num_head_channels": 32, "inner_channel": 32, "channel_mults": [1, 2]}
_TYPES = ("BF16", "F8_E4M3", "BOOL", "U64", "x")
_SHAPES = ("", "0", "4611686018427387904, 4", "-1", "1, 1, 12", "1e3")
HEADER = (
    (rb'"dtype": ?"\w+"', tuple(f'"dtype": "{of}"'.encode() for of in _TYPES)),
    (rb'"shape": ?\[[^\]]*\]', tuple(f'"shape": [{of}]'.encode() for of in _SHAPES)),
    (rb'(?<="data_offsets":)\[[^\]]*\]', (b"[0, 0]", b"[0, 48]", b"[8, 4]", b"[0, 1e3]")),
)
_GLOBALS = ("os:system", "builtins:exec", "builtins:eval", "fuzz_evil:run", "torch:load")
_GLOBALS += ("torch._utils:_rebuild_parameter", "argparse:Namespace", "pathlib:PosixPath")
_GLOBALS += ("numpy.core.multiarray:scalar", "numpy.core.multiarray:_reconstruct", "numpy:dtype")
_GLOBALS += ("collections:OrderedDict", "torch:Size", "torch:BoolStorage", "torch:device")
_GLOBALS += ("torch._utils:_rebuild_sparse_tensor", "torch.nested:x", "torch._utils:x")
_LONG = b"\x8a\x09" + b"\xff" * 8 + b"\x00"
PICKLE = (
    (rb"c[\w.]+\n\w+\n", tuple(f"c{of}\n".replace(":", "\n").encode() for of in _GLOBALS)),
    (rb"(?s)K.", (b"K\x00", b"K\xff", b"J\xff\xff\xff\xff", b"N", _LONG, b"G\x7f\xf8" + bytes(6))),
    (rb"R", (b"R", b"0", b"RR", b"b", b"\x81")),
    (rb"(?s)X.{4}", (b"X\xff\xff\xff\x7f", b"X\x01\0\0\0")),
)


def _split_header(data: bytes) -> list[tuple[str, bytes]]:
    (length,) = struct.unpack("<Q", data[:8])
    return [("header", data[8 : 8 + length]), ("data", data[8 + length :])]


def _join_header(parts: list[tuple[str, bytes]]) -> bytes:
    (_, header), *rest = parts
    return struct.pack("<Q", len(header)) + header + b"".join(content for _, content in rest)


def _header_of(data: bytes) -> Any:
    (length,) = struct.unpack("<Q", data[:8])
    return {"header": json.loads(data[8 : 8 + length]), "data": data[8 + length :].hex()}


def _of_header(value: Any) -> bytes:
    header = dumped(value["header"])
    return struct.pack("<Q", len(header)) + header + bytes.fromhex(value["data"])


SAFETENSORS = Codec(_split_header, _join_header, HEADER)
MEANING = Codec(_header_of, _of_header, HEADER)  # of the same files, under another name
TORCH = Codec(zipped, zip_of, ZIP_TOKENS + PICKLE)


def _safetensors(made: Path) -> None:
    from safetensors.numpy import save_file

    for name in "ab":
        (made / name).mkdir()
        suffix = "x.safetensors" if name == "b" else "model.safetensors"
        save_file(STATE, made / name / suffix, metadata={"format": "pt"})
    (made / "b/config.json").write_text(json.dumps(CONFIG))
    (made / "b/preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3}))
    vision = {"model_cfg": {"quick_gelu": True, "vision_cfg": {"width": 64, "head_width": 32}}}
    (made / "b/open_clip_config.json").write_text(
        json.dumps(vision | {"preprocess_cfg": {"mean": [0]}})
    )
    palette = {"model": {"which_networks": [{"args": {"unet": UNET}}]}}
    (made / "b/palette.json").write_text("// a comment\n" + json.dumps(palette, indent=1))
    (made / "c").mkdir()
    names = list(STATE)
    for i, part in enumerate((names[:2], names[2:])):
        save_file({n: STATE[n] for n in part}, made / f"c/model-{i}-of-2.safetensors")
    where = {n: f"model-{int(i > 1)}-of-2.safetensors" for i, n in enumerate(names)}
    (made / "c/model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def _torch(made: Path) -> None:
    import torch

    state = {name: torch.from_numpy(array) for name, array in STATE.items()}
    state["brain"] = torch.ones(2, dtype=torch.bfloat16)
    arguments = argparse.Namespace(model="mae_vit_base", norm_pix_loss=True, out=pathlib.Path("x"))
    whole = {"model": state, "args": arguments, "epoch": 3, "scalar": np.float64(0.5)}
    for i, old in enumerate((False, False, True)):
        (made / str(i)).mkdir()
        content = state if i == 0 else whole
        torch.save(content, made / f"{i}/model.pth", _use_new_zipfile_serialization=not old)


def _everything(folder: Path) -> Any:
    tensors = open_tensors(folder)
    return {name: tensors.read(name) for name in tensors.shapes}


def _set(folder: Path) -> Any:
    return open_tensors(next(folder.glob("*.pth"), folder), "model").arguments


def _said(folder: Path) -> Any:
    file = reading.weights(folder)[0]
    arguments = {"args": {"model": "mae_vit_base_patch16", "norm_pix_loss": True}}
    tensors = reading.Tensors({}, {}, lambda name: name, arguments=arguments)
    return [settings.said(family, tensors, file) for family in ("mae", "mage", "clip", "palette")]


MODULES = ("convert/reading.py", "convert/settings.py")
FORMATS = {
    "safetensors": Format(
        _safetensors,
        {"open": _everything, "said": _said},
        {"*[l0].safetensors": SAFETENSORS, "*[x1]*.safetensors": MEANING, "*.json": JSON},
        names=frozenset({"--from"}),
        modules=MODULES,
    ),
    "torch": Format(
        _torch, {"open": _everything, "set": _set, "said": _said}, {"*.pth": TORCH},
        modules=("convert/pickled.py",),
    ),
}  # fmt: skip
