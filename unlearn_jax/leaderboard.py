"""The former name of `python -m unlearn_jax.report.leaderboard`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("unlearn_jax.report.leaderboard", run_name="__main__", alter_sys=True)
