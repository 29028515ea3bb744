"""What XLA says of a memory that is too small, as one message; the largest batch that fits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import binaries, tiny
from tests.helpers.toy import Toy, make_batch
from unlearn_jax import distributed, sharding, train
from unlearn_jax import methods as objectives
from unlearn_jax.models import memory
from unlearn_jax.training import phases
from unlearn_jax.training.step import UnlearnState, jit_step

TIB = 2**40
# As reported for GPUs and TPUs by others, compiling and running.
SAID = {
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4770354232 bytes.\n"
    "BufferAssignment OOM Debugging.": ("4.44", None),
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 3.37GiB.": ("3.37", None),
    "RESOURCE_EXHAUSTED: Failed to allocate request for 2.99GiB (3206250496B) on device "
    "ordinal 0": ("2.99", None),
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    "Used 21.95G of 15.48G hbm. Exceeded hbm capacity by 6.47G.": ("21.95", "15.48"),
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: XLA:TPU compile permanent error. Ran out of "
    "memory in memory space hbm. Used 215.17G of 31.25G hbm.": ("215.17", "31.25"),
    "RESOURCE_EXHAUSTED: HLO temporaries (50.50G) exceeds available HBM (15.75G).": (
        "50.50",
        "15.75",
    ),
    "RESOURCE_EXHAUSTED: Error allocating device buffer: Attempting to allocate 196.00M. That was "
    "not possible. There are 60.94M free.; (0x0x0_HBM0)": ("0.19", "0.06"),
    "RESOURCE_EXHAUSTED: Attempting to reserve 6.48G at the bottom of memory. That was not "
    "possible. There are 6.78G free, 0B reserved, and 3.33G reservable.": ("6.48", "6.78"),
}


@pytest.mark.parametrize("text", SAID)
def test_what_was_asked_for_and_what_is_there(text):
    wanted, there = SAID[text]
    found = memory.message(RuntimeError(text))
    assert f": asked for: {wanted} GiB, " in found
    there = f"there: {there} GiB. " if there else "there: unknown. "
    assert there in found
    for key in ("batch_size", "accumulate", "model.remat", "mesh.fsdp"):
        assert f"{key}" in found
    assert "\n" not in found and "RESOURCE" not in found


def test_other_messages_ask_for_nothing():
    assert memory.asked("INTERNAL: something else") is None
    assert memory.asked("Used 900.00M of 15.75G hbm.") == 900 * 2**20


def test_a_message_without_a_number_is_a_message():
    assert memory.message(RuntimeError("RESOURCE_EXHAUSTED: ?")).startswith(
        "Too little memory on cpu: "
    )


def test_a_lack_of_memory_is_no_lost_peer():
    for text, code in (("INTERNAL: Out of memory", 1), ("INTERNAL: ?", 75)):
        error = ValueError("one message")
        error.__cause__ = jax.errors.JaxRuntimeError(text)
        assert distributed.exit_code(error) == code


class Wide(Toy):
    """A tebibyte for every row, whatever the compiler does."""

    def loss(self, params, batch, key):
        row = super().loss(params, batch, key)
        wide = jnp.broadcast_to(row[:, None], (len(row), TIB // 4))
        wide = jnp.sin(wide * jnp.arange(TIB // 4, dtype=jnp.float32))
        return row * jax.lax.stop_gradient(jnp.sort(wide))[:, 0]


def run_out(limit, monkeypatch, rows=32):
    """(the message of a step that cannot run, the bytes of the step by its batch)."""
    mesh, model, tx = sharding.make_mesh(data=1, devices=jax.devices()[:1]), Wide(), optax.sgd(0.1)
    params = model.init(jax.random.key(0))
    state = UnlearnState(jnp.int32(0), params, tx.init(params), jax.random.key(0))
    where = sharding.params_sharding(state, mesh)
    step = jit_step(
        model, objectives.build("reconstruction"), tx, retain_weight=1.0, forget_weight=0.0,
        state_sharding=where, target_sharding={}, batch_sharding=sharding.batch_sharding(mesh),
        replicated=sharding.replicated(mesh),
    )  # fmt: skip
    monkeypatch.setattr(memory, "limit", lambda: limit)
    args = jax.device_put(state, where), {}
    args += (sharding.global_batch(jax.tree.map(np.asarray, make_batch(rows)), mesh),)
    like = jax.tree.map(memory._like, list(args))
    with pytest.raises(ValueError) as error, memory.explained(step, 2) as called_with:
        called_with(*args)
        jax.block_until_ready(step.lower(*args).compile()(*args))
    return str(error.value), lambda n: memory._bytes(step, like, n)


@pytest.mark.skipif(
    jax.__version_info__ >= (0, 11), reason="XLA's CPU client of jax 0.12 dies of it (SIGFPE)"
)
def test_a_real_step_that_does_not_fit(monkeypatch):
    _, peak = run_out(None, monkeypatch)
    limit = int(peak(10)) + 1
    text, _ = run_out(limit, monkeypatch)
    assert (
        text.startswith("Too little memory on cpu: ")
        and f"there: {limit / 2**30:,.2f} GiB. " in text
    )
    assert " a batch of 10 fits, not one of 32. " in text
    assert peak(10) <= limit < peak(12)
    assert "a batch of 0 fits" in run_out(int(peak(2)) // 2, monkeypatch)[0]
    assert "figures" not in run_out(None, monkeypatch)[0]


def test_other_errors_are_left_alone():
    with pytest.raises(ValueError, match="^another$"), memory.explained(None, 1):
        raise ValueError("another")


def test_a_batch_that_cannot_be_smaller_and_a_compiler_that_does_not_tell():
    assert memory.largest(lambda rows: 1.0, 8, 8, 100) is None
    assert memory.largest(lambda rows: None, 64, 8, 100) is None
    assert memory.largest(lambda rows: 10.0 + rows, 64, 8, 60) == 48
    assert memory.largest(lambda rows: 10.0 + rows, 64, 8, 1000) == 56  # others hold the rest


class Refusing:
    """A step that does not compile for 32 rows, as on a TPU."""

    def __init__(self, step):
        self.step, self.asked = step, {}

    def trace(self, *args):
        self.lower(*args)

    def lower(self, state, target, batch, *more):
        lowered, rows = self.step.lower(state, target, batch, *more), len(batch["valid"])
        if rows < 32:
            self.asked[rows] = lowered.compile().memory_analysis()
            return lowered
        said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 9.00G of 8.00G hbm."
        raise jax.errors.JaxRuntimeError(said)


@pytest.mark.long
def test_training_asks_the_compiler_about_its_own_step(tmp_path, monkeypatch):
    steps, make_step = [], phases.make_step

    def refusing(*args, **options):
        steps.append(Refusing(make_step(*args, **options)))
        return steps[-1]

    monkeypatch.setattr(phases, "make_step", refusing)
    monkeypatch.setattr(memory, "limit", lambda: 8 * 2**30)
    said = "asked for: 9.00 GiB, there: 8.00 GiB. .* a batch of 24 fits, not one of 32. Lower"
    with pytest.raises(ValueError, match=said):
        train.run(tiny.get_config(), tmp_path)
    assert set(steps[0].asked) == {8, 16}
    few, more = (steps[0].asked[rows].argument_size_in_bytes for rows in (8, 16))
    assert 0 <= more - few - 32 * 32 * 4 * 4 <= 10  # a row more on each of the 8 devices


def test_a_binary_says_it_in_one_line(tmp_path):
    flags = (binaries.TINY, f"--workdir={tmp_path}", "--config.model.latent_dim=100000000000")
    _, err = binaries.run("unlearn_jax.train", *flags, code=1, devices=1)
    last = err.strip().splitlines()[-2:]
    assert last[0].startswith("error: Too little memory on cpu: ") and "(--traceback" in last[1]
    assert "Traceback" not in err
