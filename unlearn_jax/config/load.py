"""Configs by name, path or module: "quickstart", "mine/request.py:noisy", "package.module"."""

import difflib
import hashlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from unlearn_jax.registry import UserError, name_of, unknown

PACKAGE = Path(__file__).parents[1]


def folder() -> Path:
    """Return where the configs are that come with the package: in a checkout, beside it."""
    installed = PACKAGE / "configs"
    return installed if installed.is_dir() else PACKAGE.parent / "configs"


def names() -> list[str]:
    """Return the names of the configs that come with the package."""
    return sorted(path.stem for path in folder().glob("[!_]*.py"))


def load(text: str) -> ConfigDict:
    """Return what get_config() of a name, a path or a module returns.

    Args:
      text: "quickstart", a config that comes with the package; "DIR/FILE.py"; or
        "package.module". What follows a colon is get_config's argument.

    Raises:
      UserError: there is no such config, or it raises an error; the message says where.
    """
    where, colon, argument = text.partition(":")
    file = _file(where)
    try:
        module = _execute(file) if file else importlib.import_module(where)
        return module.get_config(*([argument] if colon else []))
    except (Exception, SystemExit) as error:  # a file may leave, too
        from unlearn_jax.data.names import line_in  # brings jax

        at = f"{file}{line_in(error, str(file))}" if file else where
        raise UserError(f"--config: {at}: {type(error).__name__}: {error}") from error


def load_config(text: str, changes: Mapping[str, Any] | None = None) -> ConfigDict:
    """Return a config with changes, for Python.

    Args:
      text: as of `load`.
      changes: values by path: {"request.kind": "classes", "request.classes": "cat"}. A function or
        class of your own may stand where a config has a name: an objective, a model, a data source.

    Raises:
      UserError: there is no such config or key, or a function that has no name to find it by.

    >>> config = load_config("quickstart", {"request.kind": "classes", "request.classes": "cat"})
    >>> config.request.classes
    ('cat',)
    """
    config = load(text)
    for path, value in (changes or {}).items():
        *folders, key = path.split(".")
        section: Any = config
        for folder_ in folders:
            section = section.get(folder_) if isinstance(section, ConfigDict) else None
        free = folders[:1] == ["model"] or folders[-1:] in (["objective_kw"], ["combine_kw"])
        if not isinstance(section, ConfigDict) or (key not in section and not free):
            known = list(section.keys()) if isinstance(section, ConfigDict) else list(config.keys())
            raise UserError(f"load_config: {path}: {unknown(key, known)}.")
        if isinstance(section[key] if key in section else None, tuple) and isinstance(value, str):
            value = (value,)
        with section.ignore_type():
            section[key] = _named(value)
    return config


def _named(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ConfigDict({key: _named(part) for key, part in value.items()})
    if isinstance(value, tuple | list):
        return tuple(_named(part) for part in value)
    return name_of(value) if callable(value) else value


def _file(where: str) -> Path | None:
    """Return the file of a name or a path, None of a module."""
    if where.endswith(".py") or "/" in where or "\\" in where:
        if Path(where).is_file():
            return Path(where)
        ours = Path(where).stem if Path(where).stem in names() else "NAME"
        raise UserError(
            f"--config: expected a file with get_config(), there is no {where} in {Path.cwd()}. "
            f"A config of the package goes by its name: --config={ours}."
        )
    if where in names():
        return folder() / f"{where}.py"
    if "." in where:
        return None
    near = difflib.get_close_matches(where, names(), n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(
        f"--config: expected the path of a .py file, a module, or one of {names()}, got "
        f"{where!r}.{guess}"
    )


def _execute(file: Path) -> types.ModuleType:
    """Execute a file as a module of a package of its folder, so that relative imports work."""
    path = str(file.absolute().parent)
    package = f"_configs_{hashlib.sha256(path.encode()).hexdigest()[:12]}"
    if package not in sys.modules:
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [path]
    name = f"{package}.{file.stem.replace('.', '_')}"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
