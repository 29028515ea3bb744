"""What models have seen, and which of them can play a role in a request."""

import hashlib
import json

import numpy as np
import pytest

from tests.helpers.sets import CATS, RESERVE, SOURCE, make_source, resolve
from unlearn_jax.data import joining, lineage, splits

# Proxy data.


def with_proxy(source=SOURCE):
    return joining.concat(source, make_source({"train": [5, 7]}, ["fox", "elk"], "other", "x/"))


def test_the_data_set_of_a_manifest_is_that_of_the_base_data(tmp_path):
    """The fault: with proxy data another data set, so that every model was refused."""
    plain, source = resolve(), with_proxy()
    proxied = resolve(retain={"kind": "proxy"}, source=source)
    assert proxied.manifest["dataset"] == plain.manifest["dataset"]
    ids = [f"proxy/{id}" for id in make_source({"train": [5, 7]}, ["fox", "elk"], "o", "x/").ids]
    content = json.dumps([ids, source.labels[128:].tolist()], separators=(",", ":")).encode()
    assert proxied.manifest["proxy"] == {
        "name": "other", "n": 12, "fingerprint": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
    assert proxied.manifest["hash"] != plain.manifest["hash"]
    for name in ("train", "forget", "calibration", "audit"):
        np.testing.assert_array_equal(getattr(proxied, name), getattr(plain, name))
    splits.save(plain, tmp_path / "split.json")
    lineage.check_model(proxied, tmp_path)  # the original was trained without it
    lineage.check_model(proxied, tmp_path, "retrained")
    with pytest.raises(ValueError, match="is not the split of this config's request"):
        lineage.check_model(proxied, tmp_path, "reference")  # of other retain rows
    with pytest.raises(ValueError, match="is not the split of this config's request"):
        lineage.check_model(proxied, tmp_path, "unlearned")
    splits.save(proxied, tmp_path / "split.json")
    lineage.check_model(plain, tmp_path)
    lineage.check_model(proxied, tmp_path, "unlearned")
    again = splits.load(tmp_path / "split.json", source)
    np.testing.assert_array_equal(again.retain, proxied.retain)


def test_an_empty_proxy_is_named():
    source = joining.concat(SOURCE, make_source({"train": [3]}, ["cat"], "other", "x/"))
    with pytest.raises(ValueError, match="retain set is empty: there is no proxy dataset, or only"):
        resolve(retain={"kind": "proxy"}, source=source)


# Models for a request.


def test_a_model_from_elsewhere_may_have_seen_a_reserved_holdout(tmp_path):
    lineage.check_model(resolve(), tmp_path)
    lineage.check_model(resolve(holdout={"split": "none"}), tmp_path)
    reserved = resolve(holdout=RESERVE)
    with pytest.raises(ValueError, match="holdout.split: the model in .* is from elsewhere, and "):
        lineage.check_model(reserved, tmp_path)


def test_a_model_must_have_seen_the_forget_set_and_not_the_holdout(tmp_path):
    splits.save(resolve(holdout=RESERVE), tmp_path / "split.json")
    lineage.check_model(
        resolve({"kind": "classes", "classes": ("dog",)}, holdout=RESERVE), tmp_path
    )
    larger = {"split": "", "fraction": 0.4}
    with pytest.raises(ValueError, match="was trained on .* holdout examples"):
        lineage.check_model(resolve(holdout=larger), tmp_path)
    with pytest.raises(ValueError, match="never trained on .* examples it should forget"):
        lineage.check_model(resolve(), tmp_path)
    with pytest.raises(ValueError, match="is not the split of this config's request"):
        lineage.check_model(
            resolve(CATS | {"per_class": 3}, holdout=RESERVE), tmp_path, "retrained"
        )
    other = make_source(name="others")
    with pytest.raises(ValueError, match="of the dataset arrays, the request of others"):
        lineage.check_model(resolve(holdout=RESERVE, source=other), tmp_path)
