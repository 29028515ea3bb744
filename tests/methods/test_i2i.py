import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.toy import Toy, make_batch
from unlearn_jax import methods as objectives
from unlearn_jax.methods import i2i
from unlearn_jax.training.step import unlearn_loss

KEY = jax.random.key(0)
PARAMS, TARGET = Toy().init(KEY), Toy().init(jax.random.key(1))
VALID = np.array([True, True, False, True, True, True, True, False])


def batch_of(forget=4, valid=VALID):
    """Forget rows first; with the default `valid` they are 0, 1, 3, the retain rows 4, 5, 6."""
    return {**make_batch(8, forget=forget), "valid": jnp.asarray(valid)}


def run(name, batch, **options):
    return objectives.build(name, **options)(Toy(), PARAMS, TARGET, batch, KEY)


def encode(params, image, batch):
    return (
        np.asarray(image) * (1 - np.asarray(batch["mask"])) * np.asarray(params["encoder"]["scale"])
    )


def decode(params, latent):
    return latent + np.asarray(params["decoder"]["bias"])


def mse(a, b):
    return ((a - b) ** 2).mean((1, 2, 3))


def gaussian(x, key):
    """Noise with the mean and standard deviation of the valid rows of x."""
    x = np.asarray(x)
    noise = np.asarray(jax.random.normal(key, x.shape))
    return x[VALID].mean() + x[VALID].std() * noise


def noise_key():
    return jax.random.fold_in(KEY, i2i._NOISE)


def test_noise_images_have_the_statistics_of_the_valid_rows():
    batch = make_batch(8, size=64, invalid=4)
    pixels = 0.3 + 0.05 * batch["image"]
    batch["image"] = pixels.at[4:].set(-1.0)
    kept = np.asarray(pixels[:4])
    normal, uniform, constant = (
        np.asarray(i2i.noise_image(batch, KEY, kind)) for kind in ("normal", "uniform", "constant")
    )
    np.testing.assert_allclose(constant, kept.mean(), rtol=1e-5)
    n = normal.size
    assert abs(normal.mean() - kept.mean()) < 5 * kept.std() / n**0.5
    np.testing.assert_allclose(normal.std(), kept.std(), rtol=0.02)
    assert uniform.min() >= -1 and uniform.max() <= 1
    np.testing.assert_allclose([uniform.mean(), uniform.std()], [0, 3**-0.5], atol=0.02)
    assert abs(np.corrcoef(normal[0].ravel(), normal[1].ravel())[0, 1]) < 0.05


def test_noise_is_clipped_to_the_range_of_images_and_its_kind_is_checked():
    batch = make_batch(8, size=16)
    batch["image"] = jnp.sign(batch["image"])  # a standard deviation of 1
    noise = np.asarray(i2i.noise_image(batch, KEY, "normal"))
    assert noise.min() == -1 and noise.max() == 1
    with pytest.raises(ValueError, match=r"noise_type: expected one of .*'normal'.*got 'gauss'"):
        i2i.noise_image(batch, KEY, "gauss")


def test_noisy_label_wants_noise_in_the_hole_of_forget_rows_only():
    batch = batch_of()
    image, mask = np.asarray(batch["image"]), np.asarray(batch["mask"])
    noisy = np.where(mask == 1, gaussian(image, noise_key()).clip(-1, 1), image)
    output = decode(PARAMS, encode(PARAMS, image, batch))
    terms = run("noisy_label", batch)
    np.testing.assert_allclose(terms.retain[4:], mse(output, image)[4:], rtol=1e-5)
    np.testing.assert_allclose(terms.forget[:4], -mse(output, noisy)[:4], rtol=1e-5)


def test_retain_label_pairs_the_kth_forget_row_with_the_kth_retain_row():
    for batch, pairs in (
        (batch_of(), {0: 4, 1: 5, 3: 6}),
        (batch_of(forget=6), {0: 6, 1: 6, 3: 6, 4: 6, 5: 6}),
        (batch_of(forget=5, valid=np.ones(8, bool)), {0: 5, 1: 6, 2: 7, 3: 5, 4: 6}),
    ):
        mine, original = (decode(p, encode(p, batch["image"], batch)) for p in (PARAMS, TARGET))
        terms = run("retain_label", batch)
        np.testing.assert_allclose(terms.retain, mse(mine, original), rtol=1e-5)
        for row, other in pairs.items():
            expected = ((mine[row] - original[other]) ** 2).mean()
            np.testing.assert_allclose(terms.forget[row], -expected, rtol=1e-5)


def test_retain_label_without_retain_rows_wants_unit_gaussian_outputs():
    batch = batch_of(forget=8)
    mine = decode(PARAMS, encode(PARAMS, batch["image"], batch))
    noise = np.asarray(jax.random.normal(noise_key(), mine.shape))
    np.testing.assert_allclose(run("retain_label", batch).forget, -mse(mine, noise), rtol=1e-5)


def test_random_encoder_by_hand():
    batch = batch_of()
    mine, original = (encode(p, batch["image"], batch) for p in (PARAMS, TARGET))
    noise = gaussian(original, jax.random.split(noise_key(), 1)[0])
    terms = run("random_encoder", batch)
    np.testing.assert_allclose(terms.retain, mse(mine, original), rtol=1e-5)
    np.testing.assert_allclose(terms.forget, -mse(mine, noise), rtol=1e-5)


@pytest.mark.parametrize("noise_type", ["normal", "constant"])
def test_l2_encoder_by_hand(noise_type):
    batch = batch_of()
    image = np.asarray(batch["image"])
    constant = np.full(image.shape, image[VALID].mean())
    noise = {"normal": gaussian(image, noise_key()).clip(-1, 1), "constant": constant}[noise_type]
    mine = encode(PARAMS, image, batch)
    terms = run("l2_encoder", batch, noise_type=noise_type)
    keep, change = (mse(mine, encode(TARGET, x, batch)) for x in (image, noise))
    np.testing.assert_allclose(terms.retain[4:], keep[4:], rtol=1e-5)
    np.testing.assert_allclose(terms.forget[:4], -change[:4], rtol=1e-5)


def loss(params, name, batch, **options):
    return unlearn_loss(
        params, TARGET, batch, KEY, model=Toy(), objective=objectives.build(name, **options),
        retain_weight=0.7, forget_weight=0.2,
    )[0]  # fmt: skip


def test_upstream_weights_give_the_released_loss():
    """ra / B * sum (1 + l) mse_retain + fa / B * sum (1 - l) mse_forget, l = 1 on retain rows."""
    batch = batch_of(forget=2)
    image = np.asarray(batch["image"])
    noise = gaussian(image, noise_key()).clip(-1, 1)
    mine = encode(PARAMS, image, batch)
    keep, change = (mse(mine, encode(TARGET, x, batch)) for x in (image, noise))
    label = np.where(batch["is_forget"], -1, 1)
    rows = 0.7 * (1 + label) * keep + 0.2 * (1 - label) * change
    found = loss(PARAMS, "l2_encoder", batch, upstream_weights=True)
    np.testing.assert_allclose(found, rows[VALID].mean(), rtol=1e-5)


@pytest.mark.parametrize("name", ["random_encoder", "retain_label"])
def test_upstream_bug_gives_the_released_loss_which_has_no_forget_rows(name):
    """Both terms carry (1 + l); retain row i of the batch is paired with retain row i modulo n."""
    batch = batch_of(forget=2)  # valid rows 0 1 3 4 5 6, retain rows 3 4 5 6
    mine, original = (encode(p, batch["image"], batch) for p in (PARAMS, TARGET))
    if name == "random_encoder":
        goal = gaussian(original, jax.random.split(noise_key(), 1)[0])
    else:
        mine, original = decode(PARAMS, mine), decode(TARGET, original)
        goal = original[[0, 0, 0, 5, 6, 3, 4, 0]]
    label = np.where(batch["is_forget"], -1, 1)
    rows = (1 + label) * (0.7 * mse(mine, original) + 0.2 * mse(mine, goal))
    flags = {"upstream_bug_compat": True, "upstream_weights": True}
    np.testing.assert_allclose(loss(PARAMS, name, batch, **flags), rows[VALID].mean(), rtol=1e-5)


def test_distance_is_summed_over_leaves_and_ignores_integers():
    a = {"map": jnp.zeros((2, 2, 2)), "tokens": jnp.zeros((2, 3)), "kept": jnp.array([0, 1])}
    b = {"map": a["map"].at[0, 0, 0].set(2.0), "tokens": jnp.full((2, 3), 3.0),
         "kept": jnp.array([5, 6])}  # fmt: skip
    np.testing.assert_allclose(i2i.distance(a, b), [1 + 9, 9])


@pytest.mark.parametrize("name", ["retain_label", "random_encoder", "l2_encoder"])
def test_without_an_original_the_message_says_so(name):
    with pytest.raises(ValueError, match=f"'{name}' compares with the original.*scratch=False"):
        objectives.build(name)(Toy(), PARAMS, {}, batch_of(), KEY)


class Says(Toy):
    """A model that says itself what methods are to compare."""

    def predict(self, params, batch, key):
        return batch["image"] * params["encoder"]["scale"]

    def encode_noise(self, params, batch, key, noise_type):
        noise = {"normal": 0.5, "uniform": 0.25}[noise_type]
        forget = batch["is_forget"][:, None, None, None]
        return jnp.where(forget, noise, self.encode(params, batch, key))

    def noisy_loss(self, params, batch, key):
        return self.loss(params, batch, key) + jnp.arange(8.0) * batch["is_forget"]

    def tokenizer_loss(self, params, batch, key):
        return 7 + jnp.arange(8.0)


def test_a_model_says_what_methods_compare():
    model, batch = Says(), batch_of(valid=np.ones(8, bool))

    def run(name, **options):
        return objectives.build(name, **options)(model, PARAMS, TARGET, batch, KEY)

    image = np.asarray(batch["image"])
    mine, original = (np.asarray(p["encoder"]["scale"]) for p in (PARAMS, TARGET))
    terms = run("retain_label")
    np.testing.assert_allclose(terms.retain, mse(image * mine, image * original), rtol=1e-5)
    paired = mse(image[:4] * mine, image[4:] * original)
    np.testing.assert_allclose(terms.forget[:4], -paired, rtol=1e-5)
    latent, kept = (encode(p, batch["image"], batch) for p in (PARAMS, TARGET))
    terms = run("l2_encoder", noise_type="uniform")
    np.testing.assert_allclose(terms.retain[4:], mse(latent, kept)[4:], rtol=1e-5)
    np.testing.assert_allclose(terms.forget[:4], -mse(latent, 0.25)[:4], rtol=1e-5)
    loss = np.asarray(model.loss(PARAMS, batch, KEY))
    terms = run("noisy_label")
    np.testing.assert_allclose(terms.retain[4:], loss[4:], rtol=1e-6)
    np.testing.assert_allclose(terms.forget[:4], -(loss + np.arange(8))[:4], rtol=1e-6)
    terms = run("tokenizer")
    np.testing.assert_array_equal(terms.retain, 7 + np.arange(8))
    np.testing.assert_array_equal(terms.forget, 0)


class Coded(Toy):
    """A model that sees its images as codes of 0 and 1, and counts how many it makes."""

    made = 0

    def tokens(self, params, batch):
        if "tokens" in batch:
            return batch["tokens"]
        type(self).made += len(batch["image"])
        return (batch["image"].reshape(len(batch["image"]), -1) > 0).astype(jnp.int32)

    def encode(self, params, batch, key):
        seen = self.tokens(params, batch).reshape(batch["image"].shape).astype(jnp.float32)
        return super().encode(params, {**batch, "image": seen}, key)


@pytest.mark.parametrize(("rows", "made"), [(None, 16), (4, 12), (6, 14), (0, 8)])
def test_codes_of_noise_are_made_for_the_part_with_all_forget_rows(rows, made):
    batch = make_batch(8, forget=4)
    batch["is_forget"] = ~batch["is_forget"] if rows != 0 else jnp.zeros(8, bool)
    part = None if rows is None else lambda x: x[len(x) - rows :]
    Coded.made, objective = 0, objectives.build("l2_encoder", forget_part=part)
    terms = objective(Coded(), PARAMS, TARGET, batch, KEY)
    assert Coded.made == made
    if rows != 0:
        every = objectives.build("l2_encoder")(Coded(), PARAMS, TARGET, batch, KEY)
        np.testing.assert_array_equal(terms.forget[4:], every.forget[4:])
        np.testing.assert_array_equal(terms.retain[:4], every.retain[:4])
        code = np.asarray(i2i.noise_image(batch, KEY, "normal") > 0, "f4")
        moved = mse(encode(PARAMS, batch["image"] > 0, batch), encode(TARGET, code, batch))
        np.testing.assert_allclose(terms.forget[4:], -moved[4:], rtol=1e-5)


def test_a_model_without_a_tokenizer_is_refused():
    with pytest.raises(ValueError, match="Toy has no tokenizer"):
        run("tokenizer", batch_of())
