"""Compiled programs are kept: the second time, a run starts in a fraction of the time.

They lie in the user's cache folder ($XDG_CACHE_HOME or ~/.cache)/unlearn_jax/compiled, at most
2 GiB, in one folder for each kind of processor: what was compiled for another one may not run
here. Several processes share them. JAX_COMPILATION_CACHE_DIR=DIR, or --compilation_cache=DIR, puts
them elsewhere; JAX_ENABLE_COMPILATION_CACHE=false, or --compilation_cache=off, keeps none.
"""

import hashlib
import os
import platform
import re
import sys
from pathlib import Path

MAX_BYTES = 2 * 2**30
MIN_SECONDS = 0.02  # what compiles faster is compiled again


def keep(where: str = "") -> None:
    """Set jax's persistent cache; to be called before anything is compiled.

    Args:
      where: a folder, "off", or "": what the environment says, else the user's cache folder.

    Raises:
      ValueError: where is a folder that cannot be made.
    """
    if where == "off":
        settings = {"enable_compilation_cache": False}
    elif not where and "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    else:
        try:
            root = Path(where) if where else cache_folder() / "compiled"
            folder = (root / _processor()).absolute()
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError) as error:  # the latter: there is no home
            reason = f"compiled programs cannot be kept: {error}"
            if where:
                raise ValueError(f"--compilation_cache: {reason}") from error
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


def cache_folder() -> Path:
    """Return the folder of the user's where this package keeps what saves time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unlearn_jax"


def _processor() -> str:
    """Name the processor that machine code is made for."""
    try:
        found = re.findall(
            r"^(?:model name|flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.M
        )
        text = "\n".join(sorted(set(found)))
    except OSError:
        text = platform.node()
    text += platform.machine() + platform.processor()
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
