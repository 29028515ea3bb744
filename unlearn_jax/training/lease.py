"""One job in a workdir: a lease, which process 0 takes, renews and gives back.

`WORKDIR/lease.json` says who has it. Nothing is locked, so it works on network file systems and
mounted buckets, too: a lease is a small file that is written whole and read back.

* It is renewed every 5 s. One that stands still for 60 s is dead and is taken over. So is one whose
  process is gone, on this host since this boot: at once.
* A lease of another host is watched, since clocks may disagree: until it is renewed, or 60 s old,
  and for two renewals at least.
* Where files can be linked, one of two jobs that start together gets a free lease. Where not, as on
  buckets, both may believe they have it until the next reading, every 5 s and before every save.
  Then who wrote last goes on, and the other ends with an error.

Not covered: a process that is stopped for 60 s between that reading and its save; a folder whose
changes another host sees later than 60 s; two hosts that disagree about a symbolic link.
"""

import contextlib
import functools
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unlearn_jax import distributed, files
from unlearn_jax.registry import UserError, plain

FILE = "lease.json"
RENEW_S, STALE_S = 5, 60
_LARGEST = 2**16  # bytes of a lease


class Holder(NamedTuple):
    """A process; what tells it from a later one with its number; "" what is not known of these."""

    host: str
    world: str  # the boot, and the namespace that its number is of
    process: int
    began: str  # in ticks since the boot


class Held(NamedTuple):
    """What a lease says."""

    holder: Holder
    owner: str  # random
    since: float
    time: float  # of the last renewal


def this_process() -> Holder:
    """Return the holder that this process is."""
    world = ""
    with contextlib.suppress(OSError):  # not on Linux
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        world = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return Holder(socket.gethostname(), world, os.getpid(), _began(os.getpid()))


class Lease:
    """A lease on a workdir that this process holds, and renews until it gives it back."""

    def __init__(self, workdir: Path, me: Holder, clock: Any = time):
        """Take it; wait for one that may be dead.

        Args:
          workdir: a folder that is there.
          me: who takes it.
          clock: has time, monotonic and sleep, as the module `time`.

        Raises:
          UserError: another job has it.
        """
        self._workdir, self._path, self._clock = workdir, workdir / FILE, clock
        self._alone, self._over = threading.RLock(), threading.Event()
        self._held = Held(me, secrets.token_hex(8), clock.time(), clock.time())
        while True:
            found = _read(self._path)
            if found is None and self._write(free=True):
                break
            if found and _is_dead(workdir, found, me, clock):
                print(f"{workdir} is taken over from {_who(found)}: it is gone.", file=sys.stderr)
                self._write()
                break
        if problem := self.problem():
            raise UserError(problem)
        threading.Thread(target=self._renew, daemon=True).start()

    def problem(self) -> str:
        """Return why the lease is lost, "" if it is not."""
        with self._alone:
            found = _read(self._path)
            if found == self._held:
                return ""
        if found:
            return _in_use(self._workdir, found)
        return (
            f"{self._workdir} is not the folder any more that this command began with: {FILE} is "
            "missing there. Nothing more is written. Put the folder back; the same command resumes."
        )

    def give_back(self) -> None:
        """End it."""
        self._over.set()
        with self._alone, contextlib.suppress(OSError):
            if not self.problem():
                self._path.unlink()

    def _renew(self) -> None:
        while not self._over.wait(RENEW_S):
            with self._alone, contextlib.suppress(OSError):  # a full disk: it is tried again
                if self._over.is_set() or self.problem():
                    return
                self._held = self._held._replace(time=self._clock.time())
                self._write()

    def _write(self, free: bool = False) -> bool:
        """Write what it says. Where it has to be free, return False if there is one already."""
        partial = self._path.with_name(f"{FILE}.{self._held.owner}")
        try:
            partial.write_text(json.dumps(self._held))
            if free:
                with contextlib.suppress(OSError):  # no links here
                    os.link(partial, self._path)
                    return True
                if self._path.exists():
                    return False
            partial.replace(self._path)
        finally:
            partial.unlink(missing_ok=True)
        return True


_leases: dict[str, Lease | None] = {}  # of this job; None where another process has it


@contextlib.contextmanager
def take(workdir: Path) -> Iterator[None]:
    """Let this job alone have the workdir, which is made.

    Folders that were made and are empty in the end are removed. Inside of another `take` of the
    same workdir nothing happens.

    Raises:
      UserError: another job has it.
    """
    where, problem = os.path.abspath(workdir), ""
    if where in _leases:
        yield
        return
    made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    try:
        if distributed.first():
            workdir.mkdir(parents=True, exist_ok=True)
            try:
                _leases[where] = Lease(workdir, this_process())
            except UserError as error:
                problem = str(error)
        distributed.wait_for_all(10 * STALE_S)
        if problem := distributed.agreed(problem):
            raise UserError(problem)
        _leases.setdefault(where, None)
        yield
    finally:
        if lease := _leases.pop(where, None):
            lease.give_back()
        for folder in made if distributed.first() else ():
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


def exclusively(unless: Callable[[Path], bool] = lambda workdir: False) -> Callable[..., Any]:
    """Make a decorator of functions (cfg, workdir, ...): they `take` their workdir.

    Args:
      unless: tells of a workdir that it is only read.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def alone(cfg: Any, workdir: Path, *args: Any, **options: Any) -> Any:
            with contextlib.nullcontext() if unless(workdir) else take(workdir):
                return function(cfg, workdir, *args, **options)

        return alone

    return decorate


def held(workdir: Path) -> bool:
    """Tell whether this process has the lease of a workdir, and nobody has taken it."""
    lease = _leases.get(os.path.abspath(workdir))
    return lease is not None and not lease.problem()


def check(workdir: Path, needs: Sequence[str] = ()) -> None:
    """Check that this job still has the workdir.

    Args:
      workdir: of which it has taken the lease, or that it only reads.
      needs: files that have to be there.

    Raises:
      UserError: another job has it, or it is not the folder that it was; on all processes.
    """
    lease = _leases.get(os.path.abspath(workdir))
    problem = lease.problem() if lease else ""
    missing = [name for name in needs if not (workdir / name).exists()]
    if missing and not problem:
        problem = (
            f"{workdir} lacks {', '.join(missing)}, without which the model is no use: the folder "
            "was moved, replaced or removed. Put it back; the same command resumes."
        )
    if problem := distributed.agreed(problem):
        raise UserError(problem)


def _is_dead(workdir: Path, found: Held, me: Holder, clock: Any) -> bool:
    """Tell whether a lease is dead; False if it was given back meanwhile.

    Raises:
      UserError: it lives.
    """
    holder = found.holder
    if me.world and holder[:2] == me[:2]:
        if _began(holder.process) != holder.began:
            return True
        raise UserError(_in_use(workdir, found))
    patience = max(2 * RENEW_S, STALE_S - max(0.0, clock.time() - found.time))
    print(
        f"{workdir} was in use by {_who(found)}. Waiting up to {patience:.0f} s for a sign of it.",
        file=sys.stderr,
    )
    until = clock.monotonic() + patience
    while clock.monotonic() < until:
        clock.sleep(1)
        now = _read(workdir / FILE)
        if now is None:
            return False
        if now != found:
            raise UserError(_in_use(workdir, now))
    return True


def _in_use(workdir: Path, found: Held) -> str:
    return (
        f"{workdir} is in use by {_who(found)}. One job at a time writes there: wait for it, stop "
        "it, or choose another --workdir."
    )


def _who(found: Held) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.since))
    return f"process {found.holder.process} of {plain(found.holder.host)}, since {since}"


def _began(process: int) -> str:
    """Return when a process of this machine started, in ticks since the boot; "" if there is none.

    A dead one that nobody has waited for (a zombie) is none.
    """
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _read(path: Path) -> Held | None:
    """Read a lease, None if there is none; one that cannot be understood is nobody's."""
    try:
        text = files.regular(path, _LARGEST).read_text("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        (host, world, process, began), owner, since, renewed = json.loads(text)
        time.localtime(since)
        holder = Holder(str(host), str(world), int(process), str(began))
        return Held(holder, str(owner), float(since), float(renewed))
    except (ValueError, TypeError, OverflowError, OSError, RecursionError):
        return Held(Holder("an unknown host", "", 0, ""), text, 0.0, 0.0)
