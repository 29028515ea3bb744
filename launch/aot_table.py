"""The former name of `python -m launch.aot.table`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("launch.aot.table", run_name="__main__", alter_sys=True)
