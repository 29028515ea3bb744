"""The commands: `unlearn-jax` lists them, `unlearn-jax NAME …` runs one.

`python -m unlearn_jax` is the same, and `python -m unlearn_jax.train …` that of `unlearn-jax
train …`.
"""

import difflib
import os
import runpy
import sys

COMMANDS = {  # name -> (module, what it is for)
    "init": ("unlearn_jax.training.propose", "write a config for a folder of your photos"),
    "request": ("unlearn_jax.report.preview", "see what a request means before it happens"),
    "pipeline": ("unlearn_jax.pipeline", "do a whole request: train, unlearn, audit, report"),
    "train": ("unlearn_jax.train", "train one stage: original, unlearned or retrained"),
    "audit": ("unlearn_jax.audit", "audit what is left of the forgotten images"),
    "evaluate": ("unlearn_jax.evaluate", "measure the models on every set of images"),
    "report": ("unlearn_jax.report", "write the page of a request"),
    "receipt": ("unlearn_jax.report.issue", "write the receipt, delete what must go"),
    "verify": ("unlearn_jax.report.verify", "check every file against the receipt"),
    "complete": ("unlearn_jax.complete", "complete images of yours with one or more models"),
    "compare": ("unlearn_jax.compare", "compare methods and seeds on one request"),
    "leaderboard": ("unlearn_jax.report.leaderboard", "write the page of a comparison"),
    "prepare": ("unlearn_jax.data.prepare", "check a data set, and pack it into records"),
    "convert": ("unlearn_jax.convert", "turn a published checkpoint into a workdir, and back"),
    "plan-deletion": (
        "unlearn_jax.certify.exact.plan",
        "what exact deletions will cost, before training",
    ),
    "delete": (
        "unlearn_jax.certify.exact.delete",
        "delete images exactly: replay training without them",
    ),
    "certify": ("unlearn_jax.certify", "verify a certificate, or plan one"),
}


def main() -> None:
    """Run the command that sys.argv names, as `python -m MODULE` would; list them without one."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        lines = [f"  {name:14} {text}" for name, (_, text) in COMMANDS.items()]
        last = "unlearn-jax COMMAND --help shows the flags of one, and an example."
        try:
            print("unlearn-jax COMMAND --flags…", *lines, last, sep="\n", flush=True)
        except BrokenPipeError:  # who reads has seen enough, as in `unlearn-jax | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        guess = f"did you mean {near[0]!r}?" if near else "unlearn-jax lists them."
        sys.exit(f"error: expected one of {', '.join(COMMANDS)}; got {name!r}: {guess}")
    if not sys.flags.safe_path and "" not in sys.path:
        sys.path.insert(0, "")  # as python -m does: a user's own modules are found where one is
    sys.argv = [sys.argv[0], *rest]
    # The module becomes __main__, so that processes that it starts find what it hands them.
    runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
