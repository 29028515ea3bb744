"""How every command starts and ends: flags, mistakes as one clear message, signals, exit codes."""

import contextlib
import ctypes
import difflib
import functools
import hashlib
import importlib
import os
import platform
import re
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from unlearn_jax.files import cache_folder
from unlearn_jax.registry import AGAIN, MISTAKE, UserError

MAX_BYTES = 2 * 2**30
MIN_SECONDS = 0.02  # what compiles faster is compiled again
_EXAMPLE = "--config=quickstart --workdir=runs/quickstart --config.seed=1"


def start(
    main: Callable[..., None],
    needs: Sequence[str],
    example: str = _EXAMPLE,
    several: bool = False,
) -> None:
    """Run a command as `main(*values)`, of the flags that it needs, in this order.

    "config" and "workdir" are defined here, a binary defines any others. A user's mistake, that is
    a UserError, an OSError, more than fits into memory or a flag that cannot be parsed, ends it
    with its message and the exit code of `registry`; --traceback shows where it was raised.
    SIGINT and SIGTERM are answered, see `answering`, and end it with `registry.AGAIN`.

    Where `several` processes can share the work, flags say which of them this is, see
    `distributed.start`. Any of them that fails ends them all, with exit codes that are not 0.
    """
    if "config" in needs:
        define_config("What to do: a name, a path or a module, see `config.load`.")
    if "workdir" in needs:
        flags.DEFINE_string("workdir", None, "Folder of the run: made, or resumed.")
    flags.DEFINE_bool("traceback", False, "Show where an error was raised.")
    flags.DEFINE_string("compilation_cache", "", "Folder of compiled programs, or off.")
    flags.DEFINE_multi_string("import", [], "Module of your own that a workdir names; can repeat.")
    if several:
        from unlearn_jax import distributed  # jax, which takes seconds: not for all
        from unlearn_jax.models import memory

        distributed.define_flags()

    def run(argv: list[str]) -> None:
        values = {name: getattr(flags.FLAGS, name) for name in needs}
        shared = False
        try:
            missing = [f"--{name}=…" for name, value in values.items() if value is None]
            if missing or argv[1:]:
                raise UserError(
                    f"Expected --flags only, got {argv[1:]}; missing: {missing}. For example:\n"
                    f"  {example}"
                )
            for name, value in values.items():
                if isinstance(value, str) and "://" in value:
                    raise UserError(
                        f"--{name}: expected a path, got the URL {value!r}, which would be a "
                        "folder of that name. Mount the bucket, as launch/README.md says."
                    )
            if "config" in values:
                split_at_commas(values["config"], flags.FLAGS["config"].override_values)
            if "workdir" in values:
                values["workdir"] = Path(values["workdir"])
            keep_compiled(flags.FLAGS.compilation_cache)
            for name in flags.FLAGS["import"].value:
                importlib.import_module(name)
            shared = several and distributed.start(flags.FLAGS)
            with memory.explained() if several else contextlib.nullcontext():
                main(*values.values())
            if shared:
                distributed.leave()
        except (OSError, UserError, FloatingPointError) as error:
            _fail(error, show=flags.FLAGS.traceback, shared=shared)
        except Interrupted as stop:
            if shared and stop.agreed:
                distributed.leave()
            elif shared:
                distributed.abandon(AGAIN, str(stop))
            raise
        except SystemExit:
            if shared:
                distributed.leave()
            raise
        except BaseException:  # whatever it is, nobody may wait for this process
            if shared:
                traceback.print_exc()
                distributed.abandon(AGAIN)
            raise

    keep_freed_memory()
    with answering():
        try:
            app.run(run, flags_parser=functools.partial(_parse, needs=needs, example=example))
        except Interrupted as stop:
            _end(str(stop))


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM has ended a command, after what had to be finished.

    Attributes:
      agreed: whether all processes of the job stop here.
    """

    def __init__(self, kept: str = "what was finished is kept", agreed: bool = False):
        """Say what is left of the work."""
        by = _received[0] if _received else "another process"
        super().__init__(f"\nStopped by {by}, {kept}. The same command resumes.")
        self.agreed = agreed


_received: list[str] = []  # the signals that ask this process to stop
_raised: list[bool] = []  # whether `Interrupted` is on its way
_finishing: list[str] = []  # when it stops, the innermost last; at once if there is none


def stopping() -> bool:
    """Tell whether a signal has asked this process to stop."""
    return bool(_received)


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Answer SIGINT and SIGTERM: the first one stops the command, by `Interrupted`.

    It does so at once or, in `finishing`, after that. A line says so, from a thread of its own:
    the main one may be compiling for minutes. A second SIGINT ends the process. Inside of another
    `answering`, and in threads, nothing happens.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is _stop:
        yield
        return
    hears, told = socket.socketpair()
    told.setblocking(False)
    wakeup = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    hook, sys.unraisablehook = sys.unraisablehook, _raise_again
    before = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    threading.Thread(target=_answer, args=(hears,), daemon=True).start()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        sys.unraisablehook = hook
        told.close()
        _received.clear()
        _raised.clear()


@contextlib.contextmanager
def finishing(when: str) -> Iterator[None]:
    """Let signals wait until the context ends; then all processes of the job stop if one got one.

    Args:
      when: they stop, for the line that answers a signal: "once the step is done".

    Raises:
      Interrupted: at the end, if a signal came that nothing inside has heeded.
    """
    with answering():
        _finishing.append(when)
        try:
            yield
        finally:
            _finishing.pop()
        stop_if_asked()


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Let signals stop the command at once, inside of `finishing`: where nothing is unsaved."""
    waiting = _finishing[:]
    stop_if_asked()
    _finishing.clear()
    try:
        yield
    finally:
        _finishing.extend(waiting)


def stop_if_asked() -> None:
    """Raise `Interrupted` on all processes of the job if a signal has asked one of them to stop."""
    from unlearn_jax import distributed

    if not distributed.everywhere(not _received):
        raise Interrupted(agreed=True)


def _stop(number: int, frame: Any) -> None:
    """Handle a signal in the main thread, as soon as that runs Python."""
    _received.append(signal.Signals(number).name)
    if not _finishing and not _raised:
        _raised.append(True)
        raise Interrupted


def _raise_again(ignored: Any) -> None:
    """Send a signal again whose `Interrupted` was raised in a callback, such as of the gc."""
    if ignored.exc_type is not Interrupted:
        return sys.__unraisablehook__(ignored)
    _raised.clear()
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()


def _answer(hears: socket.socket) -> None:
    """Answer signals while `answering` lasts, whatever the main thread does."""
    interrupts = answered = 0
    with hears:
        while number := hears.recv(1):
            if number[0] not in (signal.SIGINT, signal.SIGTERM):
                continue
            interrupts += number[0] == signal.SIGINT
            if interrupts > 1:
                _end("\nStopped at once. The same command resumes from what was saved.")
            if not answered:
                when = _finishing[-1] if _finishing else "as soon as what it computes is there"
                name = signal.Signals(number[0]).name
                _tell(f"\n{name}: stopping {when}. Press Ctrl-C again to stop now.")
            answered = True


def _end(text: str) -> NoReturn:
    """End the process now: Python takes a moment, and would meet another signal unprepared."""
    _tell(text)
    os._exit(AGAIN)


def _tell(text: str) -> None:
    with contextlib.suppress(OSError):  # the main thread may hold the lock of sys.stderr
        os.write(2, f"{text}\n".encode())


def keep_compiled(where: str = "") -> None:
    """Keep compiled programs, so that a second run starts in a fraction of the time.

    To be called before anything is compiled. They lie in the user's cache folder
    ($XDG_CACHE_HOME or ~/.cache)/unlearn_jax/compiled, at most 2 GiB, in one folder for each kind
    of processor: what was compiled for another one may not run here. Several processes share them.
    JAX_COMPILATION_CACHE_DIR=DIR, or --compilation_cache=DIR, puts them elsewhere;
    JAX_ENABLE_COMPILATION_CACHE=false, or --compilation_cache=off, keeps none.

    Args:
      where: a folder, "off", or "": what the environment says, else the user's cache folder.

    Raises:
      UserError: where is a folder that cannot be made.
    """
    if where == "off":
        settings = {"enable_compilation_cache": False}
    elif not where and "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    else:
        try:
            root = Path(where) if where else cache_folder() / "compiled"
            folder = (root / processor()).absolute()
            folder.mkdir(parents=True, exist_ok=True)
            _drop_torn(folder)
        except (OSError, RuntimeError) as error:  # the latter: there is no home
            reason = f"compiled programs cannot be kept: {error}"
            if where:
                raise UserError(f"--compilation_cache: {reason}") from error
            print(f"warning: {reason}. --compilation_cache=DIR|off", file=sys.stderr)
            return
        settings = {
            "compilation_cache_dir": str(folder),
            "compilation_cache_max_size": MAX_BYTES,  # with a limit, jax locks the folder
            "persistent_cache_min_compile_time_secs": MIN_SECONDS,
            "persistent_cache_min_entry_size_bytes": -1,
        }
    for name, value in settings.items():
        if "jax" in sys.modules:
            sys.modules["jax"].config.update(f"jax_{name}", value)
        else:  # some binaries never need it, and it takes seconds
            os.environ[f"JAX_{name.upper()}"] = str(value)


def _drop_torn(folder: Path) -> None:
    """Delete programs that a full disk or a kill cut short.

    jax dates each program once it is written; while one without a date is there, it keeps no other.
    """
    for program in folder.glob("*-cache"):
        if not program.with_name(f"{program.name.removesuffix('-cache')}-atime").exists():
            program.unlink(missing_ok=True)


def processor() -> str:
    """Name what machine code may be used for."""
    try:
        found = re.findall(
            r"^(?:model name|flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.M
        )
        text = "\n".join(sorted(set(found)))
    except OSError:
        text = platform.node()
    text += platform.machine() + platform.processor()
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def keep_freed_memory() -> None:
    """Make glibc keep the memory it frees; do nothing where there is no glibc.

    XLA on the CPU allocates its temporaries anew for every step. Above 32 MB glibc would map and
    unmap them each time, and the page faults take a third of the autoencoder's step.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mmap_max, trim_threshold, arena_max = -4, -1, -8  # of malloc.h
        for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (arena_max, 1)):
            mallopt(option, value)


def split_at_commas(config: ConfigDict, given: Mapping[str, Any]) -> None:
    """Make ("a", "b") of the string "a,b" that a command line gave for a tuple, for every key.

    Names of classes stay as they were written: they may have commas, which only the data can tell.
    """
    for path, values in given.items():
        if not isinstance(values, tuple) or path.endswith("classes"):
            continue
        parts = [part.strip() for v in values if isinstance(v, str) for part in v.split(",")]
        if parts:
            *folders, key = path.split(".")
            section = functools.reduce(lambda at, name: at[name], folders, config)
            section[key] = tuple(part for part in parts if part)


def _parse(argv: list[str], needs: Sequence[str], example: str) -> list[str]:
    """Return what is left of argv without its flags; --help, or a wrong flag, ends it here."""
    if {"-h", "--help", "--helpshort", "--helpfull"} & {*argv[1:]}:
        print(_help(needs, example))
        sys.exit(0)
    try:
        argv = flags.FLAGS(argv)
    except (AttributeError, KeyError, OSError, TypeError, ValueError, flags.Error) as error:
        told = isinstance(error.__context__, ValueError)  # by us, with no need of absl's words
        told = told and str(error.__context__).startswith("--config")
        _fail(error.__context__ if told else error, show="--traceback" in argv)
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.WARNING)  # progress bars, not log lines
    return argv


def define_config(text: str, default: str | None = None) -> flags.FlagHolder:
    """Define --config and --config.KEY, see `config.load`; return its holder.

    Args:
      text: of the help.
      default: of --config.
    """
    holder = config_flags.DEFINE_config_file("config", None, text)
    flags.FLAGS["config"].parser = _ConfigParser()
    flags.FLAGS.set_default("config", default)
    return holder


class _ConfigParser(flags.ArgumentParser):
    """Loads what --config says, and checks that it has the keys that the command line sets."""

    def parse(self, text: str) -> ConfigDict:
        from unlearn_jax.config import load

        config = load.load(text)
        for flag in sys.argv[1:]:
            if found := re.match(r"--?(?:no)?config\.([^=\[]+)(?:=|$)", flag):
                _check_key(config, found[1])
        config.lock()
        return config


def _check_key(config: ConfigDict, path: str) -> None:
    """Raise ValueError, with the nearest keys, if a config does not have one."""
    known = dict(_keys(config))
    if path in known:
        return
    section, _, leaf = path.rpartition(".")
    if section in known:
        near = difflib.get_close_matches(path, [k for k in known if k.startswith(f"{section}.")])
    else:
        elsewhere = [key for key in known if key.rpartition(".")[2] == leaf]
        near = difflib.get_close_matches(path, known, n=1)
        near += difflib.get_close_matches(path, elsewhere, cutoff=0.0)
    guess = " or ".join(f"--config.{key}" for key in dict.fromkeys(near[:2]))
    raise UserError(
        f"--config.{path}: expected a key that the config has, got {path!r}."
        + (f" Did you mean {guess}?" if guess else "")
        + (" A field of the model is set in the config's file." if section == "model" else "")
    )


def _keys(section: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of every key and section."""
    for key, value in section.items():
        yield f"{prefix}{key}", value
        if isinstance(value, ConfigDict):
            yield from _keys(value, f"{prefix}{key}.")


def _help(needs: Sequence[str], example: str) -> str:
    """Return what --help prints: what the command is for, an example, its own flags."""
    main = sys.modules["__main__"]
    program = program_of(getattr(main.__spec__, "name", "")) or f"python {sys.argv[0]}"
    ours = (sys.argv[0], "unlearn_jax")  # libraries define dozens for debugging
    own = [n for n in flags.FLAGS if flags.FLAGS.find_module_defining_flag(n).startswith(ours)]
    lines = []
    for name in sorted(own, key=lambda name: (name not in needs, name)):
        flag = flags.FLAGS[name]
        default = "" if flag.default is None else flag.default_as_str.strip("'") or '""'
        lines.append((f"--{name}={default or '…'}", flag.help.replace("\n", " ")))
        if name == "config":
            lines.append(("--config.KEY=VALUE", "Another value of any key that the config has."))
    width = min(32, max(len(left) for left, _ in lines))
    table = "\n".join(f"  {left:{width}}  {text}" for left, text in lines)
    doc = (main.__doc__ or "").strip()
    return f"{doc}\n\nFlags, with their defaults:\n{table}\n\nExample:\n  {program} {example}"


def program_of(module: str) -> str:
    """Return how a user calls a module that is a command, "" if it is none."""
    module = module.removesuffix(".__main__")
    from unlearn_jax.__main__ import COMMANDS

    return next((f"unlearn-jax {name}" for name, of in COMMANDS.items() if of[0] == module), "")


def _fail(error: BaseException, show: bool, shared: bool = False) -> None:
    if show:
        traceback.print_exception(error)
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    print(
        f"error: {UserError(str(message))}\n(--traceback shows where this was raised)",
        file=sys.stderr,
    )
    if shared:
        from unlearn_jax import distributed

        distributed.abandon(distributed.exit_code(error))
    sys.exit(getattr(error, "exit_code", MISTAKE))
