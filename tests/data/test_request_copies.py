"""Copies of what is to be forgotten, in sets counted by hand."""

import numpy as np
import pytest
from PIL import Image

from tests.helpers.sets import CATS, NAMES, RESERVE, SOURCE, TEST, ids_file, resolve
from unlearn_jax import config
from unlearn_jax.data import copies, holdout, joining, sources, splits

# Copies.


def copied(tmp_path, copy, of="train/cat/3.png"):
    """Random images, of which one is the very picture of another, and their hashes."""
    rows = [SOURCE.ids.index(id) for id in (copy, of)]
    images = np.random.default_rng(0).integers(0, 256, (len(SOURCE), 8, 8, 3), np.uint8)
    images[rows[0]] = images[rows[1]]
    source = sources.from_arrays(
        images, SOURCE.labels, ids=SOURCE.ids, split=["train"] * 100 + ["test"] * 28,
        class_names=NAMES,
    )  # fmt: skip
    return source, copies.hash_source(source), rows[0]


ELSEWHERE = ("train/dog/5.png", "train/cat/30.png", "test/cat/2.png", "test/owl/1.png")
THREE = "train/cat/3.png\ntrain/cat/4.png\ntrain/owl/3.png"


@pytest.mark.parametrize("copy", ELSEWHERE)
def test_pixel_identical_images_elsewhere_are_refused_forgotten_or_kept(tmp_path, copy):
    source, hashes, row = copied(tmp_path, copy)
    request = ids_file(tmp_path, THREE)
    options = {"source": source, "hashes": hashes, "holdout": TEST}
    message = (
        f"request.copies: 1 images that are .*\n  '{copy}' has the pixels of 'train/cat/3.png'"
    )
    with pytest.raises(ValueError, match=message):
        resolve(request | {"copies": "refuse"}, **options)
    for kept in (resolve(request | {"copies": "keep"}, **options), resolve(request, **options)):
        assert kept.manifest["copies"] == {
            "policy": "keep", "exact": 1, "pairs": [["train/cat/3.png", copy]], "confirmed": 0,
        }  # fmt: skip
        assert len(kept.forget) == 3 and (row in kept.retain) == copy.startswith("train")
        assert "their copies" not in splits.describe(kept)
    split = resolve(request | {"copies": "forget"}, **options)
    for name in ("retain", "calibration", "audit"):
        assert row not in getattr(split, name)
    assert row not in split.remaining
    assert (row in split.forget) == copy.startswith("train")
    assert len(split.forget) == 3 + copy.startswith("train")
    assert split.manifest["copies"]["policy"] == "forget"
    assert splits.describe(split).endswith("the ids listed in forget.txt, and their copies.")
    assert split.manifest["hash"] != kept.manifest["hash"]


def test_copies_inside_the_forget_set_are_none(tmp_path):
    source, hashes, row = copied(tmp_path, "train/cat/4.png")
    request = ids_file(tmp_path, THREE) | {"copies": "refuse"}
    split = resolve(request, source=source, hashes=hashes)
    assert split.manifest["copies"] == {"policy": "refuse", "exact": 0, "pairs": [], "confirmed": 0}
    assert row in split.forget and len(split.forget) == 3


def test_copies_among_proxies_and_the_reserved_pool(tmp_path):
    calibration, audit, _ = holdout.draw(SOURCE, RESERVE)
    pool = {*calibration.tolist(), *audit.tolist()}
    forget = [row for row in range(100) if row not in pool][:4]
    request = ids_file(tmp_path, "\n".join(SOURCE.ids[row] for row in forget))
    for part in (calibration, audit):
        held = int(part[SOURCE.labels[part] == SOURCE.labels[forget[0]]][0])
        source, hashes, row = copied(tmp_path, SOURCE.ids[held], SOURCE.ids[forget[0]])
        options = {"source": source, "hashes": hashes, "holdout": RESERVE}
        with pytest.raises(ValueError, match="request.copies: 1 images"):
            resolve(request | {"copies": "refuse"}, **options)
        split = resolve(request | {"copies": "forget"}, **options)
        assert split.forget.tolist() == forget
        assert row == held and not any(row in getattr(split, name) for name in splits.SETS)
    # A copy among the proxies, too.
    base, hashes, _ = copied(tmp_path, "train/dog/5.png", "train/dog/5.png")
    picture = base.fetch(np.array([forget[0]]))
    other = np.random.default_rng(9).integers(0, 256, (2, 8, 8, 3), np.uint8)
    proxy = sources.from_arrays(
        np.concatenate([other, picture]), np.array([0, 0, 0]), class_names=["fox"], name="other"
    )
    source = joining.concat(base, proxy)
    options = {"source": source, "hashes": copies.hash_source(source), "retain": {"kind": "proxy"}}
    with pytest.raises(ValueError, match="'proxy/train_2' has the pixels of"):
        resolve(request | {"copies": "refuse"}, **options)
    split = resolve(request | {"copies": "forget"}, **options)
    assert split.retain.tolist() == [128, 129] and split.forget.tolist() == forget


def test_links_and_files_of_the_same_picture_are_copies(tmp_path):
    rng = np.random.default_rng(4)
    root = tmp_path / "photos"
    for split, n in (("train", 4), ("test", 3)):
        for name in NAMES[:2]:
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                picture = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
                picture.save(root / split / name / f"{i}.png")
    request = ids_file(tmp_path, f"{root}/train/cat/0.png")
    places = ("train/dog/link.png", "train/cat/link.webp", "test/cat/again.png", "test/dog/x.png")
    for k, place in enumerate(places):
        if place.endswith("link.png"):
            (root / place).symlink_to(root / "train" / "cat" / "0.png")
        else:  # another format of the same pixels
            Image.open(root / "train/cat/0.png").save(root / place, lossless=True)
        source = sources.open_source(kind="folder", path=str(root), image_size=8)
        options = {"source": source, "hashes": copies.hash_source(source)}
        with pytest.raises(
            ValueError, match=f"request.copies: {k + 1} images .*\n.*'{places[0]}'|"
        ):
            resolve(request | {"copies": "refuse"}, **options)
        split = resolve(request | {"copies": "forget"}, **options)
        forgotten = {source.ids[row] for row in split.forget}
        assert forgotten == {"train/cat/0.png"} | {p for p in places[: k + 1] if "train" in p}
        unseen = np.concatenate([split.calibration, split.audit])
        assert not {source.ids[row] for row in unseen} & set(places)
        assert split.manifest["copies"]["exact"] == k + 1
        kept = resolve(request | {"copies": "keep"}, **options)
        assert [source.ids[row] for row in kept.forget] == ["train/cat/0.png"]


def near_pair(tmp_path):
    """Pictures one of which is another one, a little brighter."""
    smooth = np.random.default_rng(3).integers(0, 256, (len(SOURCE), 4, 4, 3), np.uint8)
    images = np.stack([np.asarray(Image.fromarray(s).resize((32, 32))) for s in smooth])
    row, of = (SOURCE.ids.index(id) for id in ("train/dog/5.png", "train/cat/3.png"))
    images[row] = np.clip(images[of].astype(int) + 4, 0, 255)
    source = sources.from_arrays(
        images, SOURCE.labels, ids=SOURCE.ids, split=["train"] * 100 + ["test"] * 28,
        class_names=NAMES,
    )  # fmt: skip
    return source, copies.hash_source(source), row


def test_near_copies_change_nothing_until_a_list_confirms_them(tmp_path):
    source, hashes, row = near_pair(tmp_path)
    request = ids_file(tmp_path, THREE) | {"copies": "refuse"}
    options = {"source": source, "hashes": hashes}
    split = resolve(request, **options)
    assert ["train/cat/3.png", "train/dog/5.png"] in [near[:2] for near in split.manifest["near"]]
    assert len(split.forget) == 3 and row in split.retain
    plain = resolve(request, source=source)
    for name in splits.SETS:
        np.testing.assert_array_equal(getattr(split, name), getattr(plain, name))
    (tmp_path / "near.txt").write_text("train/dog/5.png\n")
    confirmed = resolve(request | {"near_copies": str(tmp_path / "near.txt")}, **options)
    assert set(confirmed.forget) == {*split.forget.tolist(), row} and row not in confirmed.retain
    assert confirmed.manifest["copies"]["confirmed"] == 1
    assert splits.describe(confirmed).endswith(", and their copies.")
    (tmp_path / "near.txt").write_text("train/dog/5.png\ntrain/dog/6.png\n")
    with pytest.raises(
        ValueError, match="request.near_copies: 'train/dog/6.png' were not found to"
    ):
        resolve(request | {"near_copies": str(tmp_path / "near.txt")}, **options)
    (tmp_path / "near.txt").write_text("train/dog/99.png\n")
    with pytest.raises(ValueError, match="request.near_copies: 1 of the 1 names"):
        resolve(request | {"near_copies": str(tmp_path / "near.txt")}, **options)
    with pytest.raises(ValueError, match="request.near_copies: nobody looked for copies"):
        resolve(request | {"near_copies": str(tmp_path / "near.txt")}, source=source)


def test_exact_copies_of_confirmed_near_copies_do_not_stay_unseen(tmp_path):
    source, _, row = near_pair(tmp_path)
    images = source.fetch(np.arange(len(source)))
    twin = SOURCE.ids.index("train/dog/6.png")
    images[twin] = images[row]
    source = sources.from_arrays(
        images, SOURCE.labels, ids=SOURCE.ids, split=["train"] * 100 + ["test"] * 28,
        class_names=NAMES,
    )  # fmt: skip
    (tmp_path / "near.txt").write_text("train/dog/5.png\n")
    request = ids_file(tmp_path, THREE) | {"near_copies": str(tmp_path / "near.txt")}
    options = {"source": source, "hashes": copies.hash_source(source)}
    with pytest.raises(ValueError, match="'train/dog/6.png' has the pixels of 'train/dog/5.png'"):
        resolve(request | {"copies": "refuse"}, **options)
    split = resolve(request | {"copies": "forget"}, **options)
    assert {row, twin} < set(split.forget) and split.manifest["copies"]["confirmed"] == 1
    kept = resolve(request | {"copies": "keep"}, **options)
    assert twin in kept.retain and row in kept.forget


def test_policies_and_their_defaults(tmp_path):
    source, hashes, _ = copied(tmp_path, "train/dog/5.png")
    with pytest.raises(ValueError, match="request.copies: expected one of .*Did you mean 'forget'"):
        resolve(CATS | {"copies": "forgt"}, source=source, hashes=hashes)
    assert config.default().request.copies == "refuse"
    assert resolve(CATS | {"copies": "refuse"}, source=source).manifest["copies"] is None


# Images that somebody asked for, although no model was trained on them.


def held_and_copy(tmp_path):
    """A request for an image of the reserved pool, with a copy of it in training, and another."""
    audit = holdout.draw(SOURCE, RESERVE)[1]
    pool = {*np.concatenate(holdout.draw(SOURCE, RESERVE)[:2]).tolist()}
    held = int(audit[SOURCE.labels[audit] == 0][0])
    trained = [row for row in range(100) if row not in pool and SOURCE.labels[row] < 2]
    source, hashes, copy = copied(tmp_path, SOURCE.ids[trained[0]], SOURCE.ids[held])
    request = ids_file(tmp_path, f"{SOURCE.ids[held]}\n{SOURCE.ids[trained[1]]}")
    return source, hashes, request, held, copy


def test_copies_of_images_that_were_held_out_count_too(tmp_path):
    source, hashes, request, held, copy = held_and_copy(tmp_path)
    options = {"source": source, "hashes": hashes, "holdout": RESERVE}
    with pytest.raises(ValueError, match="request.copies: 1 images"):
        resolve(request | {"copies": "refuse"}, **options)
    split = resolve(request | {"copies": "forget"}, **options)
    assert copy in split.forget and copy not in split.retain
    assert not any(held in getattr(split, name) for name in splits.SETS)
