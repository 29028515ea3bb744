"""What a reader may not do while it reads a file of others, and how it is noticed."""

import contextlib
import ctypes
import io
import os
import resource
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MEMORY = 2**30  # bytes
MESSAGE, LINES = 2000, 60  # characters of a line of a message, and its lines
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork")
STARTS += ("os.forkpty", "pty.spawn", "os.startfile", "webbrowser.open")
NETWORK = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname")
NETWORK += ("socket.sendto", "urllib.Request", "http.client.connect", "ftplib.connect")
WRITES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.chmod")
WRITES += ("os.truncate", "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile")
NEVER = {"antigravity", "this", "idlelib", "turtle"}  # of the standard library, in no reader
HERE = Path(__file__).resolve().parents[2]


class Watch:
    """Watches this process: the folders that it opens files in, what it imports, starts and asks.

    It sees what Python does, by audit events; and what anything does to the files in `outside`,
    which the mutations name, by inotify (on Linux).
    """

    def __init__(self, case: Path, outside: Path):
        """Begin to watch; all modules that readers need must be imported.

        Args:
          case: the folder of the case, the only one where files may be.
          outside: a folder that no reader may touch.
        """
        self.on, self.seen = False, []
        where = (sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), HERE, *sys.path)
        self._code = tuple({str(Path(p).resolve()) for p in where if p})
        self._open = (str(case), *self._code, "/proc/", "/sys/", "/dev/null", "/dev/urandom",
                      "/usr/share/zoneinfo", "/etc/localtime", "/usr/lib", "/lib")  # fmt: skip
        packages = {name.partition(".")[0] for name in sys.modules}
        self._packages = packages | (sys.stdlib_module_names - NEVER) - {"fuzz_evil"}
        self._inotify = _inotify(outside)
        sys.addaudithook(self._hear)

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Look until the context ends; then `seen` has (kind, what) of all that was forbidden."""
        self.seen = []
        with contextlib.suppress(BlockingIOError):
            os.read(self._inotify, 2**16)
        self.on = True
        try:
            yield
        finally:
            self.on = False
        with contextlib.suppress(BlockingIOError):
            if os.read(self._inotify, 2**16):
                self.seen.append(("touched", "a file outside of the folder"))

    def _hear(self, event: str, args: tuple) -> None:
        if not self.on:
            return
        if event in STARTS:
            self.seen.append(("process", f"{event} {args[:1]!r:.200}"))
        elif event in NETWORK:
            self.seen.append(("network", f"{event} {args[1:]!r:.200}"))
        elif event == "import":
            if str(args[0]).partition(".")[0] not in self._packages:
                self.seen.append(("import", str(args[0])[:200]))
        elif event == "exec":
            name = getattr(args[0], "co_filename", "")
            if not name.startswith(("<frozen", *self._code)):
                self.seen.append(("exec", f"code of {name!r:.200}"))
        elif event == "open" or event in WRITES:
            for path in args[:1] if event == "open" else args[:2]:
                if isinstance(path, str | bytes | os.PathLike) and not self._inside(path):
                    self.seen.append(("opened", f"{event} {os.fsdecode(path)!r:.200}"))

    def _inside(self, path: Any) -> bool:
        return os.path.abspath(os.fsdecode(path)).startswith(self._open)


def _inotify(folder: Path) -> int:
    """Return what becomes readable when anything opens, makes or removes a file in a folder."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "inotify_init1"):  # not on Linux: Python's own files are watched only
        return os.open(os.devnull, os.O_RDONLY)
    found = libc.inotify_init1(os.O_NONBLOCK)
    libc.inotify_add_watch(found, os.fsencode(folder), 0x20 | 0x2 | 0x100 | 0x200 | 0x40 | 0x80)
    return found


def resident() -> int:
    """Return the bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    """Return the most bytes of memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def limit_memory() -> None:
    """Let the system refuse what would take the machine down: more address space than 4 cases."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 4 * MEMORY,) * 2)


def outcome(
    watch: Watch, read: Callable[[], Any], names: set[str], memory: int
) -> list[dict[str, Any]]:
    """Return what is wrong with how a reader behaved: {"kind", "what", "frames"} each.

    Args:
      watch: of this process.
      read: calls the reader.
      names: one of which an error has to have: of the files.
      memory: bytes that it may need.
    """
    from unlearn_jax.registry import UserError

    found, said = [], io.StringIO()
    base, before = resident(), peak()
    with watch.looking(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            read()
        except (UserError, OSError) as error:
            if wrong := message(str(error), names):
                found.append({"kind": "message", "what": f"{wrong}: {str(error)[:300]!r}",
                              "frames": frames(error)})  # fmt: skip
        except BaseException as error:
            what = f"{type(error).__name__}: {str(error)[:300]}"
            found.append({"kind": "exception", "what": what, "frames": frames(error)})
    found += [
        {"kind": kind, "what": what, "frames": []} for kind, what in dict.fromkeys(watch.seen)
    ]
    text = said.getvalue()
    if odd := [c for c in text if not (c.isprintable() or c in "\n\r")]:
        found.append({"kind": "message", "what": f"printed {odd[0]!r} of {text[:200]!r}",
                      "frames": []})  # fmt: skip
    if peak() > max(before, base + memory):
        found.append({"kind": "memory", "what": f"{(peak() - base) / 2**20:.0f} MiB", "frames": []})
    return found


def message(text: str, names: set[str]) -> str:
    """Say what is wrong with a message, "" if nothing: it names the file, is short and one line.

    A list may follow, of lines that begin with two blanks, and then what to do.
    """
    lines = text.split("\n")
    if not any(name in text for name in names):
        return "names no file"
    if max(map(len, lines)) > MESSAGE or len(lines) > LINES:
        return f"{len(text)} characters in {len(lines)} lines"
    if len(lines) > 1 and not lines[1].startswith("  "):
        return f"{len(lines)} lines"
    if odd := [c for c in text if not (c.isprintable() or c == "\n")]:
        return f"has {odd[0]!r}"
    return ""


def frames(error: BaseException) -> list[str]:
    """Return where an error was raised: the innermost frames, those of the package at least."""
    stack = traceback.extract_tb(error.__traceback__)
    kept = [f for f in stack if f"{os.sep}unlearn_jax{os.sep}" in f.filename][-3:] + stack[-1:]
    return [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in kept]
