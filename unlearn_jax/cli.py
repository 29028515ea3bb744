"""How every binary starts: flags, and a user's mistake as one clear message."""

import contextlib
import ctypes
import functools
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from unlearn_jax import compilation

_EXAMPLE = "--config=configs/quickstart.py --workdir=runs/quickstart --config.seed=1"


def start(
    main: Callable[..., None],
    needs: Sequence[str],
    example: str = _EXAMPLE,
    several: bool = False,
) -> None:
    """Runs a binary as `main(*values)`, of the flags that it needs, in this order.

    "config" and "workdir" are defined here, a binary defines any others. A user's mistake, that is
    a ValueError, an OSError, more than fits into memory or a flag that cannot be parsed, ends it
    with its message and exit code 1; --traceback shows where it was raised.

    Where `several` processes can share the work, flags say which of them this is, see
    `distributed.start`. Any of them that fails ends them all, with exit codes that are not 0.
    """
    if "config" in needs:
        config_flags.DEFINE_config_file("config", None, "A file with get_config().")
    if "workdir" in needs:
        flags.DEFINE_string("workdir", None, "Folder of the run: made, or resumed.")
    flags.DEFINE_bool("traceback", False, "Show where an error was raised.")
    flags.DEFINE_string("compilation_cache", "", "Folder of compiled programs, or off.")
    if several:
        from unlearn_jax import distributed  # jax, which takes seconds: not for all
        from unlearn_jax.models import memory

        distributed.define_flags()

    def parse(argv: list[str]) -> list[str]:
        try:
            argv = flags.FLAGS(argv)
            if flags.FLAGS["verbosity"].using_default_value:
                logging.set_verbosity(logging.WARNING)  # progress bars, not log lines
            return argv
        except BaseException as error:
            if file := _config_file(argv):
                from unlearn_jax.data.names import line_in  # brings jax

                where = line_in(error, file)
                if where and not isinstance(error, KeyboardInterrupt):
                    what = f"--config: {file}{where}: {type(error).__name__}: {error}"
                    _fail(ValueError(f"{what}."), show="--traceback" in argv)
            known = (AttributeError, KeyError, OSError, TypeError, ValueError, flags.Error)
            if isinstance(error, AttributeError | KeyError):
                key: Any = error
                while isinstance(key, Exception):  # ml_collections puts one into another
                    key = key.args[0]
                error = ValueError(
                    f"--config.…: expected a key that the file has, got {key}\n"
                    "A field of the model that it leaves to its default is set in the file itself."
                )
            if isinstance(error, known):
                _fail(error, show="--traceback" in argv)
            raise

    def run(argv: list[str]) -> None:
        values = {name: getattr(flags.FLAGS, name) for name in needs}
        shared = False
        try:
            missing = [f"--{name}=…" for name, value in values.items() if value is None]
            if missing or argv[1:]:
                raise ValueError(
                    f"Expected --flags only, got {argv[1:]}; missing: {missing}. For example:\n"
                    f"  {example}"
                )
            for name, value in values.items():
                if isinstance(value, str) and "://" in value:
                    raise ValueError(
                        f"--{name}: expected a path, got the URL {value!r}, which would be a "
                        "folder of that name. Mount the bucket, as launch/README.md says."
                    )
            if "config" in values:
                split_at_commas(values["config"], flags.FLAGS["config"].override_values)
            if "workdir" in values:
                values["workdir"] = Path(values["workdir"])
            compilation.keep(flags.FLAGS.compilation_cache)
            shared = several and distributed.start(flags.FLAGS)
            with memory.explained() if several else contextlib.nullcontext():
                main(*values.values())
            if shared:
                distributed.leave()
        except (OSError, ValueError, FloatingPointError) as error:
            _fail(error, show=flags.FLAGS.traceback, shared=shared)
        except SystemExit:
            if shared:
                distributed.leave()
            raise
        except BaseException:  # whatever it is, nobody may wait for this process
            if shared:
                traceback.print_exc()
                distributed.abandon(distributed.PEER_LOST)
            raise

    keep_freed_memory()
    app.run(run, flags_parser=parse)


def keep_freed_memory() -> None:
    """Makes glibc keep the memory it frees; does nothing where there is no glibc.

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


def _config_file(argv: Sequence[str]) -> str:
    """The file that --config names, without what stands after a colon; "" if it names none."""
    for flag, value in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, text = flag.lstrip("-").partition("=")
        if name == "config":
            return re.sub(r"(\.py):.*$", r"\1", text if equals else value)
    return ""


def _fail(error: BaseException, show: bool, shared: bool = False) -> None:
    if show:
        traceback.print_exception(error)
    message = str(error).strip("'\"").replace("\\n", "\n").replace("\\'", "'")
    head, traced, trace = message.partition("Traceback (most recent call last):")
    if traced and not show:  # of a config file: what was wrong is in its last line
        message = f"{head.strip()}\n  {trace.strip().splitlines()[-1].strip()}"
    print(f"error: {message}\n(--traceback shows where this was raised)", file=sys.stderr)
    if shared:
        from unlearn_jax import distributed

        distributed.abandon(distributed.exit_code(error))
    sys.exit(1)
