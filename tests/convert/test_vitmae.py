"""Folders that transformers saves: in, compared, unlearned, out, and loaded by it again."""

import json
import shutil

import jax
import numpy as np
import pytest

from tests.helpers import tiny
from unlearn_jax import checkpoint, convert, train
from unlearn_jax.convert import __main__ as binary

pytestmark = pytest.mark.long
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "image_size": 32, "patch_size": 8, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2, "decoder_intermediate_size": 64, "mask_ratio": 0.5,
}  # fmt: skip


def save(folder, shard="1GB", dtype=None, **more):
    """A folder of a random model, its biases and norms not those of a fresh one."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**SIZES | more))
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.1 * torch.randn(tensor.shape))
    (model.to(dtype) if dtype else model).save_pretrained(folder, max_shard_size=shard)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("tiny") / "vitmae")


def load(folder):
    model = transformers.ViTMAEForPreTraining.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def theirs(reference, images, noise):
    pixels = torch.tensor(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        found = reference(pixels, noise=torch.tensor(noise))
        features = reference.vit(pixels, noise=torch.tensor(noise)).last_hidden_state
    return {"features": features, "logits": found.logits, "loss": found.loss}


def ours(workdir, images, noise):
    """Its latent, its prediction of patches as vectors, and its loss; images are normalised."""
    model = convert.described(workdir)
    params, _ = checkpoint.load_params(workdir, binary._like(model))
    seen = 2 * (images * np.float32(model.std) + np.float32(model.mean)) - 1

    def numbers(params, batch, draws):
        key = jax.random.key(0)
        latent = model.encode(params, batch, key, draws=draws)
        logits = model._predict(params, latent, model._masking(batch, key, draws))
        return {"features": latent, "logits": logits,
                "loss": model.loss(params, batch, key, draws=draws).mean()}  # fmt: skip

    batch = {"image": seen, "mask": np.zeros_like(seen[..., :1])}
    return jax.jit(numbers)(params, batch, {"mask_noise": noise})


def agree(workdir, folder, size=32):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, size, size, 3), np.float32)
    noise = rng.uniform(size=(2, (size // 8) ** 2)).astype(np.float32)
    want, got = theirs(load(folder), images, noise), ours(workdir, images, noise)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value.numpy(), atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"layer_norm_eps": 1e-12}, marks=pytest.mark.full),
        {"layer_norm_eps": 1e-1, "norm_pix_loss": True},
    ],
)
def test_a_folder_converts_with_its_own_config_and_agrees(more, tmp_path):
    saved = save(tmp_path / "vitmae", **more)
    manifest = binary.import_("mae", saved, tmp_path / "run", {})
    assert manifest["model"]["epsilon"] == more["layer_norm_eps"]
    assert manifest["model"]["norm_pix_loss"] == more.get("norm_pix_loss", False)
    assert manifest["fields"]["heads"] == manifest["fields"]["epsilon"] == "config.json"
    assert manifest["source"]["library"] == "transformers"
    agree(tmp_path / "run", saved)
    assert convert.recognised(saved) == "mae"


def test_an_export_is_loaded_by_transformers_bit_for_bit(folder, tmp_path):
    binary.import_("mae", folder, tmp_path / "run", {})
    binary.export("mae", tmp_path / "run", tmp_path / "back")
    want, got = load(folder), load(tmp_path / "back")
    for name, tensor in want.state_dict().items():
        assert got.state_dict()[name].equal(tensor), name
    kept = set(json.loads((tmp_path / "back/config.json").read_text()))
    for key in kept - {"architectures", "dtype"}:
        assert getattr(got.config, key) == getattr(want.config, key), key
    report = binary.compare("mae", tmp_path / "back", tmp_path / "run")
    assert not report["different"] and max(report["outputs"].values()) < 1e-5
    with pytest.raises(ValueError, match=r"expected a name ending in .pth"):
        (tmp_path / "run/conversion.json").write_text('{"family": "palette", "model": {}}')
        binary.export("palette", tmp_path / "run", tmp_path / "other")


@pytest.mark.parametrize("kind", ["bf16", "shards", "bin", "bin_shards", "state_dict"])
def test_every_way_that_its_files_come(kind, folder, tmp_path):
    options = {"bf16": {"dtype": torch.bfloat16}, "shards": {"shard": "50KB"},
               "bin_shards": {"shard": "50KB"}}  # fmt: skip
    saved = save(tmp_path / "vitmae", **options.get(kind, {}))
    whole = saved / "model.safetensors"
    if kind in ("bin", "bin_shards"):
        _as_bin(saved)
    elif kind == "state_dict":  # as a model in memory calls them
        torch.save(load(saved).state_dict(), saved / "pytorch_model.bin")
        whole.unlink()
    else:
        assert whole.exists() == (kind == "bf16")
    found = convert.opened("mae", saved)
    assert found.shapes == convert.opened("mae", folder).shapes
    assert set(found.dtypes.values()) == {"bfloat16" if kind == "bf16" else "float32"}
    state = load(saved).state_dict()
    layer = state["vit.layers.1.attention.k_proj.weight"].numpy()
    got = np.asarray(found.read("blocks.1.attn.qkv.weight")).astype(np.float32)
    np.testing.assert_array_equal(got[32:64], layer)
    np.testing.assert_array_equal(
        np.asarray(found.read("decoder_blocks.0.mlp.fc2.weight")).astype(np.float32),
        state["decoder.decoder_layers.0.mlp.fc2.weight"].numpy(),
    )


def _as_bin(folder):
    """The files of before safetensors: pickles, and an index that names them."""
    from safetensors.torch import load_file

    for file in folder.glob("*.safetensors"):
        name = file.name.replace("model", "pytorch_model").replace(".safetensors", ".bin")
        torch.save(load_file(file), folder / name)
        file.unlink()
    for index in folder.glob("*.index.json"):
        text = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        (folder / "pytorch_model.bin.index.json").write_text(text)
        index.unlink()


@pytest.mark.full
def test_tables_are_interpolated_on_request_only_and_said(folder, tmp_path, capsys):
    manifest = binary.import_("mae", folder, tmp_path / "run", {"image_size": 64})
    assert manifest["source"]["resized_from"] == 32
    binary._tell(manifest)
    assert "interpolated from images of 32 pixels to 64" in capsys.readouterr().out
    report = binary._verify("mae", folder, tmp_path / "run", "")
    assert sorted(report["interpolated"]) == ["decoder_pos_embed", "pos_embed"]
    assert set(report["outputs"]) == {"encoder"} and report["outputs"]["encoder"] < 1e-5
    binary.export("mae", tmp_path / "run", tmp_path / "back")
    agree(tmp_path / "run", tmp_path / "back", size=64)
    config = json.loads((folder / "config.json").read_text()) | {"image_size": 64}
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="image_size is 32 by the tensors and 64 by config.json"):
        binary.import_("mae", other, tmp_path / "third", {})


@pytest.mark.parametrize(
    "change,message",
    [
        ({"hidden_act": "relu"}, "hidden_act=relu, which is not supported"),
        ({"qkv_bias": False}, "qkv_bias=False"),
        ({"intermediate_size": 96}, "intermediate_size=96"),
        ({"image_size": [32, 64]}, "expected a square"),
        ({"num_hidden_layers": 3}, "depth is 2 by the tensors and 3 by config.json"),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(change, message, folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        binary.import_("mae", other, tmp_path / "run", {})


def test_verify_asks_transformers_and_not_our_own_fields(folder, tmp_path):
    binary.import_("mae", folder, tmp_path / "wrong", {"heads": 1})
    with pytest.raises(ValueError, match=r"The outputs \['encoder'.*differ"):
        binary._verify("mae", folder, tmp_path / "wrong", "")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(folder / "model.safetensors", alone)
    with pytest.raises(ValueError, match="does not say heads and decoder_heads and epsilon and"):
        binary.import_("mae", alone, tmp_path / "run", {})


@pytest.mark.full
def test_it_is_unlearned_for_some_steps_and_goes_back(folder, tmp_path):
    manifest = binary.import_("mae", folder, tmp_path / "original", {}, served="none")
    config = tiny.get_config()
    config.model = {"name": "mae", **manifest["model"]}
    config.stage, config.init_from = "unlearned", str(tmp_path / "original")
    config.phases.decouple.steps = config.phases.retain.steps = 2
    train.run(config, tmp_path / "unlearned")
    binary.export("mae", tmp_path / "unlearned", tmp_path / "back")
    before, after = load(folder).state_dict(), load(tmp_path / "back").state_dict()
    changed = {name for name, tensor in before.items() if not after[name].equal(tensor)}
    assert "vit.layers.0.attention.q_proj.weight" in changed
    assert "vit.embeddings.position_embeddings" not in changed
    assert not [name for name in changed if name.startswith("decoder.")]
    assert load(tmp_path / "back").config.layer_norm_eps == 1e-12
    report = binary.compare("mae", tmp_path / "back", tmp_path / "unlearned")
    assert not report["different"] and max(report["outputs"].values()) < 1e-5
    config.model.epsilon = 1e-6
    with pytest.raises(ValueError, match=r"epsilon=1e-06.*1e-12"):
        train.run(config, tmp_path / "other")
