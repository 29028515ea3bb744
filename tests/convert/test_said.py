"""What a file does not say of its model is read elsewhere, known, or asked for; never guessed."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.helpers.checkpoints import SMALL, tensors
from unlearn_jax import convert, models
from unlearn_jax.convert import __main__ as binary
from unlearn_jax.convert import settings
from unlearn_jax.convert.reading import Tensors, open_tensors
from unlearn_jax.models import mae
from unlearn_jax.registry import UserError


def shapes(family, model):
    return dict(convert.mapping(convert.find(family), model).values())


def write(path, family="mae"):
    save_file(tensors(family), path)
    return path


def settle(family, file, fields=None):
    found = convert.opened(family, file)
    said = settings.said(family, found, file)
    return convert.find(family).settle(found.shapes, fields or {}, said, file.name)


@pytest.mark.long
@pytest.mark.parametrize("family", SMALL)
def test_a_size_that_is_not_published_is_asked_for_in_one_line(family, tmp_path):
    rules = convert.find(family)
    with pytest.raises(ValueError, match="does not say") as caught:
        binary.import_(family, write(tmp_path / "m.safetensors", family), tmp_path / "run", {})
    asked = re.findall(r"--set=(\w+)=", str(caught.value))
    assert asked == list(rules.unsaid) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    for one in asked:  # each of them
        given = {name: value for name, value in SMALL[family][1].items() if name != one}
        with pytest.raises(ValueError, match=f"does not say {one}, and.*--set={one}="):
            rules.model(shapes(family, SMALL[family][0]), given)
    assert rules.model(shapes(family, SMALL[family][0]), SMALL[family][1]) == SMALL[family][0]


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "model", "known"),
    [
        ("mae", models.MAE(**mae.PRESETS["large"]), {"heads": 16, "epsilon": 1e-6}),
        ("mae", models.MAE(**mae.PRESETS["huge"]), {"heads": 16, "decoder_heads": 16}),
        ("palette", models.Palette(), {"image_size": 256, "head_channels": 32}),
        ("vqgan", models.VQGAN(), {"image_size": 256}),
    ],
)
def test_a_published_size_is_known_by_its_shapes_and_named(family, model, known):
    rules, given = convert.find(family), {"norm_pix_loss": False} if family == "mae" else {}
    found, origins = rules.settle(shapes(family, model), given)
    assert found == model
    for name, value in known.items():
        assert getattr(found, name) == value and origins[name].startswith("published ")
    with pytest.raises(ValueError, match="does not say"):  # the same names are of a library
        rules.settle(shapes(family, model), {}, file=None)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("mae_visualize_vit_base.pth", False),
        ("mae_pretrain_vit_base_full.pth", True),
        ("mine.pth", None),
    ],
)
def test_whether_pixels_are_normalised_is_not_guessed(file, expected):
    rules, of = convert.find("mae"), shapes("mae", models.MAE())
    if expected is None:
        with pytest.raises(ValueError, match="does not say norm_pix_loss"):
            rules.settle(of, {}, {}, file)
    else:
        model, origins = rules.settle(of, {}, {}, file)
        assert model.norm_pix_loss is expected
        assert origins["norm_pix_loss"] == f"published {file.split('.')[0].removesuffix('_full')}"
    # What the file says itself wins over its name.
    said = {"args in the file": {"norm_pix_loss": True, "mask_ratio": 0.6}}
    model, origins = rules.settle(of, {}, said, file)
    assert model.norm_pix_loss and origins["norm_pix_loss"] == "args in the file"
    assert model.mask_ratio == 0.6


def test_arguments_of_the_release_name_a_size():
    arguments = {"model": "mae_vit_huge_patch14", "input_size": 448, "norm_pix_loss": True}
    said = convert.find("mae").build(**convert.mae.said(arguments))
    assert said == models.MAE(**mae.PRESETS["huge"], image_size=448, norm_pix_loss=True)
    assert settings._pretraining({"model": "mage_vit_large_patch16"}) == {
        "heads": 16,
        "decoder_heads": 16,
    }
    assert settings._pretraining({"model": "my_own"}) == {}


def test_fields_beside_the_file_are_read_and_a_contradiction_refused(tmp_path):
    file = write(tmp_path / "mine.safetensors")
    (tmp_path / "other.json").write_text('{"heads": 1}')  # of another file
    (tmp_path / "mine.json").write_text(json.dumps(SMALL["mae"][1]))
    model, origins = settle("mae", file)
    assert model == SMALL["mae"][0]
    assert origins["heads"] == "mine.json" and origins["dim"] == "the tensors"
    assert settle("mae", file, {"heads": 4})[1]["heads"] == "--set"
    (tmp_path / "mine.json").write_text(json.dumps({**SMALL["mae"][1], "depth": 3}))
    with pytest.raises(ValueError, match="depth is 2 by the tensors and 3 by mine.json.*--set=dep"):
        settle("mae", file)
    (tmp_path / "mine.json").write_text("{")
    with pytest.raises(ValueError, match=r"mine.json beside the weights cannot be read"):
        settle("mae", file)


def test_a_field_that_there_is_not_is_named_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"--set: unknown 'head'.*did you mean 'heads'\?"):
        settle("mae", write(tmp_path / "m.safetensors"), {"head": 4})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("norm_pix_loss=no", "norm_pix_loss: expected bool, got 'no' by --set"),
        ("norm_pix_loss=1", "norm_pix_loss: expected bool, got 1 by --set"),
        ("heads=four", "heads: expected int, got 'four' by --set"),
        ("epsilon=null", "epsilon: expected float, got None by --set"),
        ("heads", "--set: expected FIELD=VALUE"),
    ],
)
def test_a_value_of_another_kind_is_refused(text, message):
    of, given = shapes("mae", SMALL["mae"][0]), dict(SMALL["mae"][1])
    with pytest.raises(ValueError, match=message):
        convert.find("mae").model(of, given | binary._fields([text]))
    assert binary._fields(["a=False", "b=True", "c=1e-6", "d=[1,2]"]) == {
        "a": False, "b": True, "c": 1e-6, "d": [1, 2],
    }  # fmt: skip


PALETTE = """{ // a config of the release
    "name": "inpainting", "path": "http://example.org/a", // comments
    "model": {"which_networks": [{"name": ["models.network", "Network"], "args": {
        "unet": {"inner_channel": 32, "channel_mults": [1, 2], "res_blocks": 1,
                 "num_head_channels": %s, "dropout": 0.2, "image_size": 16}}}]}
}"""


def test_a_palette_config_beside_the_file_is_read(tmp_path):
    file = write(tmp_path / "16_Network.safetensors", "palette")
    (tmp_path / "inpainting_places2.json").write_text(PALETTE % 16)
    model, origins = settle("palette", file)
    assert (model.image_size, model.head_channels, model.dropout) == (16, 16, 0.2)
    assert origins["head_channels"] == "inpainting_places2.json"
    (tmp_path / "another.json").write_text(PALETTE % 32)
    with pytest.raises(ValueError, match=r"head_channels is 32 by another.json and 16 by inp"):
        settle("palette", file)


def test_a_config_of_open_clip_tells_heads_and_the_gelu(tmp_path):
    file = write(tmp_path / "open_clip_model.safetensors", "clip")
    config = {
        "model_cfg": {"vision_cfg": {"width": 32, "head_width": 16}, "quick_gelu": True},
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    model, _ = settle("clip", file)
    assert (model.heads, model.quick_gelu, model.mean) == (2, True, (0.5, 0.5, 0.5))


def test_what_is_said_is_printed_stored_and_what_nothing_confirms_is_named(tmp_path, capsys):
    given = {"heads": 4, **{k: v for k, v in SMALL["mae"][1].items() if k != "heads"}}
    file = write(tmp_path / "m.safetensors")
    manifest = binary.import_("mae", file, tmp_path / "run", given)
    stored = json.loads((tmp_path / "run/conversion.json").read_text())
    assert stored["fields"] == manifest["fields"] and stored["fields"]["heads"] == "--set"
    binary._tell(manifest)
    out = capsys.readouterr().out
    assert "--set: heads=4" in out and "the tensors: image_size=16" in out
    binary._verify("mae", file, tmp_path / "run", "")
    assert "Not verified: heads, decoder_heads, epsilon, norm_pix_loss. Only --set says so" in (
        capsys.readouterr().out
    )
    with pytest.raises(ValueError, match="was made with other flags"):
        binary.import_("mae", file, tmp_path / "run", SMALL["mae"][1])
    params = np.asarray(convert.opened("mae", file).read("cls_token"))
    np.testing.assert_array_equal(params, tensors("mae")["cls_token"])


@pytest.mark.parametrize(
    ("name", "text", "family"),
    [
        ("preprocessor_config.json", '{"image_mean": 3}', "mae"),
        ("open_clip_config.json", '{"model_cfg": []}', "clip"),
        ("open_clip_config.json", '{"model_cfg": {"vision_cfg": {"width": "x"}}}', "clip"),
    ],
)
def test_a_config_that_means_nothing_is_named(tmp_path, name, text, family):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name}: expected a config of the weights beside it"):
        settings.said(family, Tensors({}, {}, lambda name: name), tmp_path / "m.safetensors")


def test_what_a_header_says_stays_in_a_line(tmp_path):
    header = b'{"a": {"dtype": "F16\\nF16\\nF16", "shape": [1], "data_offsets": [0, 2]}}'
    content = len(header).to_bytes(8, "little") + header + b"00"
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="^[^\n]*m.safetensors is not a readable[^\n]*$"):
        open_tensors(tmp_path / "m.safetensors")


@pytest.mark.parametrize("name", ["../m.safetensors", "/etc/hostname", "m" * 300, "", "a\nb"])
def test_an_index_names_files_beside_it(tmp_path, name):
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="which is no file beside it"):
        open_tensors(tmp_path / "m.safetensors.index.json")
