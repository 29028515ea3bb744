import numpy as np
import pytest
from PIL import Image

from unlearn_jax.evaluate.metrics import tsne

NAMES = ["original, retain", "original, forget", "unlearned, retain", "unlearned, forget"]


def groups(n=60, d=12):
    """Three groups around one point, the fourth around another."""
    rng = np.random.default_rng(0)
    centres = [0.0, 0.0, 0.0, 3.0]
    return {name: rng.standard_normal((n, d)) + c for name, c in zip(NAMES, centres, strict=True)}


@pytest.fixture(scope="module")
def points():
    return tsne.embed(groups(), every=4, perplexity=10, seed=1)


def test_neighbours_stay_neighbours(points):
    assert {name: xy.shape for name, xy in points.items()} == {name: (15, 2) for name in NAMES}
    xy = np.concatenate(list(points.values()))
    apart = np.repeat([0, 1], [45, 15])
    distance = np.linalg.norm(xy[:, None] - xy, axis=-1) + np.diag([np.inf] * 60)
    nearest = np.argsort(distance, axis=1)[:, :5]
    assert (apart[nearest] == apart[:, None]).mean() > 0.95


def test_the_seed_decides_and_every_nth_row_is_taken(points):
    again = tsne.embed(groups(), every=4, perplexity=10, seed=1)
    for name, xy in points.items():
        np.testing.assert_array_equal(xy, again[name])
    sparse = {name: rows[::4] for name, rows in groups().items()}
    same = tsne.embed(sparse, every=1, perplexity=10, seed=1)
    np.testing.assert_array_equal(same[NAMES[0]], points[NAMES[0]])
    other = tsne.embed(groups(), every=4, perplexity=10, seed=2)
    assert not np.allclose(other[NAMES[0]], points[NAMES[0]])


def test_pictures(points, tmp_path):
    for name in ("a/plot.svg", "a/again.svg", "plot.png"):
        tsne.plot(points, tmp_path / name, title="CLIP")
    svg = (tmp_path / "a/plot.svg").read_bytes()
    assert svg == (tmp_path / "a/again.svg").read_bytes()
    assert svg.count(b"<use") > 60 and b"CLIP" in svg
    with Image.open(tmp_path / "plot.png") as image:
        colours = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 4
    assert {f.name for f in tmp_path.rglob("*.*")} == {"plot.svg", "again.svg", "plot.png"}


def test_what_cannot_be_drawn_is_refused(points, tmp_path):
    with pytest.raises(ValueError, match=r"more points than the perplexity 20, got 8 \(every 30th"):
        tsne.embed(groups(), every=30)
    with pytest.raises(ValueError, match="every >= 1, got 0"):
        tsne.embed(groups(), every=0)
    with pytest.raises(ValueError, match="finite"):
        tsne.embed({"a": np.full((30, 3), np.nan)}, every=1)
    with pytest.raises(ValueError, match=r"ending in .png or .svg, got .*plot.pdf"):
        tsne.plot(points, tmp_path / "plot.pdf")
