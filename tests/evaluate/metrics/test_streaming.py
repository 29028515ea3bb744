"""All metrics from one pass over images, against the same metrics computed from all features."""

import dataclasses
import threading

import jax
import numpy as np
import pytest
from scipy import linalg

from tests.evaluate.metrics.test_inception_score import by_definition
from unlearn_jax import sharding
from unlearn_jax.data import transforms
from unlearn_jax.evaluate.metrics import cosine, inception_score, kid, reference
from unlearn_jax.evaluate.metrics import streaming as statistics
from unlearn_jax.evaluate.metrics.streaming import Plan, Use
from unlearn_jax.evaluate.towers import extractor as towers
from unlearn_jax.evaluate.towers import features, preprocessing

N, BATCH = 42, 16
KINDS = towers.KINDS


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh()


@pytest.fixture(scope="module")
def small():
    return towers.small()


@pytest.fixture(scope="module")
def images():
    """Two sets in pairs, of sizes that must be resized."""
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 256, (N, 9, 8, 3), np.uint8).repeat(4, 1).repeat(5, 2)
    noise = rng.integers(-60, 60, reference.shape)
    return {
        "generated": np.clip(reference + noise, 0, 255).astype(np.uint8),
        "reference": reference,
    }


def items(images, positions, roles=("generated", "reference")):
    return [{"position": int(i)} | {role: images[role][i] for role in roles} for i in positions]


def plan_of(small, **changes):
    return Plan({"small": Use(small, KINDS)}, N, splits=3, block_size=10, **changes)


@pytest.fixture(scope="module")
def direct(small, images):
    """{role: features of all images}, without any of the streaming."""
    found = {}
    for role, pixels in images.items():
        prepared = np.stack([preprocessing.prepare(x, small.recipe) for x in pixels])
        outputs = jax.jit(small.tower.features)(
            small.params, jax.numpy.asarray(transforms.to_float(prepared))
        )
        found[role] = jax.tree.map(np.asarray, outputs)
    return found


@pytest.fixture(scope="module")
def measured(small, images, mesh):
    plan = plan_of(small)
    stream = items(images, statistics.order(plan))
    return statistics.measure(stream, plan, mesh, batch_size=BATCH, total=N)


def test_one_pass_gives_all_metrics(small, measured, direct):
    plan = plan_of(small)
    found = statistics.results(measured, plan, resamples=200)
    x, y = (np.float64(direct[role]["pool"]) for role in ("generated", "reference"))
    s, t = np.cov(x.T), np.cov(y.T)
    root = linalg.sqrtm(s @ t).real
    frechet = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(s + t - 2 * root)
    name = "cifar10_classifier_"
    assert found[name + "frechet"]["value"] == pytest.approx(frechet, rel=1e-4)
    assert (found[name + "frechet"]["n"], found[name + "frechet"]["n_reference"]) == (N, N)

    mixed = statistics.order(plan)
    a, b = (direct[role]["pool"][mixed] for role in ("generated", "reference"))
    blocks = [kid.mmd2(a[i : i + 10], b[i : i + 10], paired=True) for i in (0, 10, 20, 30)]
    assert found[name + "kernel"]["mean"] == pytest.approx(np.mean(blocks), rel=1e-3)

    mean, std = by_definition(np.float64(direct["generated"]["logits"]), 3)
    assert found[name + "score"]["mean"] == pytest.approx(mean, rel=1e-4)
    assert found[name + "score"]["std"] == pytest.approx(std, rel=1e-3)

    cosines = cosine.paired(x, y)
    np.testing.assert_allclose(measured.parts[name + "cosine"], cosines, rtol=1e-4)
    assert found[name + "cosine"]["mean"] == pytest.approx(cosines.mean(), rel=1e-5)
    low, high = (found[name + "cosine"][key] for key in ("ci_low", "ci_high"))
    assert low < cosines.mean() < high
    about = statistics.provenance(plan)
    assert about.keys() == found.keys()
    assert about[name + "score"]["preprocessing"] == small.recipe


def test_a_set_compared_with_itself(small, images, mesh):
    plan = plan_of(small)
    same = {"generated": images["reference"], "reference": images["reference"]}
    stream = items(same, statistics.order(plan))
    found = statistics.results(
        statistics.measure(stream, plan, mesh, batch_size=BATCH), plan, resamples=50
    )
    assert found["cifar10_classifier_frechet"]["value"] < 1e-9
    assert found["cifar10_classifier_kernel"]["mean"] == pytest.approx(0, abs=1e-12)
    assert found["cifar10_classifier_cosine"]["mean"] == pytest.approx(1, rel=1e-12)


def same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, dict(a.parts), dict(b.parts))
    np.testing.assert_array_equal(a.seen, b.seen)


def test_cut_saved_and_resumed_is_the_same_bit_for_bit(small, images, mesh, measured, tmp_path):
    plan = plan_of(small)
    stream = items(images, statistics.order(plan))
    first = statistics.measure(stream[:BATCH], plan, mesh, batch_size=BATCH)
    statistics.save(tmp_path / "s.npz", first, plan)
    loaded = statistics.load(tmp_path / "s.npz", plan)
    same_bits(first, loaded)
    rest = statistics.measure(stream[BATCH:], plan, mesh, batch_size=BATCH, statistics=loaded)
    same_bits(rest, measured)
    with pytest.raises(ValueError, match="42 images were asked for, 26 have not been seen"):
        statistics.results(first, plan)
    with pytest.raises(ValueError, match=r"s.npz: statistics of other metrics, towers"):
        statistics.load(tmp_path / "s.npz", plan_of(small, seed=1))
    with pytest.raises(ValueError, match="Expected each image once"):
        statistics.measure(stream[:BATCH], plan, mesh, batch_size=BATCH, statistics=loaded)


def test_parts_merge(small, images, mesh, measured):
    plan = plan_of(small)
    stream = items(images, statistics.order(plan))
    parts = [
        statistics.measure(part, plan, mesh, batch_size=BATCH)
        for part in (stream[:13], stream[13:])
    ]
    merged = statistics.results(statistics.merge(*parts, plan), plan, resamples=50)
    whole = statistics.results(measured, plan, resamples=50)
    for name in ("frechet", "score", "cosine"):
        a, b = (found[f"cifar10_classifier_{name}"] for found in (merged, whole))
        for key in ("value", "mean", "std", "n"):
            assert a.get(key) == (b.get(key) if b.get(key) is None else pytest.approx(b[key]))
    # Other images share a block, so the estimate is another one of the same.
    assert merged["cifar10_classifier_kernel"]["blocks"] == 4
    with pytest.raises(ValueError, match="13 images are in both"):
        statistics.merge(parts[0], measured, plan)


def test_threads_and_devices_change_nothing(small, images, mesh):
    extractors = {"it/generated": small}
    stream = items(images, range(N), roles=("generated",))
    runs = []
    for threads, source in ((1, stream), (7, stream), (3, [lambda i=i: i for i in stream])):
        batches = features.extract(source, extractors, mesh, batch_size=BATCH, threads=threads)
        runs.append([(np.asarray(o["it/generated"]["pool"]), p.copy(), v) for o, p, v in batches])
    for run in runs[1:]:
        jax.tree.map(np.testing.assert_array_equal, run, runs[0])
    valid = np.concatenate([v for *_, v in runs[0]])
    positions = np.concatenate([p for _, p, _ in runs[0]])[valid]
    assert positions.tolist() == list(range(N)) and len(valid) == 48
    one = sharding.make_mesh(devices=jax.devices()[:1])
    (pool, *_), *_ = [
        (np.asarray(o["it/generated"]["pool"]), p)
        for o, p, _ in features.extract(stream, extractors, one, batch_size=BATCH)
    ]
    np.testing.assert_allclose(pool, runs[0][0][0], rtol=1e-4, atol=1e-5)


def test_functions_are_called_in_threads_and_errors_pass_through(small, images, mesh):
    names = set()

    def decode(i):
        names.add(threading.current_thread().name)
        if i == 30:
            raise OSError("image 30 is damaged")
        return {"position": i, "generated": images["generated"][i]}

    stream = [lambda i=i: decode(i) for i in range(N)]
    run = features.extract(stream, {"a/generated": small}, mesh, batch_size=BATCH)
    with pytest.raises(OSError, match="image 30 is damaged"):
        list(run)
    assert threading.main_thread().name not in names
    missing = items(images, range(3), roles=("reference",))
    with pytest.raises(ValueError, match="images 'generated' in every item, got one with"):
        list(features.extract(missing, {"a/generated": small}, mesh, batch_size=BATCH))
    with pytest.raises(ValueError, match="divisible by the 8 devices, got 12"):
        list(features.extract(missing, {"a/reference": small}, mesh, batch_size=12))


def test_each_image_is_prepared_as_its_own_recipe_says(small, images, mesh):
    wide = towers.extractor(
        small.tower, small.params, dict(small.recipe) | {"resize": 40, "crop": 32}, small.provenance
    )
    extractors = {"a/generated": small, "b/generated": wide, "b/reference": wide}
    ((outputs, *_),) = features.extract(items(images, range(8)), extractors, mesh, batch_size=8)
    for name, found in extractors.items():
        pixels = [preprocessing.prepare(x, found.recipe) for x in images[name[2:]][:8]]
        expected = small.tower.features(
            small.params, jax.numpy.asarray(transforms.to_float(np.stack(pixels)))
        )
        np.testing.assert_allclose(outputs[name]["pool"], expected["pool"], rtol=1e-3, atol=1e-4)


def test_norm_then_flip_compat_is_of_generated_images_only(small, images, mesh):
    use = Use(small, ("cosine",), norm_then_flip_compat=True)
    plan = Plan({"small": use}, 8)
    found = statistics.measure(items(images, range(8)), plan, mesh, batch_size=8)
    # What Li et al. do: a file with red and blue exchanged, normalised, and exchanged back.
    mean, std = (np.float32(small.recipe[k]) for k in ("mean", "std"))
    plain = dataclasses.replace(small.tower, mean=(0.5,) * 3, std=(0.5,) * 3)
    pools = []
    for role, exchanged in (("generated", True), ("reference", False)):
        pixels = np.stack([preprocessing.prepare(x, small.recipe) for x in images[role][:8]])
        x = pixels[..., ::-1] if exchanged else pixels
        x = (np.float32(x) / 255 - mean) / std
        x = x[..., ::-1] if exchanged else x
        pools.append(np.asarray(plain.features(small.params, jax.numpy.asarray(x))["pool"]))
    np.testing.assert_allclose(
        found.parts["cifar10_classifier_cosine"], cosine.paired(*pools), rtol=1e-4
    )


def test_blocks_need_their_order(small, images, mesh):
    plan = plan_of(small)
    with pytest.raises(ValueError, match="needs the images in `statistics.order"):
        statistics.measure(items(images, range(N)), plan, mesh, batch_size=BATCH)
    without = Plan({"small": Use(small, ("score",))}, N, splits=3)
    assert statistics.order(without).tolist() == list(range(N))
    some = statistics.measure(items(images, [5, 3]), without, mesh, batch_size=8)
    assert np.flatnonzero(some.seen).tolist() == [3, 5]
    with pytest.raises(ValueError, match=r"positions in 0..41, got \[42\]"):
        statistics.measure(
            [{"position": 42, "generated": images["generated"][0]}], without, mesh, batch_size=8
        )


def test_shuffled_splits(small, images, mesh):
    plan = Plan({"s": Use(small, ("score",))}, N, splits=3, is_split_order="shuffled", seed=4)
    found = statistics.measure(items(images, range(N)), plan, mesh, batch_size=BATCH)
    sums = found.parts["cifar10_classifier_score"]
    assert sums.n.tolist() == [14] * 3
    key = jax.random.fold_in(jax.random.key(4), 1)
    split = inception_score.assignment(N, 3, order="shuffled", key=key)
    assert split.tolist() != inception_score.assignment(N, 3).tolist()
    assert statistics.results(found, plan)["cifar10_classifier_score"]["split_order"] == "shuffled"


def test_plans_that_cannot_be_measured_are_refused(small):
    with pytest.raises(ValueError, match="each metric once, got .*cifar10_classifier_score"):
        Plan({"a": Use(small, ("score",)), "b": Use(small, ("score",))}, N)
    with pytest.raises(ValueError, match="got 'fid'"):
        Plan({"a": Use(small, ("fid",))}, N)


# The cache of references.


@pytest.fixture
def cache(small, images, mesh, tmp_path):
    """A function that makes a reference, and a list of the images it had to look at."""
    looked_at = []

    def make(pixels=images["reference"], extractor=small, order=None, **options):
        order = np.arange(len(pixels)) if order is None else order

        def stream():
            for i in range(len(order)):
                looked_at.append(i)
                yield {"position": i, "reference": pixels[order[i]]}

        hashes = [reference.image_hash(pixels[i]) for i in order]
        looked_at.clear()
        options = {"keep_features": True, "batch_size": BATCH} | options
        return reference.reference(tmp_path, hashes, stream(), extractor, mesh, **options)

    return make, looked_at, tmp_path


def test_a_reference_is_computed_once(cache, direct, small, images, mesh, measured):
    make, looked_at, folder = cache
    first = make()
    assert len(looked_at) == N and len(list(folder.iterdir())) == 1
    np.testing.assert_allclose(first.features, direct["reference"]["pool"], rtol=1e-3, atol=1e-4)
    second = make()
    assert not looked_at
    np.testing.assert_array_equal(first.features, second.features)
    np.testing.assert_array_equal(first.moments.comoment, second.moments.comoment)
    mixed = np.random.default_rng(0).permutation(N)
    third = make(order=mixed)
    assert not looked_at  # the same set
    np.testing.assert_array_equal(third.features, first.features[mixed])

    # And metrics with it are those of a stream that has the reference images.
    plan = Plan({"small": Use(small, KINDS, first)}, N, splits=3, block_size=10)
    stream = items(images, statistics.order(plan), roles=("generated",))
    found = statistics.measure(stream, plan, mesh, batch_size=BATCH)
    expected = statistics.results(measured, plan_of(small), resamples=50)
    for name, values in statistics.results(found, plan, resamples=50).items():
        for key in ("value", "mean", "std", "n"):
            if values.get(key) is not None:
                assert values[key] == pytest.approx(expected[name][key], rel=1e-5), name


def test_a_reference_is_never_stale(cache, small, images):
    make, looked_at, _ = cache
    make()
    changed = images["reference"].copy()
    changed[7, 0, 0, 0] ^= 1
    other_weights = dataclasses.replace(
        small,
        params=jax.tree.map(lambda x: x * 1.01, small.params),
        provenance=dict(small.provenance) | {"parameters_sha256": "other"},
    )
    other_recipe = dict(small.recipe) | {"filter": "bilinear"}
    for changes in (
        {"pixels": changed},
        {"pixels": images["reference"][:-1]},
        {"extractor": other_weights},
        {"extractor": dataclasses.replace(small, recipe=other_recipe)},
        {"treated": "center_crop"},
        {"keep_features": False},
    ):
        make(**changes)
        assert looked_at, changes
        make(**changes)
        assert not looked_at, changes


def test_another_format_is_another_reference(cache, monkeypatch):
    make, looked_at, _ = cache
    make()
    monkeypatch.setattr(reference, "FORMAT", reference.FORMAT + 1)
    make()
    assert looked_at


@pytest.mark.parametrize("damage", ["cut", "bit", "empty"])
def test_a_damaged_reference_is_made_again(cache, capsys, damage):
    make, looked_at, folder = cache
    first = make()
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    where = whole.index(np.float32(first.features[0, 3]).tobytes())
    flipped = whole[:where] + bytes([whole[where] ^ 1]) + whole[where + 1 :]
    path.write_bytes({"cut": whole[:-500], "bit": flipped, "empty": b""}[damage])
    capsys.readouterr()
    again = make()
    assert looked_at and "is damaged" in (err := capsys.readouterr().err)
    assert "It is computed again." in err
    np.testing.assert_array_equal(again.features, first.features)
    make()
    assert not looked_at


def test_a_reference_is_of_all_its_images(cache, small, images, mesh, tmp_path):
    hashes = [reference.image_hash(x) for x in images["reference"]]
    stream = items(images, range(5), roles=("reference",))
    with pytest.raises(ValueError, match="Expected 42 reference images, got 5"):
        reference.reference(tmp_path, hashes, stream, small, mesh, batch_size=8)
    with pytest.raises(ValueError, match=r"positions 0..4, each once"):
        reference.reference(tmp_path, hashes[:5], stream + stream, small, mesh, batch_size=16)
    assert not list(tmp_path.iterdir())
    moments_only = cache[0](keep_features=False)
    assert moments_only.features is None
    Plan({"a": Use(small, ("frechet",), moments_only)}, N)
    with pytest.raises(ValueError, match="features of all 42 reference images, got 0"):
        Plan({"a": Use(small, ("cosine",), moments_only)}, N)


def test_hashes_tell_images_apart():
    flat = np.zeros((2, 6, 3), np.uint8)
    assert reference.image_hash(flat) != reference.image_hash(flat.reshape(6, 2, 3))
    assert reference.image_hash(b"abc") == reference.image_hash(b"abc") != reference.image_hash(b"")
