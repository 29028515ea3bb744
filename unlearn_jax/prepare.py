"""The former name of `python -m unlearn_jax.data.prepare`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("unlearn_jax.data.prepare", run_name="__main__", alter_sys=True)
