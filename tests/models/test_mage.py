"""MAGE: names and sizes of the published model, numbers of an independent torch one, generation.

`golden/mage.npz` is made and checked by test_mage_torch.py.
"""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.models import test_vqgan as tokenizer
from tests.models.test_compositing import INPAINT, OUTPAINT
from tests.models.test_vqgan import (
    GOLDEN,
    close,
    directional,
    flat,
    make_batch,
    named_shapes,
)
from unlearn_jax.convert.mage import FAMILY
from unlearn_jax.models import mage_decoding
from unlearn_jax.models.compositing import token_mask
from unlearn_jax.models.mage import MAGE, PRESETS, TRAINABLE, UPSTREAM_TRAINABLE
from unlearn_jax.models.vqgan import VQGAN

SMALL = {
    "image_size": 16,
    "tokenizer": {k: v for k, v in tokenizer.SMALL.items() if k != "image_size"}
    | {"res_blocks": 1},
    "dim": 32,
    "depth": 2,
    "heads": 2,
    "decoder_dim": 24,
    "decoder_depth": 1,
    "decoder_heads": 3,
    "class_slots": 100,
    "num_iter": 5,
}
MODEL = MAGE(**SMALL)
DROPOUT = MAGE(**SMALL, token_dropout=0.25)
KEY = jax.random.key(7)
TOKENS = 64


@cache
def weights():
    with jax.ensure_compile_time_eval():  # also when a function that is being traced asks first
        return tokenizer.filled(FAMILY, MODEL)


@cache
def golden():
    with np.load(GOLDEN / "mage.npz") as file:
        return dict(file)


def draws(b=2):
    """All the randomness of the small model, from numpy."""
    rng = np.random.RandomState(3)
    codes, steps = MODEL.vqgan.codebook, MODEL.num_iter
    return {
        "mask_rate": jnp.float32(0.7),
        "mask_noise": jnp.array(rng.uniform(size=(b, TOKENS)), jnp.float32),
        "dropout_keep": jnp.array(rng.uniform(size=(b, TOKENS + 1, MODEL.dim)) < 0.75),
        "random_ids": jnp.array(rng.randint(0, codes, (b, TOKENS)), jnp.int32),
        "gumbel_sample": jnp.array(rng.gumbel(size=(steps, b, TOKENS, codes)), jnp.float32),
        "gumbel": jnp.array(rng.gumbel(size=(steps, b, TOKENS)), jnp.float32),
    }


def published():
    """{name: shape} of mage-vitb-1600.pth without its integer buffer, from its description."""
    found = {"vqgan." + name: shape for name, shape in tokenizer.published().items()}
    found |= {"cls_token": (1, 1, 768), "mask_token": (1, 1, 768)}
    tables = ("pos_embed", "decoder_pos_embed", "decoder_pos_embed_learned")
    found |= {name: (1, 257, 768) for name in tables}
    found["token_emb.word_embeddings.weight"] = (2025, 768)
    found["token_emb.position_embeddings.weight"] = (257, 768)
    found["mlm_layer.bias"] = (1, 1, 2025)

    def pair(name, *shape):
        found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]

    for name in ("token_emb.LayerNorm", "norm", "decoder_norm", "mlm_layer.ln"):
        pair(name, 768)
    for name in ("decoder_embed", "decoder_pred", "mlm_layer.fc"):
        pair(name, 768, 768)
    pair("patch_embed.proj", 768, 3, 16, 16)
    for stack, depth in (("blocks", 12), ("decoder_blocks", 8)):
        for i in range(depth):
            pair(f"{stack}.{i}.norm1", 768)
            pair(f"{stack}.{i}.norm2", 768)
            pair(f"{stack}.{i}.attn.qkv", 2304, 768)
            pair(f"{stack}.{i}.attn.proj", 768, 768)
            pair(f"{stack}.{i}.mlp.fc1", 3072, 768)
            pair(f"{stack}.{i}.mlp.fc2", 768, 3072)
    return found


@pytest.mark.long
def test_names_and_sizes_are_the_published_ones():
    model = MAGE(**PRESETS["ViT-B"])
    assert dict(named_shapes(FAMILY, model).values()) == published()
    buffers = FAMILY.buffers(model)
    (ids,) = buffers.values()
    assert list(buffers) == ["token_emb.position_ids"] and ids.dtype == np.int64
    np.testing.assert_array_equal(ids, np.arange(257)[None])
    assert all(re.fullmatch(FAMILY.dropped[0], name) for name in buffers)
    assert len(published()) + len(buffers) == 433
    shapes = jax.eval_shape(model.init, KEY)
    sizes = {part: sum(x.size for x in jax.tree.leaves(tree)) for part, tree in shapes.items()}
    assert sizes == {
        "encoder": 86_810_112,
        "decoder": 58_086_633,
        "vqgan": 54_515_587,
        "unused": 1_182_720 + 394_752,
    }
    assert sum(sizes.values()) == 200_989_804
    assert (model.class_id, model.mask_id, model.vocabulary) == (1100, 2024, 2025)
    assert model.encode.__doc__ and MAGE(**PRESETS["ViT-L"]).dim == 1024


@pytest.mark.long
@pytest.mark.parametrize(
    "model,fields",
    [
        (MAGE(**PRESETS["ViT-B"]), {}),
        (MAGE(**PRESETS["ViT-L"]), {}),
        (MODEL, {"heads": 2, "decoder_heads": 3, "num_iter": 5, "tokenizer": {"groups": 4}}),
    ],
)
def test_sizes_are_inferred_and_fields_win(model, fields):
    shapes = dict(named_shapes(FAMILY, model).values()) | {"token_emb.position_ids": (1, 257)}
    assert FAMILY.model(shapes, fields) == model
    assert FAMILY.model(shapes, {**fields, "temperature": 4.5}).temperature == 4.5


def test_a_checkpoint_of_something_else_is_refused():
    with pytest.raises(ValueError, match=r"expected a tensor 'vqgan.encoder.down.0"):
        FAMILY.model({"conv.weight": (3, 3)}, {})
    shapes = {"vqgan." + name: shape for name, shape in tokenizer.published().items()}
    with pytest.raises(ValueError, match=r"expected a tensor 'token_emb.word_embeddings"):
        FAMILY.model(shapes, {})


def test_what_is_trained_is_the_encoder_without_the_output_layer():
    leaves = flat(jax.eval_shape(MODEL.init, KEY))

    def trained(regexes):
        return {path for path in leaves if any(re.fullmatch(r, path) for r in regexes)}

    encoder = {path for path in leaves if path.startswith("encoder/")}
    words = "encoder/token_emb/word_embeddings/embedding"
    assert trained(MODEL.trainable) == trained(TRAINABLE) == encoder - {words}
    assert trained(UPSTREAM_TRAINABLE) == encoder


@jax.jit
def numbers(params):
    """(gradients of the sum of losses, everything else that is compared with torch)."""
    model = MAGE(**SMALL, token_dropout=0.25, remat=True)

    def total(params):
        functions = {
            "latent": model.encode,
            "logits": model.predict,
            "loss": model.loss,
            "noisy_loss": model.noisy_loss,
        }
        batch = make_batch() | {"is_forget": jnp.full(2, True)}
        found = {name: f(params, batch, KEY, draws=draws()) for name, f in functions.items()}
        return found["loss"].sum(), found

    return jax.grad(total, has_aux=True)(params)


@jax.jit
def everything(batch, given):
    """Of the model without dropout, in float32, with given draws."""
    latent = MODEL.encode(weights(), batch, KEY, draws=given)
    args = weights(), batch | {"is_forget": jnp.full(2, True)}, KEY
    ids = MODEL.vqgan.tokenize(weights()["vqgan"], (batch["image"] + 1) / 2)
    labels = MODEL._random_ids(ids, batch, KEY)
    return {
        "latent": latent,
        "output": MODEL.decode(weights(), latent, batch, KEY, draws=given),
        "ids": ids,
        "noisy_given": MODEL.noisy_loss(*args, draws={**given, "random_ids": labels}),
        **{f: getattr(MODEL, f)(*args, draws=given) for f in ("predict", "loss", "noisy_loss")},
    }


def given_masks(*rates):
    """With a rate for each image."""
    return {"mask_noise": draws()["mask_noise"], "mask_rate": jnp.float32(rates or [0.7, 0.7])}


@pytest.mark.long
def test_numbers_are_those_of_torch():
    grads, got = numbers(weights())
    want = golden()
    assert got["latent"].shape == (2, 1 + TOKENS // 2, 32)
    for name in got:
        close(got[name], want[name])
    got = directional(FAMILY, grads)
    close([got[name] for name in want["names"]], want["gradient"])
    # Everything else has no gradient: the tokenizer, and what no forward pass touches.
    assert not any(got[name] for name in set(got) - set(want["names"]))


@pytest.mark.long
def test_steps_and_images_are_those_of_torch():
    params, batch, given, want = weights(), make_batch(), draws(), golden()
    sampled, masked_again = jax.jit(MODEL.generation_step)(
        params, want["ids"], 1, given["gumbel_sample"][1], given["gumbel"][1]
    )
    np.testing.assert_array_equal(sampled, want["sampled"])
    np.testing.assert_array_equal(masked_again, want["masked_again"])
    twice = {name: jnp.concatenate([x, x]) for name, x in batch.items()}
    noise = {k: jnp.concatenate([given[k]] * 2, axis=1) for k in ("gumbel_sample", "gumbel")}
    got = generate_with(noise, {**twice, "index": jnp.arange(4)})
    close(got, jnp.concatenate([want["generated"]] * 2))


@pytest.mark.long
def test_decode_restores_masked_tokens_and_keeps_the_others():
    got = everything(make_batch(), given_masks())
    rank = np.argsort(np.argsort(draws()["mask_noise"], axis=1), axis=1)
    choice = got["predict"][:, 1:, : MODEL.vqgan.codebook].argmax(-1)
    ids = jnp.where(rank < np.ceil(0.7 * TOKENS), choice, got["ids"])
    close(got["output"], 2 * MODEL.vqgan.decode_tokens(weights()["vqgan"], ids) - 1)


def test_masks_follow_the_published_distribution():
    batch, keys = make_batch(), jax.random.split(KEY, 4000)
    drawn = jax.jit(jax.vmap(partial(MODEL.draw, batch)))(keys)
    rate, noise = drawn["mask_rate"], drawn["mask_noise"]
    assert rate.shape == (4000,) and noise.shape == (4000, 2, TOKENS)  # one rate for a batch
    assert rate.min() >= 0.5 and rate.max() <= 1
    assert abs(rate.mean() - 0.693602) < 0.006 and abs(rate.std() - 0.128588) < 0.004
    assert abs(jnp.median(rate) - 0.675670) < 0.009
    assert abs(noise.mean() - 0.5) < 2e-3 and len(np.unique(noise[:, 0, 0])) > 3900
    assert "dropout_keep" not in drawn
    keep = DROPOUT.draw(batch, KEY)["dropout_keep"]
    assert keep.shape == (2, TOKENS + 1, 32) and abs(keep.mean() - 0.75) < 0.03


@pytest.mark.long
def test_the_same_key_draws_the_same_and_given_draws_win():
    params, batch = weights(), make_batch()
    run = jax.jit(MODEL.encode)
    latent = run(params, batch, KEY)
    drawn = MODEL.draw(batch, KEY)
    drawn["mask_rate"] = jnp.full(2, drawn["mask_rate"])
    close(everything(batch, drawn)["latent"], latent)
    assert np.abs(run(params, batch, jax.random.key(8)) - latent).max() > 1e-2
    # The hole of the task is not looked at: masks are random.
    other = batch | {"mask": 1 - batch["mask"]}
    np.testing.assert_array_equal(run(params, other, KEY), latent)


@pytest.mark.long
def test_images_have_their_own_rates_if_given():
    got = everything(make_batch(), given_masks(0.6, 0.9))
    for row, rate in enumerate((0.6, 0.9)):
        same = everything(make_batch(), given_masks(rate, rate))
        for name in ("predict", "loss"):
            close(got[name][row], same[name][row])
    assert np.abs(got["loss"] - everything(make_batch(), given_masks())["loss"]).min() > 1e-4


@pytest.mark.long
def test_random_labels_have_the_moments_of_the_ids_of_valid_images():
    got = everything(make_batch(), given_masks())
    ids = np.where(np.arange(2 * TOKENS) % 2, 0, 31).reshape(2, TOKENS).astype(np.int32)
    ids[0, :5], ids[1] = 17, 3
    batch = make_batch() | {"valid": jnp.array([True, False])}
    noise = jax.random.normal(jax.random.split(KEY, 4)[3], ids.shape)
    mean, std = np.mean(ids[:1]), np.std(ids[:1], ddof=1)
    labels = jnp.round(jnp.clip(mean + std * noise, 0, 31)).astype(jnp.int32)
    assert labels.min() == 0 and labels.max() == 31
    # What is masked says nothing about the labels there.
    mask_noise = MODEL.draw(batch, KEY)["mask_noise"]
    assert abs(np.corrcoef(noise.ravel(), mask_noise.ravel())[0, 1]) < 0.3
    np.testing.assert_array_equal(MODEL._random_ids(jnp.array(ids), batch, KEY), labels)
    close(got["noisy_loss"], got["noisy_given"])
    assert np.abs(got["noisy_loss"] - got["loss"]).min() > 1e-3


@pytest.mark.long
def test_the_loss_of_the_tokenizer_trains_nothing_else():
    params, batch = weights(), make_batch()
    loss, grads = jax.jit(jax.value_and_grad(lambda p: MODEL.tokenizer_loss(p, batch, KEY).sum()))(
        params
    )
    close(loss, MODEL.vqgan.loss(params["vqgan"], batch, KEY).sum())
    with_gradient = {path.split("/")[0] for path, grad in flat(grads).items() if grad.any()}
    assert with_gradient == {"vqgan"}


@pytest.mark.parametrize("task,table", [("inpaint", INPAINT), ("outpaint", OUTPAINT)])
def test_steps_that_run_for_every_published_mask(task, table):
    want = {
        "inpaint": [1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 10],
        "outpaint": [5, 6, 8, 9, 10, 11, 12, 14, 15, 16, 17, 18, 19],
    }[task]
    first = mage_decoding.first_steps(20, 256)
    assert [20 - first[row[4]] for row in table.values()] == want
    assert first[0] == 20 and first[256] == 0


def test_lengths_of_the_published_schedule():
    want = "255 252 248 243 236 228 218 207 194 181 166 150 133 116 97 79 59 40 20 0"
    assert list(mage_decoding.lengths(20, 256)) == [int(number) for number in want.split()]


@pytest.mark.parametrize("unknown,want", [(100, [97, 79, 59, 40, 20, 1]), (36, [20, 1]), (9, [1])])
def test_how_many_are_masked_again(unknown, want):
    """With random logits in the transformer's place."""
    lengths = jnp.array(mage_decoding.lengths(20, 256))
    ids = jnp.arange(256)[None] % 50
    ids = jnp.where(jnp.arange(256) < unknown, 99, ids)
    got = []

    @jax.jit
    def one_step(ids, number):
        keys = jax.random.split(jax.random.fold_in(KEY, number), 3)
        logits = jax.random.normal(keys[0], (1, 256, 50))
        noise = jax.random.gumbel(keys[1], (1, 256, 50)), jax.random.gumbel(keys[2], (1, 256))
        return mage_decoding.step(logits, ids, 99, lengths[number], jnp.float32(0.1), *noise)

    before = ids
    for number in range(mage_decoding.first_steps(20, 256)[unknown], 20):
        sampled, ids = one_step(ids, number)
        got.append(int((ids == 99).sum()))
        np.testing.assert_array_equal(sampled[:, unknown:], before[:, unknown:])
    assert got == want and not (sampled == 99).any()


def test_a_step_by_hand():
    rng = np.random.RandomState(0)
    logits, sample = rng.normal(size=(2, 12, 5)), rng.gumbel(size=(2, 12, 5))
    noise = rng.gumbel(size=(2, 12))
    ids = rng.randint(0, 5, (2, 12))
    ids[0, :7], ids[1, 3] = 9, 9
    want = []
    for row in range(2):
        sampled, confidence = ids[row].copy(), np.full(12, np.log(1e20))
        for i in np.flatnonzero(ids[row] == 9):
            sampled[i] = np.argmax(logits[row, i] + sample[row, i])
            p = np.exp(logits[row, i]) / np.exp(logits[row, i]).sum()
            confidence[i] = np.log(p[sampled[i]])
        confidence += 1.5 * noise[row]
        k = max(1, min((ids[row] == 9).sum() - 1, 4))
        again = sampled.copy()
        again[np.argsort(confidence)[:k]] = 9
        want.append((sampled, again))
    args = (jnp.array(logits, jnp.float32), jnp.array(ids), 9, jnp.int32(4), jnp.float32(1.5))
    got = mage_decoding.step(*args, jnp.float32(sample), jnp.float32(noise))
    for ours, theirs in zip(got, zip(*want, strict=True), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@cache
def mixed_batch():
    """Four images that need different steps; the last one has no hole."""
    batch = make_batch(4)
    rows = np.zeros((4, 16, 16, 1), np.float32)
    for i, (lo, hi) in enumerate([(7, 8), (4, 10), (0, 16)]):
        rows[i, lo:hi, lo:hi] = 1
    return batch | {"mask": jnp.array(rows), "index": jnp.array([5, 3, 2**31 - 1, 0])}


AS_RELEASED = MAGE(**SMALL, composite_base="filled")
generate = jax.jit(AS_RELEASED.generate)


@jax.jit
def generate_with(given, batch):
    return AS_RELEASED.generate(weights(), batch, jax.random.key(99), draws=given)


@cache
def generated():
    return generate(weights(), mixed_batch(), KEY)


@pytest.mark.long
def test_images_are_generated_as_if_alone():
    """Four times the same image, with the same index, give what it is among others."""
    batch, run = mixed_batch(), generate
    steps = mage_decoding.first_steps(5, TOKENS)[token_mask(batch["mask"], 2).sum(1)]
    assert len(set(steps.tolist())) == 4  # or this would not show it
    for row in range(4):
        alone = {name: x[jnp.full(4, row)] for name, x in batch.items()}
        for image in run(weights(), alone, KEY):
            close(image, generated()[row])
    np.testing.assert_array_equal(generated()[3], batch["image"][3])  # nothing to do
    moved = run(weights(), {**batch, "index": jnp.array([6, 3, 7, 0])}, KEY)
    change = np.abs(moved - generated()).max((1, 2, 3))
    assert change[0] > 1e-2 and change[2] > 1e-2 and max(change[1], change[3]) < 1e-4


@pytest.mark.long
def test_generated_noise_is_the_one_that_can_be_given():
    batch = mixed_batch()
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, batch["index"])
    shapes = {"gumbel_sample": (TOKENS, 32), "gumbel": (TOKENS,)}
    steps = [mage_decoding.noise(keys, number, shapes) for number in range(5)]
    given = {name: jnp.stack([step[name] for step in steps]) for name in shapes}
    close(generate_with(given, batch), generated())
    for name in shapes:  # each one counts
        changed = generate_with({**given, name: given[name][::-1]}, batch)
        assert np.abs(changed - generated()).max() > 1e-2


def test_every_image_has_noise_of_its_own_or_all_the_same():
    batch = make_batch(3)

    def keys(model, **more):
        return jax.random.key_data(model._image_keys({**batch, **more}, KEY)).tolist()

    by_row = [jax.random.key_data(jax.random.fold_in(KEY, i)).tolist() for i in range(8)]
    assert keys(MODEL) == by_row[:3]
    assert keys(MODEL, index=jnp.array([5, 7, 5])) == [by_row[5], by_row[7], by_row[5]]
    same = keys(MAGE(**SMALL, compat_seeding=True), index=jnp.array([5, 7, 6]))
    assert same[0] == same[1] == same[2]


@pytest.mark.long
def test_hidden_pixels_are_not_looked_at_and_visible_ones_are_copied():
    batch = {name: jnp.stack([x[0], x[0]]) for name, x in make_batch().items()}
    hole = batch["mask"] == 1  # rows 4 to 9, columns 3 to 11
    batch["image"] = batch["image"].at[1].set(jnp.where(hole[1], 0.3, batch["image"][1]))
    model = MAGE(**SMALL, compat_seeding=True)
    one, two = jax.jit(model.generate)(weights(), batch, KEY)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one[13:], batch["image"][0, 13:])
    assert np.abs(one - batch["image"][0])[4:10, 3:12].mean() > 0.1


@pytest.mark.long
def test_eight_devices_give_the_same():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    shard = NamedSharding(mesh, PartitionSpec("data"))

    def eight(tree):
        copies = jax.tree.map(lambda x: jnp.concatenate([x] * (8 // len(x))), tree)
        return jax.device_put(copies, shard)

    @jax.jit
    def run(train, test):
        loss = MODEL.loss(weights(), train, KEY, draws=eight(given_masks()))
        return loss, AS_RELEASED.generate(weights(), test, KEY)

    loss, images = run(eight(make_batch()), eight(mixed_batch()))
    assert len(images.sharding.device_set) == 8
    close(loss, jnp.tile(everything(make_batch(), given_masks())["loss"], 4))
    close(images, jnp.tile(generated(), (2, 1, 1, 1)))


def test_bfloat16_computes_close_to_float32():
    call = {"draws": given_masks()}
    half = jax.jit(lambda: MAGE(**SMALL, dtype="bfloat16").predict(
        weights(), make_batch(), KEY, **call))()  # fmt: skip
    full = everything(make_batch(), given_masks())["predict"]
    assert half.dtype == jnp.float32 and not np.array_equal(half, full)
    close(half, full, 5e-2)


def test_same_tokenizer_same_hash():
    pairs = tuple(SMALL["tokenizer"].items())
    assert MAGE(**{**SMALL, "tokenizer": pairs}) == MODEL
    lists = SMALL["tokenizer"] | {"ch_mult": [1, 2], "commitment": 0.25}
    assert hash(MAGE(**{**SMALL, "tokenizer": lists})) == hash(MODEL)
    assert MODEL.vqgan == VQGAN(**{**tokenizer.SMALL, "res_blocks": 1})


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"depth": 0}, "depth must be positive, got 0"),
        ({"num_iter": 0}, "num_iter must be positive"),
        ({"heads": 3}, "dim must be divisible by heads=3, got 32"),
        ({"decoder_dim": 22, "decoder_heads": 2}, "must be divisible by 4"),
        ({"label_smoothing": 1.0}, "label_smoothing must be in [0, 1)"),
        ({"token_dropout": -0.1}, "token_dropout must be in [0, 1)"),
        ({"temperature": float("nan")}, "temperature must be finite"),
        ({"composite_base": "grey"}, "composite_base must be 'original' or 'filled', got 'grey'"),
        ({"dtype": "float64"}, "dtype must be one of"),
        ({"image_size": 2}, "gives one token of 2 pixels"),
        ({"image_size": 15}, "image_size must be divisible by 2"),
        ({"tokenizer": {"codes": 3}}, "got ['codes']"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MAGE(**{**SMALL, **fields})


def test_bad_draws_and_images():
    params, batch = weights(), make_batch()
    for function in (MODEL.loss, MODEL.generate):
        with pytest.raises(ValueError, match=re.escape("got ['noise']")):
            function(params, batch, KEY, draws={"noise": jnp.zeros(1)})
        with pytest.raises(ValueError, match=r"expects images \[b, 16, 16, 3\]"):
            function(params, make_batch(size=32), KEY)
