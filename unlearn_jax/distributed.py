"""Jobs of several processes: how they find each other, agree, and end together.

Every process runs the same program over one mesh of all their devices. Batches and parameters are
split over the mesh, what the host computes from them is the same everywhere, and only process 0
writes what is not a checkpoint. All of them see the same files.
"""

import itertools
import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from orbax.checkpoint import multihost

from unlearn_jax import sharding
from unlearn_jax.registry import AGAIN, MISTAKE, UserError

HEARTBEAT_S = 10  # of a peer; without a sign of it for so long the job ends
ASK_EVERY = 4  # steps between two questions whether a process was told to stop


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Define --distributed, --coordinator, --num_processes and --process_id."""
    which = {"flag_values": values}
    text = "One of several processes, which TPU, SLURM or GKE tell about."
    flags.DEFINE_bool("distributed", False, text, **which)
    text = "HOST:PORT of process 0; of one of several processes."
    flags.DEFINE_string("coordinator", None, text, **which)
    flags.DEFINE_integer("num_processes", None, "How many there are.", lower_bound=1, **which)
    flags.DEFINE_integer("process_id", None, "Which this is, from 0.", lower_bound=0, **which)


def start(given: flags.FlagValues) -> bool:
    """Tell whether this is one of several processes; if so, they have found each other.

    A peer that dies is noticed within `HEARTBEAT_S` and ends this process, too.

    Raises:
      UserError: the flags are not what they must be, or nothing tells about other processes.
    """
    own = {name: given[name].value for name in ("coordinator", "num_processes", "process_id")}
    if not given.distributed and all(value is None for value in own.values()):
        return False
    if given.distributed == any(value is not None for value in own.values()) or (
        not given.distributed and None in own.values()
    ):
        raise UserError(
            "Expected either --distributed, or all of --coordinator=HOST:PORT --num_processes=N "
            f"--process_id=I, got --distributed={given.distributed} and {own}."
        )
    if not given.distributed and own["process_id"] >= own["num_processes"]:
        raise UserError(
            f"--process_id: expected 0..{own['num_processes'] - 1} of {own['num_processes']} "
            f"processes, got {own['process_id']}."
        )
    if not given.distributed and not own["coordinator"].rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator: expected HOST:PORT, got {own['coordinator']!r}.")
    # Its handler of SIGTERM would be in the way of everything that does not train.
    jax.config.update("jax_enable_preemption_service", False)
    # On CPUs, programs in flight share threads: their collectives could wait for each other.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        jax.distributed.initialize(
            coordinator_address=own["coordinator"],
            num_processes=own["num_processes"],
            process_id=own["process_id"],
            # All devices are this process's, unless the cluster says otherwise.
            cluster_detection_method=None if given.distributed else "deactivate",
            heartbeat_timeout_seconds=HEARTBEAT_S,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"The processes of this job did not find each other: {error}\nWithout a cluster that "
            "tells about them, give --coordinator=HOST:PORT --num_processes=N --process_id=I."
        ) from error
    return True


def leave() -> None:
    """Wait for the other processes, which have finished as well."""
    jax.distributed.shutdown()


def abandon(code: int, text: str = "") -> NoReturn:
    """End this process now; the others, which may be waiting for it, notice and end, too."""
    print(text, end="\n" if text else "", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def exit_code(error: BaseException) -> int:
    """Return the code of a user's mistake, `AGAIN` if what lies behind the error broke in JAX."""
    status = r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED): "
    behind: BaseException | None = error
    while behind:  # some paths of JAX raise a ValueError with the status of a broken collective
        if exhausted(behind):  # to try again would not help
            return MISTAKE
        if isinstance(behind, jax.errors.JaxRuntimeError) or re.match(status, str(behind)):
            return AGAIN
        behind = behind.__cause__ or behind.__context__
    return getattr(error, "exit_code", MISTAKE)


def first() -> bool:
    """Tell whether this process is the one that writes."""
    return jax.process_index() == 0


def agreed(value: Any) -> Any:
    """Return process 0's value, on all processes: of anything that JSON can hold."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = np.resize(text, size) if first() else np.zeros(size, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(text), np.uint8).tobytes())


def wait_for_all(seconds: int) -> None:
    """Wait until all processes call this, for longer than the 30 s that collectives wait."""
    barrier = multihost.get_barrier_sync_fn()
    barrier(key=f"wait{next(_waits)}", timeout_ms=1000 * seconds)


_waits = itertools.count()


def everywhere(good: bool) -> bool:
    """Tell whether it is true on every process."""
    if jax.process_count() == 1:
        return good
    return bool(multihost_utils.process_allgather(np.bool_(good)).all())


def fetch(tree: Any) -> Any:
    """Fetch all arrays of a tree, as numpy arrays on every process."""

    def whole(leaf):
        if isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        ):
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return np.asarray(leaf)

    return jax.tree.map(whole, tree)


def make_asker(mesh: Mesh) -> Callable[[int, bool], bool]:
    """Make a function (step, flag) -> whether any process gave True; to be called in every step.

    With one process, the flag itself. With several, they tell each other every `ASK_EVERY` steps
    and look at the answer when they ask again, so that no step waits for it; all get the same one.
    """
    if jax.process_count() == 1:
        return lambda step, flag: flag
    anyone = jax.jit(jnp.any, out_shardings=sharding.replicated(mesh))
    answer = None

    def ask(step: int, flag: bool) -> bool:
        nonlocal answer
        if step % ASK_EVERY:
            return False
        before = answer
        flags = np.full(len(mesh.local_devices), flag)
        answer = anyone(sharding.global_batch({"flag": flags}, mesh)["flag"])
        return before is not None and bool(before)

    return ask


def exhausted(error: BaseException) -> bool:
    """Tell whether XLA says with this error that a device has too little memory."""
    # The status of what fails after it was dispatched is INTERNAL on the CPU.
    return bool(re.search("RESOURCE_EXHAUSTED|Out of memory", str(error)))
