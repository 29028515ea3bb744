"""Audits of functions: planted memory is refuted, none is not, and what is wrong is refused."""

import json
import zlib

import numpy as np
import pytest
from PIL import Image

import unlearn_jax as uj
from unlearn_jax.audit import functions
from unlearn_jax.report import audit_page

N = {"forget": 60, "unseen": 180}


def write(folder, images):
    folder.mkdir(parents=True)
    for k, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{k:03}.png")
    return folder


def drawn(n, seed, low=0, high=256):
    """Smooth images, [n 16 16 3]."""
    coarse = np.random.default_rng(seed).integers(low, high, (n, 4, 4, 3)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(x).resize((16, 16), 3)) for x in coarse])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    return {name: write(root / name, drawn(n, n)) for name, n in N.items()}


class Planted:
    """Completes by a guess, and by `share` of the truth if it knows what it sees."""

    def __init__(self, known, share, seed):
        self.share, self.seed, self.sizes, self.seeds = share, seed, set(), []
        self.known = {self.key(x / 127.5 - 1): x / 127.5 - 1 for x in known}

    @staticmethod
    def key(image):
        return zlib.crc32(np.rint(image[:2] * 1000).astype(np.int32).tobytes())

    def complete(self, images, masks, seed):
        self.sizes.add(len(images))
        self.seeds.append(seed)
        made = images.copy()
        for out, image, mask in zip(made, images, masks, strict=True):
            rng = np.random.default_rng([self.seed, self.key(image)])
            guess = image[:2].mean() + rng.normal(0, 0.1, image.shape)
            truth = self.known.get(self.key(image), guess)
            out[:] = np.where(mask > 0, self.share * truth + (1 - self.share) * guess, image)
        return made.clip(-1, 1)


def planted(share, seed):
    return Planted(drawn(N["forget"], N["forget"]), share, seed)


def audit(folders, out, candidate, **options):
    return uj.audit_functions(candidate, out, **folders, **options)


@pytest.mark.long
@pytest.mark.parametrize("share", [0.5, 0.0])
def test_planted_memory_is_refuted_and_none_is_not(folders, tmp_path, share):
    others = {"original": planted(0.9, 2), "retrained": [planted(0.0, 3), planted(0.0, 4)]}
    found = audit(folders, tmp_path, planted(share, 1), **others)
    assert found["conclusion"]["word"] == ("refuted" if share else "not refuted")
    rows = found["witnesses"]
    for name in ("forget_error", "membership_plain", "displacement"):
        assert rows[name]["word"] == found["conclusion"]["word"], name
    for name in ("resurfacing", "relearning", "quantised", "backdoor"):
        assert rows[name]["word"] == "not measured" and rows[name]["reason"]
    assert found["models"] == ["original", "unlearned", "retrained", "shadow1"]
    assert found["damage"].keys() == {"unseen_loss"}  # no retained images were given
    assert json.loads((tmp_path / "audit.json").read_text()) == json.loads(json.dumps(found))
    page = audit_page.write(tmp_path).read_text("utf-8")
    assert found["conclusion"]["text"].split(":")[0] in page and "parameters" in page
    assert found["worst_images"][0]["file"] in page


@pytest.mark.long
@pytest.mark.parametrize("share", [0.5, 0.0])
@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("retrained", [0, 1, 2])
def test_what_can_be_said_without_the_other_models(folders, tmp_path, share, original, retrained):
    if original and retrained == 2:
        return
    others = {"original": planted(0.9, 2)} if original else {}
    others["retrained"] = [planted(0.0, 3), planted(0.0, 4)][:retrained]
    concluded = audit(folders, tmp_path, planted(share, 1), **others)["conclusion"]
    assert concluded["word"] == ("refuted" if share else "not tested")
    if share:
        assert "if both folders" in concluded["text"] or retrained
    else:
        assert any("--original" in why for why in concluded["missing"]) is not original
        assert any("--retrained" in why for why in concluded["missing"]) is (retrained < 2)
    audit_page.write(tmp_path)


def test_folders_that_look_different_refute_nothing_alone(folders, tmp_path):
    """Bright images are completed worse by a guess that is dark, whoever was trained on them."""
    sets = {"unseen": write(tmp_path / "bright", drawn(180, 5, low=128)),
            "forget": folders["forget"]}  # fmt: skip

    def dark(images, masks, seed):
        return np.where(masks > 0, -0.2, images)

    found = audit(sets, tmp_path, dark)
    assert found["witnesses"]["membership_plain"]["test"]["value"] > 0.75
    assert found["conclusion"]["word"] == "not tested"
    assert any("look different" in why for why in found["conclusion"]["missing"])
    fair = audit(sets, tmp_path, dark, retrained=[dark])  # what retrained models do, too, is none
    assert fair["witnesses"]["membership_plain"]["test"]["value"] == 0.5


def test_arrays_are_those_of_the_completions(folders):
    pixels, index, names = functions.read(folders, 0, seed=3)
    order = np.concatenate([index["unseen"], index["calibration"]])
    np.testing.assert_array_equal(np.sort(order), np.arange(180))
    assert len(index["calibration"]) == 60 and names["unseen"][7] == "007.png"
    np.testing.assert_array_equal(pixels["unseen"], drawn(180, 180)[index["unseen"]])

    def half(images, masks, seed):
        return images / 2

    def grey(images, masks, seed):
        return np.zeros_like(images)

    def size(images, masks, seed):
        assert len(images) == 32 and masks.shape == (32, 16, 16, 1)
        return np.square(images).mean((1, 2, 3), dtype=np.float64) + 1

    given = {"original": (grey, None), "unlearned": (half, size)}
    models = {name: functions.Function(name, *of) for name, of in given.items()}
    task = {"name": "left", "hole": 0.5}
    found = functions.measure(models, pixels, task, 32, seed=0)["unlearned"]
    image = pixels["unseen"] / 127.5 - 1
    square = np.square(image / 2).mean(3)
    close = {"rtol": 1e-4, "atol": 1e-7}
    np.testing.assert_allclose(found["error/unseen"], square[:, :, :8].mean((1, 2)), **close)
    np.testing.assert_allclose(found["visible/unseen"], square[:, :, 8:].mean((1, 2)), **close)
    moved = np.sqrt(square[:, :, :8].mean((1, 2)))
    np.testing.assert_allclose(found["displacement/unseen"], moved, **close)
    own = np.square(image).mean((1, 2, 3)) + 1
    np.testing.assert_allclose(found["loss/unseen"], own[:, None], **close)
    np.testing.assert_allclose(found["views/unseen"], np.tile(own[:, None], 7), **close)
    assert found["noise/forget"].shape == (60, 6) and "noise/calibration" not in found
    assert np.ptp(found["noise/forget"], axis=1).min() > 0


def test_models_get_the_same_seeds_in_full_batches(folders, tmp_path):
    models = planted(0.5, 1), planted(0.9, 2)
    audit(folders, tmp_path, models[0], original=models[1], batch_size=50, seed=7)
    assert models[0].seeds == models[1].seeds and len({*models[0].seeds}) > 6
    assert models[0].sizes == models[1].sizes == {50}


def returns(value):
    return lambda images, masks, seed: value(images)


def of(complete, loss):
    complete.loss = loss
    return complete


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (returns(lambda x: x.tolist()), "complete .*numpy array.*got list"),
        (returns(lambda x: x[..., :1]), r"\[32, 16, 16, 3\].*got float32 \[32, 16, 16, 1\]"),
        (returns(lambda x: np.zeros(x.shape, np.uint8)), "got uint8"),
        (returns(lambda x: x * np.nan), "NaN"),
        (returns(lambda x: (x + 1) * 127.5), r"within \[-1, 1\]; got 0 to 255"),
        (of(returns(np.copy), returns(lambda x: x.mean())), "loss .*got float32"),
        (of(returns(np.copy), returns(lambda x: -np.ones(len(x)))), "loss .*got -1 to -1"),
        ("tests.audit.nothing:here", "cannot import the model"),
        (3, "--candidate: expected a function"),
    ],
)
def test_what_functions_return_is_checked(folders, tmp_path, model, message):
    with pytest.raises(uj.UserError, match=message) as caught:
        audit(folders, tmp_path, model)
    assert "candidate" in str(caught.value) or "import" in message
    assert not (tmp_path / "audit.json").exists()


def test_what_a_function_raises_keeps_its_traceback(folders, tmp_path):
    def broken(images, masks, seed):
        raise OSError("no such weights")

    with pytest.raises(RuntimeError, match="complete of --candidate=.*broken raised OSError") as e:
        audit(folders, tmp_path, broken)
    assert isinstance(e.value.__cause__, OSError) and not isinstance(e.value, uj.UserError)


def test_folders_and_losses_are_checked(folders, tmp_path):
    good = planted(0.5, 1)
    wide = write(tmp_path / "wide", [np.zeros((16, 20, 3), np.uint8)] * 3)
    for sets, message in (
        ({"forget": tmp_path / "none"}, "--forget: expected a folder"),
        ({"retain": folders["unseen"]}, "--retain: 000.png is in another folder"),
        ({"retain": wide}, "000.png: expected 16 x 16 .*--image_size"),
        ({"forget": write(tmp_path / "one", drawn(1, 9))}, "at least 2 images"),
    ):
        with pytest.raises(uj.UserError, match=message):
            audit(folders | sets, tmp_path, good)
    with pytest.raises(uj.UserError, match="loss of all models or of none.*original"):
        audit(folders, tmp_path, of(returns(np.copy), returns(len)), original=good)
    found, _, _ = functions.read(folders | {"retain": wide}, 12, seed=0)
    assert found["retain"].shape == (3, 12, 12, 3)
