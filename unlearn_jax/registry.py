"""What a config names: entries of a table, or something of one's own as "package.module:name".

Objectives, combinations, models, data sources and audits are found alike. In Python the function
or class itself may stand where a config has its name, see `name_of`.

A config is its user's own, and what it names is imported. What somebody's config.json names is not:
see `of_record`.
"""

import contextlib
import contextvars
import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Exit codes, of every command. launch/*.sh start again what ends with another one, also 134 and 143
# (SIGABRT: a peer is gone; SIGTERM). 2 is not ours: shells and libraries use it.
DONE, MISTAKE, REFUTED, DAMAGED = 0, 1, 3, 4
AGAIN = 75  # interrupted, the same command resumes: EX_TEMPFAIL of sysexits.h


_LINES, _WIDTH = 50, 1000  # that a message may have, and characters of a line


class UserError(ValueError):
    """A mistake that a user can mend: its message is all that a command prints.

    It says what was expected, what came, where, and what to do. Any other exception is a bug, and
    keeps its traceback. What came may be a file of others: its control characters are escaped, and
    what is too long for a terminal is left out of the middle.
    """

    exit_code = MISTAKE

    def __init__(self, text: str = ""):
        """Take the message: one line, or a list whose lines begin with two blanks."""
        lines = [plain(line) for line in text.split("\n")]
        if (more := len(lines) - _LINES) > 0:
            lines[_LINES - 10 : -9] = [f"  and {more + 1} more"]
        super().__init__("\n".join(lines))


class DamagedError(UserError):
    """A checkpoint or record that is not what was written: somebody has to look at it."""

    exit_code = DAMAGED


def plain(line: str) -> str:
    """Return a line for a terminal: what is not printable escaped, what is too long cut."""
    if not line.isprintable():
        line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 203]} … {line[-200:]}"


def brief(error: BaseException) -> str:
    """Describe an error in one line: its first line, and its kind if that is not `UserError`."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return f"{kind}{error}".split("\n")[0][:200]


_of_record = contextvars.ContextVar("of_record", default=False)


@contextlib.contextmanager
def of_record() -> Iterator[None]:
    """Let nothing be imported that is not already: the names are those of a file of others.

    Nor may they name anything of the standard library, such as "os:system".
    """
    token = _of_record.set(True)
    try:
        yield
    finally:
        _of_record.reset(token)


def find(table: Mapping[str, Any], name: str, what: str) -> Any:
    """Return an entry of a table, or what "package.module:name" names.

    Args:
      table: of what comes with the package, by name.
      name: of the entry.
      what: it is, in words, for messages: "objective".

    Raises:
      UserError: there is none; the message has the nearest name.

    >>> find({"mean": sum}, "mean", "statistic")
    <built-in function sum>
    >>> find({}, "math:sqrt", "statistic")(9)
    3.0
    """
    if name in table:
        return table[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        raise UserError(
            f'{unknown(name, table)}, or "package.module:name" for a {what} of your own'
        )
    loaded = module in sys.modules and module.partition(".")[0] not in sys.stdlib_module_names
    if _of_record.get() and not loaded and module != _running():
        raise UserError(
            f"the {what} {name!r} of a record is not of this package, and no record may import a "
            f"module. If you trust it, import {module} first; commands do with --import={module}"
        )
    try:
        return getattr(_module(module), attribute)
    except Exception as error:  # whatever its author's code raises
        raise UserError(
            f"cannot import the {what} {name!r}: {type(error).__name__}: {error}. Its module must "
            "be installed, or in the folder that the command runs in"
        ) from error


def name_of(thing: Any) -> str:
    """Return the name that a config has of a function or class: "package.module:name".

    Raises:
      UserError: it has no name that another process could import it by.

    >>> name_of(find)
    'unlearn_jax.registry:find'
    """
    name = getattr(thing, "__qualname__", "<an object>")
    module = getattr(thing, "__module__", "")
    if "<" in name or "." in name:
        raise UserError(
            f"expected a function or class at the top level of a module, got {name} of "
            f"{module or type(thing).__name__}: a run that resumes could not find it again. Move "
            "it there."
        )
    return f"{_running() if module == '__main__' else module}:{name}"


def options(function: Callable[..., Any]) -> dict[str, Any]:
    """Return a function's keyword-only arguments with their defaults (`Parameter.empty`: none)."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def unknown(value: Any, names: Iterable[Any]) -> str:
    """Say which names were expected instead of a value, and which is nearest."""
    names = sorted(map(str, names))
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {value!r}, expected one of {names}{hint}"


def _module(name: str) -> Any:
    """Import a module; the script that is running is not run a second time."""
    return sys.modules["__main__"] if name == _running() else importlib.import_module(name)


def _running() -> str:
    """Return the name by which others would import the script that is running."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    return spec.name if spec else Path(getattr(main, "__file__", None) or "__main__").stem
