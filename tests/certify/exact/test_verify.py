"""The chain of a deletion: verified by replay, and refused once anything is not as it was."""

import json
import shutil

import numpy as np
import pytest

from tests.helpers import sliced
from unlearn_jax import checkpoint, files, train
from unlearn_jax.certify.exact import chain, delete
from unlearn_jax.certify.exact.verify import verify
from unlearn_jax.config import identity
from unlearn_jax.data import lineage, splits
from unlearn_jax.registry import UserError


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with an original, and a model without two images of slice 2."""
    root = tmp_path_factory.mktemp("exact")
    train.run(sliced.get_config(), root / "original")
    listed = sliced.write_list(root / "ids.txt", sliced.ids_of(sliced.get_config(), 2, 2))
    cfg = delete.config_of(root / "original", listed)
    delete.delete(cfg, root / "original", root / "deleted")
    return root


@pytest.fixture
def copy(runs, tmp_path):
    """The deleted model, to tamper with; the original is beside it."""
    shutil.copytree(runs / "original", tmp_path / "original")
    return shutil.copytree(runs / "deleted", tmp_path / "deleted")


@pytest.mark.long
def test_every_segment_is_computed_again(runs):
    lines = verify(runs / "deleted", "all")
    assert sum("the same bits" in line for line in lines) == 5
    assert any("198 images" in line for line in lines)


@pytest.mark.full
def test_a_deleted_model_is_verified_without_the_original_and_the_images(runs, tmp_path):
    """As arrays, of which the deleted images are gone."""
    from unlearn_jax.data import open_data

    cfg = sliced.get_config()
    source, _ = open_data(cfg)
    gone = set(sliced.ids_of(cfg, 2, 2))
    split = np.repeat(["train", "test"], [len(source.splits[x]) for x in ("train", "test")])

    def write(rows):
        np.savez(
            tmp_path / "data.npz", image=source.fetch(rows), label=source.labels[rows],
            id=np.array(source.ids)[rows], split=split[rows],
        )  # fmt: skip

    everything = np.arange(len(source))
    write(everything)
    cfg.data.update({"kind": "arrays", "path": str(tmp_path / "data.npz"), "train_rows": 0})
    cfg.request.remember = False
    train.run(cfg, tmp_path / "original")
    listed = sliced.write_list(tmp_path / "ids.txt", gone)
    again = delete.config_of(tmp_path / "original", listed)
    delete.delete(again, tmp_path / "original", tmp_path / "deleted")
    write(np.array([row for row in everything if source.ids[row] not in gone]))
    shutil.rmtree(tmp_path / "original")
    assert "the same bits" in verify(tmp_path / "deleted", "1")[2]


# ---- sabotage: each is a function of the folder of the deleted model


def reseal(workdir, **changes):
    """Write a chain with other values, all links made anew: it fits together."""
    values = chain.read(workdir) | changes
    values["links"] = []
    for s in range(len(values["slices"])):
        values["links"].append(chain.link(values, s))
    files.write_sealed(workdir / chain.FILE, values, chain.FORMAT)


def edited(workdir, key, s, value):
    of = list(chain.read(workdir)[key])
    of[s] = value
    reseal(workdir, **{key: of})


def a_byte_of_the_chain(workdir):
    path = workdir / chain.FILE
    path.write_text(path.read_text().replace('"n": ', '"n":  ', 1))


def no_chain(workdir):
    (workdir / chain.FILE).unlink()


def another_record(workdir):
    files.write_sealed(workdir / chain.FILE, chain.read(workdir), "unlearn_jax.receipt.v1")


def a_state_but_no_link(workdir):
    values = chain.read(workdir)
    values["states"][1]["params"] = "0" * 64
    files.write_sealed(workdir / chain.FILE, values, chain.FORMAT)


def a_state(workdir):
    edited(workdir, "states", 1, {"params": "0" * 64, "opt": "0" * 64})


def the_last_state(workdir):
    edited(workdir, "states", -1, chain.read(workdir)["states"][0])


def the_optimizer_of_a_state(workdir):
    state = chain.read(workdir)["states"][2]
    edited(workdir, "states", 2, state | {"opt": "0" * 64})


def the_order_of_slices(workdir):
    values = chain.read(workdir)["slices"]
    reseal(workdir, slices=[values[1], values[0], *values[2:]])


def the_number_of_images(workdir):
    of = chain.read(workdir)["slices"][2]
    edited(workdir, "slices", 2, of | {"n": of["n"] + 2})


def the_images_of_a_slice(workdir):
    """The chain says that the images are in it, as that of the original does."""
    reseal(workdir, slices=chain.read(workdir.parent / "original")["slices"])


def a_step_skipped(workdir):
    edited(workdir, "entrances", 2, sliced.ENTRANCES[2] + 1)


def a_segment_dropped(workdir):
    values = {k: v[:-1] if isinstance(v, list) else v for k, v in chain.read(workdir).items()}
    files.write_sealed(workdir / chain.FILE, values, chain.FORMAT)


def nothing_computed_it(workdir):
    edited(workdir, "computed", 1, [])


def a_checkpoint_lost(workdir):
    shutil.rmtree(workdir / "slices/checkpoints/14")


def a_checkpoint_of_another_slice(workdir):
    shutil.rmtree(workdir / "slices/checkpoints/14")
    shutil.copytree(workdir / "slices/checkpoints/7", workdir / "slices/checkpoints/14")


def a_checkpoint_of_the_original(workdir):
    shutil.rmtree(workdir / "slices/checkpoints/20")
    shutil.copytree(workdir.parent / "original/slices/checkpoints/20",
                    workdir / "slices/checkpoints/20")  # fmt: skip


def a_damaged_checkpoint(workdir):
    path = max(
        (workdir / "slices/checkpoints/7/params").rglob("d/*"), key=lambda p: p.stat().st_size
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def the_model_of_the_original(workdir):
    shutil.rmtree(workdir / "checkpoints")
    shutil.copytree(workdir.parent / "original/checkpoints", workdir / "checkpoints")


def an_older_model(workdir):
    shutil.rmtree(workdir / "checkpoints/24")


def one_part_of_the_config(workdir):
    edit_json(workdir / "config.json", lambda of: of["config"].update(seed=5))


def the_seed(workdir):
    def change(of):
        of["config"]["seed"] = of["relevant"]["seed"] = 5

    edit_json(workdir / "config.json", change)


def an_image_put_back_in_the_split(workdir):
    put_back(workdir)


def an_image_put_back_in_split_and_config(workdir):
    rows = put_back(workdir)
    edit_json(workdir / "config.json", lambda of: of["relevant"].update(rows=rows))


def another_split(workdir):
    shutil.copy(workdir.parent / "original/split.json", workdir / "split.json")


def edit_json(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def put_back(workdir):
    """Take an image out of the forget set of split.json; return the hash of what is trained on."""
    manifest = splits.load(workdir / "split.json").manifest
    manifest["sets"]["forget"] = manifest["sets"]["forget"][1:]
    manifest["hash"] = splits._hash(manifest)
    split = splits.of_manifest(manifest)
    splits.save(split, workdir / "split.json")
    return lineage.trained_on(split, split.remaining)


SABOTAGE = (
    a_byte_of_the_chain, another_record, a_state_but_no_link, a_state, the_last_state,
    the_optimizer_of_a_state, the_order_of_slices, the_number_of_images, the_images_of_a_slice,
    a_step_skipped, a_segment_dropped, nothing_computed_it, a_checkpoint_lost,
    a_checkpoint_of_another_slice, a_checkpoint_of_the_original, a_damaged_checkpoint,
    the_model_of_the_original, an_older_model, one_part_of_the_config, the_seed,
    an_image_put_back_in_the_split, an_image_put_back_in_split_and_config, another_split, no_chain,
)  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("sabotage", SABOTAGE, ids=lambda f: f.__name__)
def test_what_was_tampered_with_is_refused(copy, sabotage):
    sabotage(copy)
    with pytest.raises(UserError):
        verify(copy)


# ---- sabotage that fits together: only a replay tells


def trained_on_them_all_the_same(workdir):
    """Checkpoints and model of the original, under a chain that says what the deletion's says."""
    shutil.rmtree(workdir / "slices")
    shutil.copytree(workdir.parent / "original/slices", workdir / "slices")
    reseal(workdir, states=chain.read(workdir.parent / "original")["states"])
    as_the_end(workdir)


def fewer_steps(workdir):
    """The model is what it was a step before its end."""
    before = checkpoint.load_step(workdir, 22)
    replace_end(workdir, *before[:2])


def replace_end(workdir, params, opt):
    _, _, meta = checkpoint.load_step(workdir, 24)
    shutil.rmtree(workdir / "checkpoints/24")
    meta.pop("checksums")
    with checkpoint.open_manager(workdir) as manager:
        checkpoint.save(manager, params, opt, meta)
    edited(workdir, "states", -1, chain.state_hash(params, opt))


def as_the_end(workdir):
    """Let the model be that of the original, and say that it is of this run."""
    params, opt, meta = checkpoint.load_step(workdir.parent / "original", 24)
    of = checkpoint.run_of(identity.of_run(workdir)[1])
    shutil.rmtree(workdir / "checkpoints")
    meta.pop("checksums")
    with checkpoint.open_manager(workdir) as manager:
        checkpoint.save(manager, params, opt, meta | {"of": of})


@pytest.mark.long
@pytest.mark.parametrize(
    "sabotage", (trained_on_them_all_the_same, pytest.param(fewer_steps, marks=pytest.mark.full))
)
def test_what_fits_together_is_refused_by_its_replay(copy, sabotage, monkeypatch):
    sabotage(copy)
    monkeypatch.setattr(
        "unlearn_jax.certify.exact.verify._choose", lambda *_: [2, 3]
    )  # of the deletion
    with pytest.raises(UserError, match="a replay ends elsewhere"):
        verify(copy, "all")


@pytest.mark.full
def test_another_number_of_devices_is_told_and_no_proof(copy):
    """A chain that says that other devices computed it, of which one state is not what they say."""
    computed = chain.read(copy)["computed"]
    computed[3][0]["devices"] = 1
    reseal(copy, computed=computed)
    assert any("the same bits" in line for line in verify(copy, "all"))  # equal bits need no excuse
    params, opt, _ = checkpoint.load_step(copy, 24)
    moved = {"encoder": params["encoder"], "decoder": {"bias": params["decoder"]["bias"] + 1e-6}}
    replace_end(copy, moved, opt)
    with pytest.raises(UserError, match="not verified bit for bit") as told:
        verify(copy, "all")
    assert "tolerance" in str(told.value)
