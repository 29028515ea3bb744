"""Prepared records that were changed afterwards."""

import json

import numpy as np
import pytest

from tests.helpers.files import WNIDS, imagenet, jpeg, opened, put, run
from unlearn_jax.data import index, records
from unlearn_jax.files import file_digest


@pytest.fixture
def prepared(tmp_path):
    imagenet(tmp_path / "raw")
    run(tmp_path / "raw", tmp_path / "out")
    return tmp_path / "out"


def edit_manifest(out, rehash=False, **changes):
    manifest = json.loads((out / "manifest.json").read_text()) | changes
    if rehash:
        manifest["hash"] = records.digest({k: v for k, v in manifest.items() if k != "hash"})
    (out / "manifest.json").write_text(json.dumps(manifest))


def test_a_changed_manifest_is_noticed(prepared):
    edit_manifest(prepared, class_names=["a", "b", "c"])
    with pytest.raises(ValueError, match="manifest was changed after it was written"):
        opened(prepared)
    edit_manifest(prepared, rehash=True, format="v0")
    with pytest.raises(ValueError, match="expected format unlearn_jax.records.v1, got 'v0'"):
        opened(prepared)
    for text in ("{", "[]", ""):
        (prepared / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match="python -m unlearn_jax.prepare"):
            opened(prepared)
    with pytest.raises(ValueError, match="expected a folder with prepared records"):
        opened(prepared / "nowhere")


def test_a_changed_index_is_noticed(prepared):
    found = index.read(prepared / "index.gz")
    index.write(prepared / "index.gz", found._replace(labels=found.labels[::-1].copy()))
    with pytest.raises(ValueError, match="not the index of this manifest"):
        opened(prepared)
    short = index.Index(found.ids[1:], found.labels[1:], found.sizes[1:])
    index.write(prepared / "index.gz", short)
    edit_manifest(prepared, rehash=True, index=file_digest(prepared / "index.gz"))
    with pytest.raises(ValueError, match="expected 18 images as in manifest.json, got 17"):
        opened(prepared)
    (prepared / "index.gz").unlink()
    with pytest.raises(ValueError, match="missing, or not the index"):
        opened(prepared)


def test_changed_shards_are_noticed(prepared):
    shards = sorted(prepared.glob("train*"))
    first = shards[0].read_bytes()
    shards[0].write_bytes(first[:-1])
    with pytest.raises(ValueError, match=rf"{shards[0].name} has {len(first) - 1} bytes, not"):
        opened(prepared)
    middle = bytearray(first)
    at = first.index(b"train/n01440764/n01440764_2.JPEG") + 200
    middle[at : at + 8] = bytes(255 - b for b in middle[at : at + 8])
    shards[0].write_bytes(middle)
    source = opened(prepared)
    source.fetch(np.array([0, 1, 3, 5]))
    with pytest.raises(ValueError, match="the record of train/n01440764/n01440764_2.JPEG is dam"):
        source.fetch(np.array([1, 2]))
    manifest = records.read_manifest(prepared)["splits"]["train"]["shards"]
    with pytest.raises(ValueError, match=f"1 shards are not .*\n.*{shards[0].name} has another"):
        records.check_shards(prepared, manifest, contents=True)
    shards[0].unlink()
    shards[1].rename(shards[0])
    with pytest.raises(ValueError, match=f"{shards[1].name} is missing"):
        opened(prepared)


def test_exchanged_shards_are_noticed(tmp_path):
    for wnid in WNIDS:
        for i in range(5):
            put(tmp_path / "raw" / "train" / wnid / f"{wnid}_{i}.JPEG", jpeg(7))
    run(tmp_path / "raw", tmp_path / "out")
    a, b, _ = sorted((tmp_path / "out").glob("train*"))
    assert a.stat().st_size == b.stat().st_size
    a.rename(tmp_path / "other")
    b.rename(a)
    (tmp_path / "other").rename(b)
    source = opened(tmp_path / "out", splits=("train",))
    with pytest.raises(ValueError, match="expected the record of train/n01440764/n01440764_0.JPEG"):
        source.fetch(np.arange(1))
    with pytest.raises(ValueError, match="2 shards are not as manifest.json"):
        shards = records.read_manifest(tmp_path / "out")["splits"]["train"]["shards"]
        records.check_shards(tmp_path / "out", shards, contents=True)


def test_missing_splits_say_what_is_there(prepared):
    with pytest.raises(ValueError, match=r"\('train', 'test'\), each once; found .*'validation'"):
        opened(prepared, splits=("train", "test"))
