import json
import os
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import binaries
from unlearn_jax import checkpoint, files, sharding
from unlearn_jax.registry import DamagedError, UserError

KERNEL = np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32)  # too large to inline
PARAMS = {
    "encoder": {"kernel": jnp.asarray(KERNEL), "half": jnp.ones(3, jnp.bfloat16)},
    "decoder": {"bias": jnp.zeros(5)},
}


def state_at(step):
    params = jax.tree.map(lambda x: x + step, PARAMS)
    opt = {
        "step": jnp.int32(step),
        "key": jax.random.key(step),
        "opt_state": optax.adam(1.0).init(params),
    }
    return params, opt, {"step": step, "phase": 0, "done": False, "phases": []}


def like(_=None):
    params, opt, _ = state_at(0)
    sds = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)  # noqa: E731
    return jax.tree.map(sds, (params, opt))


def assert_equal(a, b):
    bits = lambda x: jax.random.key_data(x) if x.dtype == jax.random.key(0).dtype else x  # noqa: E731
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)), a, b)


@pytest.fixture
def workdir(tmp_path):
    """Checkpoints of steps 2, 4 and 6."""
    with checkpoint.open_manager(tmp_path, keep=3) as manager:
        for step in (2, 4, 6):
            checkpoint.save(manager, *state_at(step))
    return tmp_path


def restore(workdir):
    with checkpoint.open_manager(workdir, keep=3) as manager:
        return checkpoint.restore_latest(manager, like)


def test_round_trip_is_exact(workdir):
    params, opt, meta = restore(workdir)
    assert_equal((params, opt), state_at(6)[:2])
    assert meta["step"] == 6 and meta["phases"] == []


def test_saved_arrays_may_be_donated_at_once(tmp_path):
    increment = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    params = {"w": jnp.zeros((512, 512))}
    with checkpoint.open_manager(tmp_path, keep=9) as manager:
        for step in range(1, 6):
            params = increment(params)
            checkpoint.save(
                manager, params, {"step": jnp.int32(step)}, {"step": step, "done": True}
            )
            params = increment(params)
    shapes = {"w": jax.ShapeDtypeStruct((512, 512), jnp.float32, sharding=params["w"].sharding)}
    found, _ = checkpoint.load_params(tmp_path, shapes)  # verifies the checksum
    np.testing.assert_array_equal(found["w"], np.full((512, 512), 9.0))


def test_nothing_there(tmp_path):
    assert restore(tmp_path) is None
    with pytest.raises(ValueError, match="found no checkpoint"):
        checkpoint.load_params(tmp_path, like()[0])


def test_old_checkpoints_are_pruned(tmp_path):
    with checkpoint.open_manager(tmp_path, keep=2) as manager:
        for step in range(1, 6):
            checkpoint.save(manager, *state_at(step))
    steps = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert steps == ["4", "5"]


def flip(path):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(b ^ 0xFF for b in content[middle : middle + 8])
    path.write_bytes(content)


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


DAMAGE = {
    "bytes flipped": lambda d: flip(largest(d / "params")),
    "optimizer flipped": lambda d: flip(largest(d / "opt")),
    "truncated": lambda d: (f := largest(d / "params")).write_bytes(
        f.read_bytes()[: f.stat().st_size // 2]
    ),
    "data file deleted": lambda d: largest(d / "params").unlink(),
    "manifest deleted": lambda d: (d / "params" / "manifest.ocdbt").unlink(),
    "metadata truncated": lambda d: (d / "params" / "_METADATA").write_text("{"),
    "item deleted": lambda d: shutil.rmtree(d / "opt"),
    "meta altered": lambda d: (f := d / "meta" / "metadata").write_text(
        re.sub(r'"phase": 0', '"phase": 1', f.read_text())
    ),
    "meta cut": lambda d: (f := d / "meta" / "metadata").write_text(f.read_text()[:20]),
}


@pytest.mark.long
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_noticed_and_the_one_before_is_used(workdir, damage, capfd):
    DAMAGE[damage](workdir / "checkpoints" / "6")
    params, opt, meta = restore(workdir)
    assert meta["step"] == 4
    assert_equal((params, opt), state_at(4)[:2])
    assert re.search(r"checkpoints/6 is damaged .*damaged/6", capfd.readouterr().err)
    assert (workdir / "damaged" / "6").is_dir()  # set aside, not lost
    with checkpoint.open_manager(workdir, keep=3) as manager:  # and step 6 can be written again
        checkpoint.save(manager, *state_at(6))
    assert restore(workdir)[2]["step"] == 6


def test_all_damaged_is_an_error_not_a_fresh_start(workdir):
    for step in (2, 4, 6):
        DAMAGE["bytes flipped"](workdir / "checkpoints" / str(step))
    with pytest.raises(ValueError, match=r"Every checkpoint.*damaged.*\[6, 4, 2\]"):
        restore(workdir)


def test_an_unfinished_or_damaged_model_is_not_taken_as_parent(workdir):
    with pytest.raises(ValueError, match="has not finished .step 6."):
        checkpoint.load_params(workdir, like()[0])
    with checkpoint.open_manager(workdir) as manager:
        params, opt, meta = state_at(8)
        checkpoint.save(manager, params, opt, meta | {"done": True})
    assert_equal(checkpoint.load_params(workdir, like()[0])[0], params)
    DAMAGE["bytes flipped"](workdir / "checkpoints" / "8")
    with pytest.raises(ValueError, match="checkpoints/8 is damaged"):
        checkpoint.load_params(workdir, like()[0])


def test_mismatch_names_every_difference_and_keeps_the_checkpoint(workdir):
    wrong = like()[0]
    wrong["encoder"]["kernel"] = jax.ShapeDtypeStruct((64, 97), jnp.float32)
    wrong["encoder"]["extra"] = wrong["encoder"].pop("half")
    with checkpoint.open_manager(workdir, keep=3) as manager, pytest.raises(ValueError) as error:
        checkpoint.restore_latest(manager, lambda meta: (wrong, like()[1]))
    for line in (
        "encoder/extra: expected bfloat16[3], found nothing",
        "encoder/half: expected nothing, found bfloat16[3]",
        "encoder/kernel: expected float32[64, 97], found float32[64, 96]",
    ):
        assert line in str(error.value)
    assert "decoder" not in str(error.value)
    assert restore(workdir)[2]["step"] == 6


def test_checksums_see_single_bits_and_order_and_not_the_mesh():
    x = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    plain = checkpoint.checksums({"a": jnp.asarray(x)})["a"]
    for axes in (("data", "fsdp"), (None, "fsdp"), ("fsdp", "data")):
        mesh = sharding.make_mesh(data=2, fsdp=4)
        spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        assert checkpoint.checksums({"a": jax.device_put(x, spec)})["a"] == plain
    bits = x.view(np.uint32)
    seen = {plain}
    for bit in range(32):
        flipped = bits.copy()
        flipped[3, 5] ^= np.uint32(1 << bit)
        seen.add(checkpoint.checksums({"a": jnp.asarray(flipped.view(np.float32))})["a"])
    swapped = x.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    seen.add(checkpoint.checksums({"a": jnp.asarray(swapped)})["a"])
    assert len(seen) == 34
    assert set(checkpoint.checksums({"k": jax.random.key(1), "b": jnp.ones(2, bool)})) == {"k", "b"}


SPLIT = """
import jax, numpy as np
from unlearn_jax import checkpoint, sharding
from unlearn_jax.registry import UserError
tree = {str(i): np.ones((4 * (i % 3 + 1), 8), np.float32) for i in range(100)}
shardings = sharding.params_sharding(tree, sharding.make_mesh(fsdp=2, data=1), min_bytes=0)
for _ in range(20):
    checkpoint.checksums(jax.device_put(tree, shardings))
"""


def test_checksums_do_not_wait_for_each_other():
    """With two CPU devices in a process, programs in flight did, in six of eight runs."""
    environment = os.environ | {"PYTHONPATH": str(binaries.ROOT), "JAX_NUM_CPU_DEVICES": "2"}
    subprocess.run([sys.executable, "-c", SPLIT], env=environment, check=True, timeout=120)


def test_restores_onto_another_mesh(workdir):
    mesh = sharding.make_mesh(data=4, fsdp=2)
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data", "fsdp"))
    tree = like()
    shardings = jax.tree.map(lambda _: sharding.replicated(mesh), tree)
    shardings[0]["encoder"]["kernel"] = spread
    with checkpoint.open_manager(workdir, keep=3) as manager:
        found, _, _ = checkpoint.restore_latest(
            manager, lambda _: sharding.abstract(tree, shardings)
        )
    assert {s.data.shape for s in found["encoder"]["kernel"].addressable_shards} == {(16, 48)}
    assert_equal(found, state_at(6)[0])


RUNS = [{"seed": seed, "rows": "abc"} for seed in (0, 1)]


def save_of(workdir, relevant, **facts):
    """A checkpoint of step 3 of that run, beside its config.json."""
    params, opt, meta = state_at(3)
    with checkpoint.open_manager(workdir) as manager:
        checkpoint.save(manager, params, opt, meta | {"done": True} | facts)
    (workdir / "config.json").write_text(json.dumps({"relevant": relevant}))


def test_checkpoints_of_another_run_are_refused_and_both_are_named(tmp_path):
    for name, relevant in zip("ab", RUNS, strict=True):
        save_of(tmp_path / name, relevant, of=checkpoint.run_of(relevant))
        assert checkpoint.is_done(tmp_path / name)
    shutil.rmtree(tmp_path / "b/checkpoints")
    shutil.copytree(tmp_path / "a/checkpoints", tmp_path / "b/checkpoints")
    ours, theirs = (checkpoint.run_of(relevant)["config"][:12] for relevant in RUNS)
    said = rf"b/checkpoints/3 was saved by another run .*b/config.json: config {ours}, not {theirs}"
    with pytest.raises(UserError, match=said):
        restore(tmp_path / "b")
    with pytest.raises(UserError, match=said):
        checkpoint.load_params(tmp_path / "b", like()[0])
    assert not (tmp_path / "b/damaged").exists() and not checkpoint.is_done(tmp_path / "b")


def test_a_renamed_checkpoint_is_refused(tmp_path):
    save_of(tmp_path, RUNS[0])
    (tmp_path / "checkpoints/3").rename(tmp_path / "checkpoints/9999")
    for use in (restore, checkpoint.read_meta):
        with pytest.raises(UserError, match="9999 is the checkpoint of step 3"):
            use(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"relevant": 3}'])
def test_a_record_that_is_none_is_named(tmp_path, text):
    save_of(tmp_path, RUNS[0], of=checkpoint.run_of(RUNS[0]))
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DamagedError, match="config.json: expected the record of a run"):
        checkpoint.read_meta(tmp_path)


def test_one_of_an_earlier_version_is_loaded_with_a_line(tmp_path, capsys):
    save_of(tmp_path, RUNS[0], examples=96)
    assert checkpoint.read_meta(tmp_path)["step"] == 3
    assert restore(tmp_path)[2]["step"] == 3
    assert capsys.readouterr().err.count("is of an earlier version") == 1


def test_damage_has_an_exit_code_of_its_own(workdir):
    for step in workdir.glob("checkpoints/*"):
        flip(largest(step / "params"))
    with pytest.raises(UserError, match="Every checkpoint") as error:
        restore(workdir)
    assert error.value.exit_code == 4


@pytest.mark.parametrize(
    "given", ["a/checkpoints", "a/checkpoints/0", "a/checkpoints/0/params", ""]
)
def test_a_folder_beside_a_model_is_answered_with_the_model(tmp_path, given):
    checkpoint.save_params(tmp_path / "a", {"w": jnp.ones(2)})
    for ask in (checkpoint.read_meta, checkpoint.stored, lambda p: checkpoint.load_params(p, {})):
        with pytest.raises(ValueError, match=f"found no checkpoint .* mean {tmp_path / 'a'}[?]"):
            ask(tmp_path / given)


@pytest.mark.parametrize("place", ["meta/metadata", "params/_METADATA", "params/manifest.ocdbt"])
def test_nobody_waits_for_a_pipe_in_a_checkpoint(tmp_path, place):
    checkpoint.save_params(tmp_path, PARAMS)
    path = tmp_path / "checkpoints" / "0" / place
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamagedError, match="a pipe"):
        checkpoint.stored(tmp_path)


@pytest.mark.parametrize(
    "change", [{"step": "0"}, {"phases": 3}, {"done": None}, {"checksums": []}, {"of": {"x": [1]}}]
)
def test_a_sealed_meta_that_means_nothing_is_refused(tmp_path, change):
    checkpoint.save_params(tmp_path, PARAMS)
    (tmp_path / "config.json").write_text('{"relevant": {"rows": "r"}}')
    path = tmp_path / "checkpoints" / "0" / "meta" / "metadata"
    meta = json.loads(path.read_text()) | change
    del meta["sha256"]
    path.write_text(json.dumps(meta | {"sha256": files.digest(meta)}))
    with pytest.raises(UserError, match="checkpoints/0"):
        checkpoint.read_meta(tmp_path)
