"""The metrics against torch-fidelity, pytorch-fid and clean-fid, where those are installed.

They need a torchvision that fits the installed torch: pip install --no-deps torch-fidelity
pytorch-fid clean-fid torchvision.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError))
pytest.importorskip("torch_fidelity")
pytest.importorskip("pytorch_fid")
pytest.importorskip("cleanfid")

from cleanfid import fid as clean_fid
from cleanfid.resize import build_resizer
from PIL import Image
from pytorch_fid import fid_score
from torch_fidelity import metric_fid, metric_isc, metric_kid
from torchvision import transforms

from benchmarks import fid as benchmark
from tests.evaluate.metrics.test_fid import features, gathered
from tests.evaluate.towers.test_preprocessing import SHAPES, image
from unlearn_jax import sharding
from unlearn_jax.evaluate.metrics import fid, inception_score, kid
from unlearn_jax.evaluate.towers import preprocessing


@pytest.mark.parametrize("n", [500, 40])  # 64 features: of full rank, and not
def test_frechet_distance(n):
    x, y = np.float32(features(n, 64, 1)), np.float32(features(n, 64, 2, 1.1))
    found = fid.frechet_distance(gathered(x, 32), gathered(y, 32))
    a, b = ((z.mean(0), np.cov(z, rowvar=False)) for z in map(np.float64, (x, y)))
    assert found == pytest.approx(fid_score.calculate_frechet_distance(*a, *b), rel=1e-6)
    assert found == pytest.approx(clean_fid.frechet_distance(*a, *b), rel=1e-6)
    stats = [metric_fid.fid_features_to_statistics(torch.from_numpy(np.float64(z))) for z in (x, y)]
    theirs = metric_fid.fid_statistics_to_metric(*stats, False)["frechet_inception_distance"]
    assert found == pytest.approx(theirs, rel=1e-6)


def test_kernel_distance():
    x, y = np.float32(features(300, 64, 1)), np.float32(features(250, 64, 2, 1.1))
    options = {"kid_subsets": 20, "kid_subset_size": 100, "rng_seed": 2020, "verbose": False}
    theirs = metric_kid.kid_features_to_metric(*map(torch.from_numpy, (x, y)), **options)
    rng = np.random.RandomState(2020)
    rows = [(rng.choice(300, 100, False), rng.choice(250, 100, False)) for _ in range(20)]
    values = kid.subsets(x, y, *(np.stack(side) for side in zip(*rows, strict=True)))
    mean, std = (theirs[f"kernel_inception_distance_{k}"] for k in ("mean", "std"))
    assert values.mean() == pytest.approx(mean, rel=1e-4)
    assert values.std() == pytest.approx(std, rel=1e-3)
    np.random.seed(0)
    theirs = clean_fid.kernel_distance(y, x, num_subsets=20, max_subset_size=100)
    np.random.seed(0)  # it draws from its second set first
    rows = [
        (np.random.choice(300, 100, False), np.random.choice(250, 100, False)) for _ in range(20)
    ]
    values = kid.subsets(x, y, *(np.stack(side) for side in zip(*rows, strict=True)))
    assert values.mean() == pytest.approx(theirs, rel=1e-4)


def test_inception_score():
    logits = np.float32(3 * np.random.default_rng(0).standard_normal((500, 30)))
    theirs = metric_isc.isc_features_to_metric(torch.from_numpy(logits), 10, shuffle=False)
    split = inception_score.assignment(500)
    sums = inception_score.update(inception_score.empty(30), logits, split, np.ones(500, bool))
    found = inception_score.score(sums)
    assert found["mean"] == pytest.approx(theirs["inception_score_mean"], rel=1e-10)
    assert found["std"] == pytest.approx(theirs["inception_score_std"], rel=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_preprocessing_bit_by_bit(shape):
    pixels = image(shape)
    found = preprocessing.prepare(pixels, preprocessing.RECIPES["fid"])
    np.testing.assert_array_equal(found, build_resizer("clean")(pixels))
    as_pil, recipes = transforms.functional.to_pil_image(pixels), preprocessing.RECIPES
    bicubic = transforms.InterpolationMode.BICUBIC
    for use, steps in {
        "places365": [transforms.Resize((256, 256)), transforms.CenterCrop(224)],
        "inception_score": [transforms.Resize((256, 256))],
        "clip": [transforms.Resize(224, bicubic), transforms.CenterCrop(224)],
    }.items():
        expected = np.asarray(transforms.Compose(steps)(as_pil))
        np.testing.assert_array_equal(preprocessing.prepare(pixels, recipes[use]), expected)


def test_fid_of_files(tmp_path):
    """The whole chain at full width, random weights, of images that need no resizing."""
    extractor, mesh = benchmark.random_extractor(), sharding.make_mesh()
    bright, dark = tmp_path / "bright", tmp_path / "dark"
    bright.mkdir()
    dark.mkdir()
    for path in benchmark.write_images(bright, 16, side=299, kind="png"):
        Image.fromarray(np.asarray(Image.open(path)) // 2).save(dark / path.name)
    ours = [
        benchmark.our_moments(sorted(folder.iterdir()), extractor, mesh, 8)
        for folder in (bright, dark)
    ]
    statistics = benchmark.torch_fidelity_statistics(extractor, tmp_path, 8)
    theirs = metric_fid.fid_statistics_to_metric(statistics(bright), statistics(dark), False)
    found = fid.frechet_distance(*ours)
    assert found == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert found > 1
