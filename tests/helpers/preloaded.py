"""Commands in processes of their own, which begin with the libraries imported.

Importing jax and its like takes longer than most commands of the tests work. This process imports
them once and forks itself for each command; the package's own modules are imported by each. On
stdin: a line of JSON for each, see `binaries.run`; on stdout: its exit code.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import sys
import warnings

LIBRARIES = (
    *("absl.app", "array_record.python.array_record_module", "flax.linen", "grain"),
    *("imagehash", "jax.numpy", "jax.experimental.pallas", "jaxtyping", "jinja2"),
    *("matplotlib.figure", "ml_collections.config_flags", "optax", "orbax.checkpoint"),
    *("scipy.optimize", "scipy.special", "scipy.stats", "skimage.metrics._structural_similarity"),
    *("sklearn.linear_model", "sklearn.manifold", "sklearn.metrics", "tqdm"),
)


def serve() -> dict:
    """Fork for every line; returns it in the child."""
    for line in sys.stdin:
        with warnings.catch_warnings():  # threads of BLAS, which knows what to do
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            return json.loads(line)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    sys.exit()


def become(asked: dict) -> None:
    """Take the files, the folder and the environment of a command, and what jax read of it."""
    for number, path in enumerate((os.devnull, asked["out"], asked["err"])):
        file = os.open(path, os.O_WRONLY if number else os.O_RDONLY)
        os.dup2(file, number)
        os.close(file)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.path[:0] = asked["path"]
    sys.modules["jax"].config.update("jax_num_cpu_devices", int(os.environ["JAX_NUM_CPU_DEVICES"]))
    sys.modules.pop("sitecustomize", None)
    with contextlib.suppress(ImportError):
        importlib.import_module("sitecustomize")  # as Python does when it starts


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()
    asked = serve()
    become(asked)
    sys.argv = ["", *asked["flags"]]
    runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
